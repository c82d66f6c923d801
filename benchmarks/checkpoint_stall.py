"""How long training waits for a checkpoint, and what checkpoints cost a run.

Run::

    python benchmarks/checkpoint_stall.py --json checkpoint_stall.json --write-note

The same model is trained three ways in turn on a simulated log: without checkpoints, with
checkpoints that are written while training goes on, and with checkpoints that training waits for
(`train.checkpoint_memory_bytes=1`). The item table holds most of the bytes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from record import Record, compare_in_turn, records_table, write_results

from configs import datasets
from configs.recipe import RANKMIXER, id_encoder, ranking_experiment
from launch.ranks import run_on_ranks
from trainer.data.synthetic import write_synthetic
from trainer.data.synthetic_config import SyntheticConfig
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.run_folder import write_json

TARGET = 0.1
WAYS: dict[str, dict[str, Any]] = {
    "none": {"checkpoint_every": None},
    "background": {"checkpoint_memory_bytes": None},
    "waiting": {"checkpoint_memory_bytes": 1},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure what checkpoints cost.

    Args:
        item_rows: Rows of the item table (32 fp32 values and one of state each).
        ranks: Processes.
        batch_size: Impressions of all ranks in a step.
        num_steps: Steps of a run.
        checkpoint_every: Steps between two checkpoints.
        rounds: Runs of each way, in turn.
        folder: Where the log and the runs go; by default a temporary one.
        json: Result file.
        write_note: Keep the results as a dated note.
    """

    item_rows: int = 1_000_000
    ranks: int = 2
    batch_size: int = 4096
    num_steps: int = 96
    checkpoint_every: int = 8
    rounds: int = 3
    folder: Path | None = None
    json: Path | None = None
    write_note: bool = False


def experiment_of(settings: Settings, data: Path) -> Experiment:
    """RankMixer with item IDs on a simulated log, evaluated at the end alone."""
    num_rows = settings.batch_size * (settings.num_steps + 2) * 5 // 4
    config = SyntheticConfig(num_rows=num_rows, num_users=20_000, num_items=20_000)
    if not (data / "manifest.json").is_file():
        write_synthetic(config, data)
    experiment = ranking_experiment(
        "checkpoint_stall",
        datasets.synthetic(data, config),
        item=id_encoder(),
        tower=RANKMIXER,
        id_rows=settings.item_rows,
    )
    return replace(
        experiment,
        train=replace(
            experiment.train,
            batch_size=settings.batch_size,
            max_steps=settings.num_steps,
            num_epochs=1,
            log_every=settings.checkpoint_every,
            eval_every=settings.num_steps,
            checkpoint_every=settings.checkpoint_every,
        ),
    )


def measure(experiment: Experiment, folder: Path, num_ranks: int) -> dict[str, float]:
    """Train once; seconds of a step interval, of a save, and bytes of a save."""
    run_on_ranks(train, num_ranks, experiment, folder, log_folder=folder / "log")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return figures(lines)


def figures(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a run's metrics say.

    A save's stall is that of rank 0. The interval is wall time, with saves and the refilling of the
    pipeline after them, from the first line of metrics to the last.

    Args:
        lines: of metrics.jsonl.
    """
    trained = [line for line in lines if "train/loss" in line]
    first, last = trained[0], trained[-1]
    saves = [line for line in lines[:-1] if "checkpoint/bytes" in line]
    return {
        "interval": (last["time"] - first["time"]) / (last["step"] - first["step"]),
        "step": statistics.mean(line["step_ms/step"] for line in trained[1:]) / 1e3,
        "stall": statistics.mean(line["checkpoint/seconds_stalled"] for line in saves)
        if len(saves) > 1
        else 0.0,
        "bytes": max((line["checkpoint/bytes"] for line in saves), default=0.0),
    }


def records(settings: Settings, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Record]:
    """Results in the shape that all benchmarks share."""
    none, background, waiting = (runs[way] for way in WAYS)
    every = settings.checkpoint_every

    def shares(saving: Sequence[Mapping[str, float]], steps: int) -> list[float]:
        return [
            one["stall"] / (steps * plain["interval"])
            for one, plain in zip(saving, none, strict=True)
        ]

    def record(benchmark: str, steps: int, target: str) -> Record:
        found = compare_in_turn(
            benchmark,
            ours=shares(background, steps),
            peer=shares(waiting, steps),
            peer_name="training waits until it is written",
            at_least=None,
        )
        return replace(found, target=target, holds=not target or found.ours < TARGET)

    slower = compare_in_turn(
        f"step interval with a checkpoint every {every} steps / without",
        ours=[a["interval"] / b["interval"] for a, b in zip(background, none, strict=True)],
        peer=[a["interval"] / b["interval"] for a, b in zip(waiting, none, strict=True)],
        peer_name="training waits until it is written",
        at_least=None,
    )
    return [
        record("stall of a save / step interval", 1, f"less than {TARGET:g}"),
        record(f"stall a step, a save every {every} steps / step interval", every, ""),
        slower,
    ]


def run(settings: Settings, root: Path) -> list[Record]:
    """Train each way in turn."""
    experiment = experiment_of(settings, root / "data")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(settings.rounds):
        for way, changes in WAYS.items():
            own = replace(experiment, train=replace(experiment.train, **changes))
            found = measure(own, root / f"run_{way}_{number}", settings.ranks)
            runs[way].append(found)
            print(
                f"{way:>10}: step interval {1e3 * found['interval']:.1f} ms (in the step "
                f"{1e3 * found['step']:.1f}), stall {1e3 * found['stall']:.1f} ms, "
                f"{found['bytes'] / 2**20:.0f} MiB a save",
                flush=True,
            )
    return records(settings, runs)


def main(settings: Settings) -> None:
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as temporary:
        found = run(settings, settings.folder or Path(temporary))
    table = records_table([record.to_dict() for record in found])
    print(table)
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in found])
    if settings.write_note:
        write_results(
            "checkpoint_stall",
            title="What checkpoints cost a run",
            command="python benchmarks/checkpoint_stall.py --write-note",
            notes=(
                f"{settings.ranks} ranks, batch {settings.batch_size}, {settings.item_rows:,} item "
                f"rows of 32 values, {settings.num_steps} steps, a checkpoint every "
                f"{settings.checkpoint_every}, {settings.rounds} rounds in turn. The stall is what "
                "training waits inside the save; the step interval is that of the run without "
                "checkpoints. What the background costs beside the stall, since it shares the "
                "processors with training, and the refilling of the pipeline, are in the last line."
            ),
            body=table,
        )
    sys.exit(0 if all(record.holds for record in found) else 1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
