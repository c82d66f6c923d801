"""How fast the reader makes batches, and whether its memory depends on the length of the log.

Run::

    python benchmarks/reader.py --training-samples-per-s 90000 --json reader.json

Logs of two lengths come from the simulator, with a thousand impressions a user in both, so that
histories are equally long (about 44 of at most 50). Each is read by a process of its own, in the
training order and with the batch size of training, and its peak of resident memory is taken.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from trainer.data.dataset import Dataset
from trainer.data.item_features import item_id_features
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange
from trainer.data.synthetic import write_synthetic
from trainer.data.synthetic_config import SyntheticConfig, schema
from trainer.run_folder import describe_machine, package_versions, write_json

TARGET_TIMES_TRAINING = 5.0
TARGET_MEMORY_GROWTH = 1.15
"""Peaks of equal work differ by some per cent, and a long log has more windows to draw one from."""
BATCH_SIZE = 4096
SHUFFLE_ROWS = 262_144


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure the reader on a short and on a long log.

    Args:
        training_samples_per_s: What training reaches on this machine, to compare with.
        short_rows: Rows of the short log.
        long_rows: Rows of the long log.
        repeats: Processes per log; medians are reported.
        folder: Where logs are kept between runs; by default a temporary one.
        json: Result file.
    """

    training_samples_per_s: float
    short_rows: int = 1_000_000
    long_rows: int = 20_000_000
    repeats: int = 3
    folder: Path | None = None
    json: Path | None = None


def log_config(num_rows: int) -> SyntheticConfig:
    """Settings of a log in which users have a thousand impressions each."""
    return SyntheticConfig(num_rows=num_rows, num_users=max(num_rows // 1000, 1), churn=0.01)


def measure(folder: Path, num_rows: int) -> dict[str, float]:
    """Read a whole log once and time it without the first batch, which waits for a full window."""
    dataset = Dataset.open(folder, schema(log_config(num_rows)))
    cardinality = int(dataset.item_ids.max()) + 1
    reader = InteractionReader(
        dataset,
        rows=RowRange(0, dataset.num_rows),
        item_features=item_id_features(dataset, cardinality=cardinality, hashed=False),
        batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        shuffle_rows=SHUFFLE_ROWS,
        seed=0,
        drop_last=True,
    )
    batches = iter(reader)
    next(batches)
    num_samples = history_length = 0
    begin, processor_begin = time.perf_counter(), time.process_time()
    for batch in batches:
        num_samples += batch.batch_size
        history_length += len(batch.history_T)
    seconds, processor_seconds = (
        time.perf_counter() - begin,
        time.process_time() - processor_begin,
    )
    return {
        "samples_per_s": num_samples / seconds,
        "samples_per_processor_s": num_samples / processor_seconds,
        "mean_history_length": history_length / num_samples,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def peak_rss_bytes() -> int:
    """Peak of this process's resident memory; unlike ru_maxrss, never that of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line; this benchmark needs Linux")


def measure_apart(folder: Path, num_rows: int, repeats: int) -> list[dict[str, float]]:
    """Measure in fresh processes, one after the other."""
    found = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "measure", str(folder), str(num_rows)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{num_rows:>12,} rows: {describe(found[-1])}", flush=True)
    return found


def describe(found: dict[str, float]) -> str:
    """One line about a measurement."""
    return (
        f"{found['samples_per_s']:,.0f} samples/s ({found['samples_per_processor_s']:,.0f} a "
        f"processor second), peak {found['peak_rss_bytes'] / 2**20:,.0f} MiB, histories of "
        f"{found['mean_history_length']:.1f}"
    )


def records(
    settings: Settings, short: list[dict[str, float]], long: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """Results in the shape that all benchmarks share."""
    speeds = [found["samples_per_s"] for found in long]
    times_training = [speed / settings.training_samples_per_s for speed in speeds]
    short_peaks, long_peaks = (
        [found["peak_rss_bytes"] for found in runs] for runs in (short, long)
    )
    growth = [ours / peer for ours, peer in zip(long_peaks, short_peaks, strict=True)]
    about = {
        "machine": describe_machine(),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {str(settings.short_rows): short, str(settings.long_rows): long},
    }
    return [
        {
            "benchmark": f"reader samples/s, {settings.long_rows:,} rows, batch {BATCH_SIZE}",
            "ours": statistics.median(speeds),
            "peer": settings.training_samples_per_s,
            "peer_name": "training samples/s on this machine",
            "ratio": statistics.median(times_training),
            "spread": [min(times_training), max(times_training)],
            "target": f"at least {TARGET_TIMES_TRAINING:g} x training",
            "holds": statistics.median(times_training) >= TARGET_TIMES_TRAINING,
            **about,
        },
        {
            "benchmark": f"reader peak memory, {settings.long_rows:,} rows",
            "ours": statistics.median(long_peaks),
            "peer": statistics.median(short_peaks),
            "peer_name": f"peak bytes on {settings.short_rows:,} rows",
            "ratio": statistics.median(growth),
            "spread": [min(growth), max(growth)],
            "target": f"at most {TARGET_MEMORY_GROWTH:g} x",
            "holds": statistics.median(growth) <= TARGET_MEMORY_GROWTH,
            **about,
        },
    ]


def run(settings: Settings) -> bool:
    """Write the logs, measure, print; True when both targets hold."""
    with tempfile.TemporaryDirectory() as temporary:
        root = settings.folder or Path(temporary)
        runs = []
        for num_rows in (settings.short_rows, settings.long_rows):
            folder = root / f"synthetic_{num_rows}"
            if not (folder / "manifest.json").is_file():
                write_synthetic(log_config(num_rows), folder)
            runs.append(measure_apart(folder, num_rows, settings.repeats))
    found = records(settings, *runs)
    for record in found:
        verdict = "holds" if record["holds"] else "DOES NOT HOLD"
        print(f"{record['benchmark']}: {record['ratio']:.2f} x, {record['target']}: {verdict}")
    if settings.json is not None:
        write_json(settings.json, found)
    return all(record["holds"] for record in found)


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    settings = tyro.cli(Settings, description=__doc__)
    sys.exit(0 if run(settings) else 1)


if __name__ == "__main__":
    main()
