"""How much of the machine's matrix-product rate each tower reaches, and DCN-v2 end to end.

Run::

    python benchmarks/towers.py --json towers.json
    python benchmarks/towers.py --results    # also writes the dated note

Each tower is built at 1, 7 and 30 million parameters (16 features of dim 64; what grows is its
width) and trained on random features: forward and backward pass with gradients to weights and
features, no optimizer, in memory that is reused from step to step, as ranks on a CPU train
(trainer/host_memory.py). Achieved FLOP/s are the FLOPs of its matrix products, as torch counts
them, over the median time of a step: normalisations, activations and the rest count as time and not
as work. They are divided by the rate of a 4096 x 4096 matrix product in the same precision,
measured between the tower's eager and compiled steps. Batches are powers of two, as large as a step
of about 2e11 FLOPs allows, 4096 at most. `compiled` is what `train.compile` does, `bf16` is
autocast. fp32 is compiled at 30M alone.

DCN-v2 end to end: three full cross layers beside an MLP of 256-128-64 on sixteen vectors of dim 16
(fifteen categorical features and a pooled history of 50 items), batches of 4096, fp32, two threads
in all; torch-rechub's `DCNv2` with its `CTRTrainer` (Adam on every row; batch normalisation in its
MLP) against ours (fused row-wise Adagrad, AdamW). `loader` runs what each side reads data with,
`memory` trains on batches that are tensors already, see benchmarks/train_throughput.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import throughput_ours
import torch
import tyro
from peers import environment, own_python, peer_versions, peers_python
from record import Record, compare_in_turn, write_results
from throughput_workload import make_rows
from tower_step import (
    FAMILIES,
    MATRIX_DIM,
    Precision,
    batch_for,
    matrix_product,
    num_parameters,
    seconds_of,
    step_of,
    tower_of_size,
    training_flops,
)
from train_throughput import HERE, MODES, NUM_ROWS, Side, pin_to_cores

from trainer.host_memory import reuse_freed_memory
from trainer.run_folder import write_json

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
SHARE_TARGET, SHARE_SIZE = 0.6, 30_000_000
END_TO_END_TARGET = 1.5
NUM_ITEMS = 4_000
Part = Literal["towers", "end_to_end"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure towers, and DCN-v2 against torch-rechub's.

    Args:
        parts: What is measured.
        towers: Names of towers.
        sizes: Parameters.
        flops: Of a step, about; decides the batch size.
        seconds: About how long each tower, mode and matrix product is measured.
        rounds: How often the sides of the end-to-end comparison train, in turn.
        side_seconds: About how long each of them trains in a round.
        threads: In all.
        json: Result file.
        results: Write the dated note into benchmarks/results.
    """

    parts: tuple[Part, ...] = ("towers", "end_to_end")
    towers: tuple[str, ...] = tuple(FAMILIES)
    sizes: tuple[int, ...] = (1_000_000, 7_000_000, 30_000_000)
    flops: float = 2e11
    seconds: float = 2.0
    rounds: int = 3
    side_seconds: float = 2.0
    threads: int = 2
    json: Path | None = None
    results: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One tower at one size.

    Attributes:
        name: of the tower.
        parameters: that it has.
        batch_size: impressions of a step.
        speeds: FLOP/s by precision and `eager` or `compiled`.
        rates: FLOP/s of the matrix product by precision.
        compile_seconds: of the first step, by precision.
    """

    name: str
    size: int
    parameters: int
    batch_size: int
    speeds: dict[tuple[Precision, str], float]
    rates: dict[Precision, float]
    compile_seconds: dict[Precision, float]


def measure_tower(name: str, size: int, settings: Settings) -> Measured:
    """Both precisions, eager and compiled."""
    config = tower_of_size(name, size)
    batch_size = batch_for(config, settings.flops)
    flops = training_flops(config, batch_size)
    speeds: dict[tuple[Precision, str], float] = {}
    rates: dict[Precision, float] = {}
    compile_seconds: dict[Precision, float] = {}
    for precision in PRECISIONS:
        for mode in ("eager", "compiled"):
            if (precision, mode) == ("fp32", "compiled") and size != SHARE_SIZE:
                continue  # compiling takes most of the time
            step = step_of(config, batch_size, precision, compiled=mode == "compiled")
            if mode == "compiled":
                torch._dynamo.reset()
                start = time.perf_counter()
                step()
                compile_seconds[precision] = time.perf_counter() - start
            speeds[precision, mode] = flops / seconds_of(step, settings.seconds)
            if mode == "eager":
                product_seconds = seconds_of(matrix_product(precision), settings.seconds / 2)
                rates[precision] = 2 * MATRIX_DIM**3 / product_seconds
    return Measured(
        name=name,
        size=size,
        parameters=num_parameters(config),
        batch_size=batch_size,
        speeds=speeds,
        rates=rates,
        compile_seconds=compile_seconds,
    )


def tower_records(found: Measured) -> list[Record]:
    """Shares of the matrix-product rate, and the ratios between modes."""
    title = f"{found.name}, {found.parameters / 1e6:.1f}M parameters"
    records = []
    for (precision, mode), speed in found.speeds.items():
        has_target = found.size == SHARE_SIZE and precision == "bf16" and mode == "compiled"
        records.append(
            compare_in_turn(
                f"{title}, {mode}, {precision}: FLOP/s, batch {found.batch_size}",
                ours=[speed],
                peer=[found.rates[precision]],
                peer_name=f"matrix product of {MATRIX_DIM}, {precision}",
                at_least=SHARE_TARGET if has_target else None,
            )
        )
    return records


def tower_table(found: list[Measured]) -> str:
    """One line a tower and size."""
    lines = [
        "| tower | parameters | batch | fp32 GFLOP/s, share | bf16 GFLOP/s, share "
        "| fp32 compiled | bf16 compiled | compiled / eager, bf16 | bf16 / fp32, eager "
        "| first step compiled, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        cells = [
            f"{one.speeds[precision, mode] / 1e9:,.0f}, "
            f"{one.speeds[precision, mode] / one.rates[precision]:.0%}"
            if (precision, mode) in one.speeds
            else ""
            for mode in ("eager", "compiled")
            for precision in PRECISIONS
        ]
        eager, compiled = one.speeds["bf16", "eager"], one.speeds["bf16", "compiled"]
        lines.append(
            f"| {one.name} | {one.parameters / 1e6:.1f}M | {one.batch_size} | {' | '.join(cells)} "
            f"| {compiled / eager:.2f} | {eager / one.speeds['fp32', 'eager']:.2f} "
            f"| {one.compile_seconds['bf16']:.0f} |"
        )
    return "\n".join(lines)


def measure_end_to_end(settings: Settings, versions: dict[str, str]) -> list[Record]:
    """DCN-v2 on both sides in turn; samples/s."""
    alone = environment(settings.threads)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        rows = make_rows(NUM_ROWS, NUM_ITEMS)
        rows.save(folder / "rows.npz")
        throughput_ours.write_log(folder / "log", rows, NUM_ITEMS)
        options = [f"--items={NUM_ITEMS}", f"--threads={settings.threads}", "--tower=dcn_v2"]
        commands: list[list[str | Path]] = [
            [own_python(), HERE / "throughput_ours.py", f"--folder={folder / 'log'}", *options],
            [
                peers_python(),
                HERE / "throughput_libraries.py",
                "torch-rechub",
                f"--rows={folder / 'rows.npz'}",
                *options,
            ],
        ]
        ours, peer = (
            stack.enter_context(Side(command, [alone], folder / f"{number}.log"))
            for number, command in enumerate(commands)
        )
        found = []
        for mode in MODES:
            runs: dict[Side, list[float]] = {ours: [], peer: []}
            for side in runs:
                side.warm_up(mode, settings.side_seconds)
            for _ in range(settings.rounds):
                for side, values in runs.items():
                    values.append(side.run(mode))
            found.append(
                compare_in_turn(
                    f"DCN-v2 training samples/s, {NUM_ITEMS:,} items, {mode}",
                    ours=runs[ours],
                    peer=runs[peer],
                    peer_name=f"torch-rechub {versions['peers/torch-rechub']}",
                    at_least=END_TO_END_TARGET,
                    peer_versions=versions,
                )
            )
            print(f"{found[-1].benchmark}: {found[-1].ratio:.2f} x", flush=True)
        return found


def end_to_end_table(found: list[Record]) -> str:
    """One line a mode."""
    lines = [
        "| DCN-v2, samples/s | ours | peer | its samples/s | ratio | spread | target | holds |",
        "|---|---:|---|---:|---:|---|---|---|",
    ]
    for record in found:
        low, high = record.spread
        lines.append(
            f"| {record.benchmark.removeprefix('DCN-v2 training samples/s, ')} "
            f"| {record.ours:,.0f} | {record.peer_name} | {record.peer:,.0f} | {record.ratio:.2f} "
            f"| {low:.2f}-{high:.2f} | {record.target} | {'yes' if record.holds else '**no**'} |"
        )
    return "\n".join(lines)


def run(settings: Settings) -> bool:
    """Measure, print and write; True when every target holds."""
    pin_to_cores(settings.threads)
    torch.set_num_threads(settings.threads)
    reuse_freed_memory()
    measured: list[Measured] = []
    records: list[Record] = []
    tables = []
    if "towers" in settings.parts:
        for size in settings.sizes:
            for name in settings.towers:
                measured.append(measure_tower(name, size, settings))
                records += tower_records(measured[-1])
                print(tower_table(measured[-1:]).splitlines()[-1], flush=True)
        tables.append(tower_table(measured))
    if "end_to_end" in settings.parts:
        versions = peer_versions(peers_python())
        end_to_end = measure_end_to_end(settings, versions)
        records += end_to_end
        tables.append(end_to_end_table(end_to_end))
    print("\n\n".join(tables))
    failed = [record for record in records if not record.holds]
    for record in failed:
        print(f"below target: {record.benchmark}: {record.ratio:.2f}, {record.target}")
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in records])
    if settings.results:
        assert __doc__ is not None
        write_results(
            "towers",
            title="Towers",
            command="python benchmarks/towers.py --results",
            notes=__doc__.partition("    # also writes the dated note\n\n")[2].strip(),
            body="`share` is achieved FLOP/s over the matrix-product rate in the same precision; "
            f"the target is {SHARE_TARGET:.0%} at {SHARE_SIZE / 1e6:.0f}M, compiled, bf16.\n\n"
            + "\n\n".join(tables),
        )
    return not failed


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    sys.exit(0 if run(settings) else 1)


if __name__ == "__main__":
    main()
