"""Training samples/s against torch-rechub, deepctr-torch and hand-tuned plain torch.

Run::

    python benchmarks/train_throughput.py --json train_throughput.json
    python benchmarks/train_throughput.py --results    # also writes the dated note

Equal on all sides: fifteen categorical features and a history of 50 items that is mean-pooled
from the item's table, so sixteen vectors of dim 16; DeepFM with an MLP of 256-128-64; the same rows
in batches of 4096; fp32; two threads in all. The loss is read in every step.

As it comes, hence different:

* torch-rechub: `CTRTrainer` with its default Adam over every row of every table; batch
  normalisation in its MLP; looks its features up twice, for the deep part and for the FM;
* deepctr-torch: `compile("adam")` and `fit`; the first order has tables of its own of dim 1; its
  default L2 term reads every row of every table in every step;
* hand-tuned plain torch: `nn.EmbeddingBag(sparse=True)`, Adagrad on the tables (sparse gradients;
  SparseAdam would keep two moments a weight), fused AdamW on the network. Its loader gathers
  whole columns by shuffled row numbers;
* ours: an EmbeddingBagCollection under DistributedModelParallel, row-wise Adagrad fused into the
  backward pass, AdamW on the network with gradient clipping, the loss averaged over ranks in every
  step. First and second order and the MLP are exactly those of the plain version.

`loader` runs what each library reads data with: torch-rechub's `DataGenerator`, deepctr-torch's
`fit`, both over arrays in memory, and on our side the reader over parquet on disk, its start
included; its threads share the same cores. `memory` trains on eight batches that are tensors
already. Every side is one process (two for two ranks) that stays, with OMP_WAIT_POLICY=PASSIVE;
sides train in turn, and ratios are taken within a round.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import throughput_ours
import tyro
from peers import environment, own_python, peer_versions, peers_python
from record import Record, compare_in_turn, write_results
from throughput_worker import MARK
from throughput_workload import BATCH_SIZE, make_rows

from trainer.run_folder import write_json

HERE = Path(__file__).resolve().parent
OURS, TWO_RANKS, PLAIN = "ours", "ours, 2 ranks", "hand-tuned plain torch"
LIBRARIES = ("torch-rechub", "deepctr-torch")
MODES = ("memory", "loader")
NUM_ROWS = 262_144
MAX_STEPS = NUM_ROWS // BATCH_SIZE
WARM_UP_STEPS = 3
LIBRARY_TARGETS = {4_000: 1.5, 1_000_000: 4.0, 5_000_000: 15.0}
PLAIN_TARGETS = {4_000: 1.3, 1_000_000: 2.0, 5_000_000: 3.0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure training throughput on every side in turn.

    Args:
        items: Rows of the item table, one comparison each.
        rounds: How often every side trains, in turn.
        seconds: About how long each side trains in a round.
        threads: In all, on every side.
        json: Result file.
        results: Write the dated note into benchmarks/results.
    """

    items: tuple[int, ...] = (4_000, 1_000_000, 5_000_000)
    rounds: int = 5
    seconds: float = 3.0
    threads: int = 2
    json: Path | None = None
    results: bool = False


