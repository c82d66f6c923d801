"""Wide & Deep, DeepFM, DCN, DCN-v2 and AutoInt against torch-rechub's and deepctr-torch's.

Run::

    python benchmarks/ctr_zoo.py --json ctr_zoo.json
    python benchmarks/ctr_zoo.py --write-note    # also writes the dated note

Equal on all sides: MovieLens-1M in order of time, the last 262,144 of the first 80 % to train on,
once, the first 65,536 of the last 10 % to test on; eighteen fields of one value each (ids of user
and item, what is known of both, the hour, and seven causal counts and means in 32 quantile
buckets), vectors of dim 16 in fp32, an MLP of 256-128-64, three cross layers or three layers of
attention with two heads; batches of 4,096; a learning rate of 0.002; two threads in all. The label
is a rating of at least 4.

As it comes, hence different:

* torch-rechub: Adam over every row of every table, weight decay 1e-5; batch normalisation in its
  MLPs; Wide & Deep and DeepFM look their fields up twice;
* deepctr-torch: Adam over every row; tables of dim 1 beside the others in every model, L2 terms
  over all rows; DCN-v2 is its DCN with `cross_parameterization="matrix"`;
* ours: row-wise Adagrad (0.05) fused into the tables' backward pass, AdamW on the network with
  gradient clipping; linear terms read the vectors of dim 16, there are no tables of dim 1.

The clock runs from raw rows to the last step, loaders included: `DataGenerator` and `fit` read
arrays in memory, our reader reads parquet from disk. Every side is a process that stays; sides
train in turn, a seed a round, and ratios are taken within a round. All predict the same test rows.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ctr_zoo_ours
import numpy as np
import pyarrow.parquet as pq
import tyro
from ctr_zoo_workload import MODELS, ZooData
from numpy.typing import NDArray
from peers import environment, own_python, peer_versions, peers_python
from record import Record, compare_in_turn, write_results
from train_throughput import Side, pin_to_cores

from trainer.data.dataset import Dataset
from trainer.data.movielens import MOVIELENS_1M, write_movielens
from trainer.data.schema import GlobalTimeSplit, RowRange
from trainer.metrics import auc
from trainer.run_folder import write_json

HERE = Path(__file__).resolve().parent
LIBRARIES = ("torch-rechub", "deepctr-torch")
OURS = "ours"
TITLES = {
    "wide_deep": "Wide & Deep",
    "deepfm": "DeepFM",
    "dcn": "DCN",
    "dcn_v2": "DCN-v2",
    "autoint": "AutoInt",
}
FASTER = 1.5
AUC_NOISE = 0.002
"""Of two models of equal quality on this test part: about its AUC's standard error."""
PLAIN_FIELDS = (
    *("user_id", "item_id", "gender", "age", "occupation", "zip_region", "year", "hour"),
    *("weekday", "gap_bucket"),
)
NUMBERS = (
    *("user_count", "user_mean", "user_recency", "item_count", "item_mean"),
    *("user_genre_count", "user_genre_mean"),
)
NUM_BUCKETS = 32
WARM_UP_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train every model on every side in turn.

    Args:
        models: Which of them.
        train_rows: Rows of an epoch.
        test_rows: Rows that are predicted.
        rounds: Seeds; each trains one epoch on every side.
        threads: In all, on every side.
        movielens: A folder written by `farewell data movielens1m`; without it one is made.
        json: Result file.
        write_note: Also write a dated note into benchmarks/results.
    """

    models: tuple[str, ...] = MODELS
    train_rows: int = 262_144
    test_rows: int = 65_536
    rounds: int = 3
    threads: int = 2
    movielens: Path | None = None
    json: Path | None = None
    write_note: bool = False


class ZooSide(Side):
    """A side that trains one epoch and predicts, when it is told to."""

    def epoch(self, seed: int, train_rows: int, test_rows: int) -> tuple[float, NDArray]:
        """Samples/s and probabilities of the test rows."""
        (process,) = self._processes
        assert process.stdin is not None
        process.stdin.write(f"{seed} {train_rows} {test_rows}\n")
        process.stdin.flush()
        answer = self._answer(process)
        return float(answer["samples_per_s"]), np.load(str(answer["predictions"]))


@dataclass
class Runs:
    """What a side reached, one value a round."""

    speeds: list[float]
    aucs: list[float]


def zoo_data(folder: Path, train_rows: int, test_rows: int) -> ZooData:
    """Fields of MovieLens-1M; buckets are cut at quantiles of the rows to train on."""
    dataset = Dataset.open(folder, MOVIELENS_1M.schema)
    parts = dataset.split(GlobalTimeSplit())
    train = RowRange(max(0, parts.train.stop - train_rows), parts.train.stop)
    test = RowRange(parts.test.start, min(parts.test.start + test_rows, parts.test.stop))
    columns = (*PLAIN_FIELDS, *NUMBERS, "like")
    first, last = (dataset.read(rows, columns) for rows in (train, test))
    joined = {name: np.concatenate([first[name], last[name]]) for name in columns}
    genres = pq.read_table(folder / "items.parquet")["genres"].combine_chunks()
    first_genre = genres.flatten().to_numpy()[genres.offsets.to_numpy()[:-1]]
    ids = {name: joined[name].astype(np.int64) for name in PLAIN_FIELDS}
    ids["genre"] = first_genre[dataset.item_rows(joined["item_id"])].astype(np.int64)
    for name in NUMBERS:
        edges = np.unique(np.quantile(first[name], np.linspace(0, 1, NUM_BUCKETS + 1)[1:-1]))
        ids[name] = np.searchsorted(edges, joined[name], side="right")
    return ZooData(ids=ids, label=joined["like"].astype(np.float32), num_train=len(train))


def open_sides(
    model: str, threads: int, data: Path, log: Path, folder: Path, stack: ExitStack
) -> dict[str, ZooSide]:
    """Start every side on a model, one after the other."""
    shared = [f"--model={model}", f"--data={data}", f"--threads={threads}"]
    commands: dict[str, list[str | Path]] = {
        OURS: [own_python(), HERE / "ctr_zoo_ours.py", f"--log={log}", *shared],
        **{
            library: [peers_python(), HERE / "ctr_zoo_peers.py", library, *shared]
            for library in LIBRARIES
        },
    }
    sides = {}
    for name, command in commands.items():
        own = folder / f"{model}_{name}"
        own.mkdir()
        side = ZooSide([*command, f"--folder={own}"], [environment(threads)], own / "log")
        sides[name] = stack.enter_context(side)
    return sides


def measure(settings: Settings, model: str, paths: tuple[Path, Path, Path]) -> dict[str, Runs]:
    """Speeds and AUCs of every side."""
    data, log, folder = paths
    _, label = ZooData.load(data).test(settings.test_rows)
    with ExitStack() as stack:
        sides = open_sides(model, settings.threads, data, log, folder, stack)
        for side in sides.values():
            side.epoch(0, min(WARM_UP_ROWS, settings.train_rows), 4096)
        found = {name: Runs([], []) for name in sides}
        for seed in range(settings.rounds):
            for name, side in sides.items():
                speed, scores = side.epoch(seed, settings.train_rows, settings.test_rows)
                found[name].speeds.append(speed)
                found[name].aucs.append(auc(label, scores))
            print(
                f"{TITLES[model]}, seed {seed}: "
                + ", ".join(
                    f"{name} {runs.speeds[-1]:,.0f} samples/s, AUC {runs.aucs[-1]:.4f}"
                    for name, runs in found.items()
                ),
                flush=True,
            )
    return found


def records(model: str, found: dict[str, Runs], versions: dict[str, str]) -> list[Record]:
    """Speed and AUC against each library."""
    made = []
    ours = found[OURS]
    for library in LIBRARIES:
        peer = found[library]
        name = f"{library} {versions[f'peers/{library}']}"
        made.append(
            compare_in_turn(
                f"{TITLES[model]}, training samples/s end to end",
                ours=ours.speeds,
                peer=peer.speeds,
                peer_name=name,
                at_least=FASTER,
                peer_versions=versions,
            )
        )
        ratios = [own / other for own, other in zip(ours.aucs, peer.aucs, strict=True)]
        own, other = statistics.mean(ours.aucs), statistics.mean(peer.aucs)
        made.append(
            Record(
                benchmark=f"{TITLES[model]}, test AUC",
                ours=own,
                peer=other,
                peer_name=name,
                ratio=statistics.median(ratios),
                spread=(min(ratios), max(ratios)),
                target=f"at least its AUC less {AUC_NOISE:g}",
                holds=own >= other - AUC_NOISE,
                versions=versions,
                runs={"ours": ours.aucs, "peer": peer.aucs},
            )
        )
    return made


def table(found: list[Record]) -> str:
    """A line for each model and library."""
    lines = [
        "| model | library | its samples/s | ours | ratio (smallest, largest) | its AUC | ours "
        "| difference | holds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for speed, quality in zip(found[::2], found[1::2], strict=True):
        low, high = speed.spread
        holds = {
            (True, True): "yes",
            (False, True): "**too slow**",
            (True, False): "**AUC below**",
            (False, False): "**too slow, AUC below**",
        }[speed.holds, quality.holds]
        lines.append(
            f"| {speed.benchmark.partition(',')[0]} | {speed.peer_name} | {speed.peer:,.0f} "
            f"| {speed.ours:,.0f} | {speed.ratio:.2f} ({low:.2f}, {high:.2f}) "
            f"| {quality.peer:.4f} | {quality.ours:.4f} | {quality.ours - quality.peer:+.4f} "
            f"| {holds} |"
        )
    return "\n".join(lines)


def run(settings: Settings) -> bool:
    """Measure, print and write; True when every target holds."""
    versions = peer_versions(peers_python())
    pin_to_cores(settings.threads)
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        movielens = settings.movielens
        if movielens is None:
            movielens = folder / "movielens1m"
            write_movielens(MOVIELENS_1M, movielens)
        data = zoo_data(movielens, settings.train_rows, settings.test_rows)
        data.save(folder / "rows.npz")
        ctr_zoo_ours.write_log(folder / "log", data)
        for model in settings.models:
            paths = (folder / "rows.npz", folder / "log", folder)
            found += records(model, measure(settings, model, paths), versions)
    print(table(found))
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in found])
    if settings.write_note:
        assert __doc__ is not None
        write_results(
            "ctr_zoo",
            title="CTR models against two libraries",
            command="python benchmarks/ctr_zoo.py --write-note"
            + (f" --movielens {settings.movielens}" if settings.movielens else "")
            + (f" --models {' '.join(settings.models)}" if settings.models != MODELS else ""),
            notes=__doc__.partition("Equal on all sides: ")[2].strip(),
            body=f"Medians of samples/s and means of AUC over {settings.rounds} seeds, in which "
            f"the sides train in turn. Targets: at least {FASTER:g} x the samples/s of each "
            f"library, and an AUC not below its AUC by more than {AUC_NOISE:g}. Peers: "
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n\n"
            + table(found),
        )
    return all(record.holds for record in found)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    sys.exit(0 if run(settings) else 1)


if __name__ == "__main__":
    main()