class Side:
    """The processes of one side, which train when they are told to.

    Args:
        command: interpreter, script and arguments.
        environments: of its processes, one a rank.
        log: file that takes what they print to standard error.
    """

    def __init__(
        self, command: list[str | Path], environments: list[dict[str, str]], log: Path
    ) -> None:
        self._log = log
        with log.open("w") as errors:
            self._processes = [
                subprocess.Popen(
                    command,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for env in environments
            ]
        self.steps: dict[str, int] = {}

    def __enter__(self) -> Side:
        """Wait until every process is ready."""
        for process in self._processes:
            self._answer(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        for process in self._processes:
            if error is not None:
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()

    def warm_up(self, mode: str, seconds: float) -> None:
        """Train a little and find how many steps take `seconds`."""
        self.train(mode, WARM_UP_STEPS)
        speed = self.train(mode, WARM_UP_STEPS)
        wanted = math.ceil(seconds * speed / BATCH_SIZE)
        self.steps[mode] = min(max(wanted, WARM_UP_STEPS), MAX_STEPS)

    def run(self, mode: str) -> float:
        """Train for about the time that `warm_up` was told; samples/s."""
        return self.train(mode, self.steps[mode])

    def train(self, mode: str, steps: int) -> float:
        """Train so many steps; samples/s over all ranks."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{mode} {steps}\n")
            process.stdin.flush()
        return min(self._answer(process)["samples_per_s"] for process in self._processes)

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, float]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line[len(MARK) :]))
        raise RuntimeError(f"a side ended early: {self._log.read_text()[-2000:]}")


def open_sides(num_items: int, threads: int, folder: Path, stack: ExitStack) -> dict[str, Side]:
    """Write the rows and start every side on them, one after the other."""
    rows = make_rows(NUM_ROWS, num_items)
    arrays, log = folder / f"{num_items}.npz", folder / f"log_{num_items}"
    rows.save(arrays)
    throughput_ours.write_log(log, rows, num_items)
    alone = environment(threads)
    ours = [own_python(), HERE / "throughput_ours.py", f"--items={num_items}", f"--folder={log}"]
    others = [f"--items={num_items}", f"--rows={arrays}", f"--threads={threads}"]
    started = {
        OURS: ([*ours, f"--threads={threads}"], [alone]),
        TWO_RANKS: ([*ours, f"--threads={max(1, threads // 2)}"], two_ranks(threads)),
        PLAIN: ([own_python(), HERE / "throughput_plain.py", *others], [alone]),
        **{
            library: (
                [peers_python(), HERE / "throughput_libraries.py", library, *others],
                [alone],
            )
            for library in LIBRARIES
        },
    }
    return {
        name: stack.enter_context(Side(command, environments, folder / f"{name}.log"))
        for name, (command, environments) in started.items()
    }


def two_ranks(threads: int) -> list[dict[str, str]]:
    """Environments of two ranks that share the threads, as torchrun would set them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        **environment(max(1, threads // 2)),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def pin_to_cores(count: int) -> None:
    """Keep this process and its children on so many cores, background threads included.

    Raises:
        ValueError: when the machine has fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise ValueError(f"--threads is {count}, but only {len(cores)} cores may be used here")
    os.sched_setaffinity(0, cores[:count])


def measure(settings: Settings, num_items: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Samples/s by mode and side, one value a round."""
    with ExitStack() as stack:
        sides = open_sides(num_items, settings.threads, folder, stack)
        speeds: dict[str, dict[str, list[float]]] = {}
        for mode in MODES:
            for side in sides.values():
                side.warm_up(mode, settings.seconds)
            speeds[mode] = {name: [] for name in sides}
            for number in range(settings.rounds):
                for name, side in sides.items():
                    speeds[mode][name].append(side.run(mode))
                print(
                    f"{num_items:,} items, {mode}, round {number + 1}: "
                    + ", ".join(f"{name} {runs[-1]:,.0f}" for name, runs in speeds[mode].items()),
                    flush=True,
                )
        return speeds


def records(
    num_items: int, speeds: dict[str, dict[str, list[float]]], versions: dict[str, str]
) -> list[Record]:
    """Compare our side with every other, with a target where one is set."""
    found = []
    for mode, runs in speeds.items():
        faster = max(LIBRARIES, key=lambda library: statistics.median(runs[library]))
        targets = {faster: LIBRARY_TARGETS.get(num_items)}
        if mode == "memory":
            targets[PLAIN] = PLAIN_TARGETS.get(num_items)
        for peer in (*LIBRARIES, PLAIN, TWO_RANKS):
            version = versions.get(f"peers/{peer}")
            found.append(
                compare_in_turn(
                    f"training samples/s, {num_items:,} items, {mode}",
                    ours=runs[OURS],
                    peer=runs[peer],
                    peer_name=f"{peer} {version}" if version else peer,
                    at_least=targets.get(peer),
                    peer_versions=versions,
                )
            )
    return found


def table(found: list[Record]) -> str:
    """All comparisons in markdown."""
    lines = [
        "| training samples/s | ours | peer | its samples/s | ratio | spread | target | holds |",
        "|---|---:|---|---:|---:|---|---|---|",
    ]
    for record in found:
        low, high = record.spread
        holds = "" if not record.target else "yes" if record.holds else "**no**"
        lines.append(
            f"| {record.benchmark.removeprefix('training samples/s, ')} | {record.ours:,.0f} "
            f"| {record.peer_name} | {record.peer:,.0f} | {record.ratio:.2f} "
            f"| {low:.2f}-{high:.2f} | {record.target} | {holds} |"
        )
    return "\n".join(lines)


def run(settings: Settings) -> bool:
    """Measure, print and write; True when every target holds."""
    versions = peer_versions(peers_python())
    pin_to_cores(settings.threads)
    found: list[Record] = []
    for num_items in settings.items:
        with tempfile.TemporaryDirectory() as temporary:
            speeds = measure(settings, num_items, Path(temporary))
        found += records(num_items, speeds, versions)
    print(table(found))
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in found])
    if settings.results:
        assert __doc__ is not None
        write_results(
            "train_throughput",
            title="Training throughput",
            command="python benchmarks/train_throughput.py --results",
            notes=__doc__.partition("Equal on all sides: ")[2].strip(),
            body=f"Medians of {settings.rounds} rounds in which the sides train in turn for about "
            f"{settings.seconds:g} s each; `ratio` is the median of ours / peer within a round, "
            f"`spread` its smallest and largest value. `{OURS}` is one rank with "
            f"{settings.threads} threads, `{TWO_RANKS}` two ranks that share them. Peers: "
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n\n"
            + table(found),
        )
    return all(record.holds for record in found)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    sys.exit(0 if run(settings) else 1)


if __name__ == "__main__":
    main()
