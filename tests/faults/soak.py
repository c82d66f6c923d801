r"""Train for long on two ranks, save every minute, be killed at random, end like an unkilled run.

    python tests/faults/soak.py --minutes 60 --results soak

Two runs side by side, of as many steps as fit into the time: one uninterrupted, the other with a
kill -9 of a rank or of torchrun every so often. Whoever starts jobs again when they fail (a
scheduler) is this script. Writes `soak.json` and `soak.md`; ends with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.processes import Job, steps_resumed_from, torchrun_words, weights
from tests.faults.tiny_experiment import LOG
from trainer.checkpoint import Checkpoints
from trainer.data.synthetic import write_synthetic

logger = logging.getLogger("soak")

SAMPLE_SECONDS = 1.0
WARM_SECONDS = 20.0
FLAT = 1.05
RATE_STEPS = 1000


@dataclass
class Life:
    """One start of the job, until it was killed or ended.

    Attributes:
        memory: (seconds since it began to train, resident bytes of both ranks), from 20 s on.
    """

    memory: list[tuple[float, int]] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Run the soak; 0 when all holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of both runs")
    parser.add_argument("--kill-seconds", type=float, default=180.0, help="mean time to a kill")
    parser.add_argument("--save-seconds", type=float, default=60.0, help="between checkpoints")
    parser.add_argument("--seed", type=int, default=None, help="of the kills")
    parser.add_argument("--results", type=Path, default=Path("soak"), help="path without suffix")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), options, seed)
    options.results.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    options.results.with_suffix(".md").write_text(as_markdown(found))
    print(as_markdown(found))
    return 0 if found["holds"] else 1


def soak(folder: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both runs, and what they showed."""
    data = folder / "data"
    write_synthetic(LOG, data)
    with ThreadPoolExecutor(2) as both:
        rate = min(both.map(lambda name: steps_per_second(folder / name, data), ("a", "b")))
        num_steps = max(100, int(rate * options.minutes * 60))
        every = max(1, int(rate * options.save_seconds))
        logger.info("%.1f steps/s: %d steps, a checkpoint every %d", rate, num_steps, every)
        runs = [
            both.submit(
                run,
                folder,
                data,
                name,
                num_steps,
                every,
                kill_seconds=kill_seconds,
                rng=random.Random(seed),
            )
            for name, kill_seconds in (("whole", None), ("shaken", options.kill_seconds))
        ]
        whole, shaken = (future.result() for future in runs)
    one, other = (weights(folder / name, num_steps) for name in ("whole", "shaken"))
    equal = one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    scores = [
        (folder / name / "predictions_test.parquet").read_bytes() for name in ("whole", "shaken")
    ]
    resumed = steps_resumed_from(folder / "shaken")
    redone = [killed["trained"] - killed["saved"] for killed in shaken["kills"]]
    growth = [value for name in (whole, shaken) for value in name["memory_growth"]]
    checks = {
        "ended at the right step": last_step(folder / "shaken") == num_steps,
        "weights, optimizer and random state bit-equal": equal,
        "scores of the test part byte-equal": scores[0] == scores[1],
        "each start went on from the newest checkpoint": resumed
        == [killed["saved"] for killed in shaken["kills"] if killed["saved"]],
        "at most the steps since the last checkpoint redone": all(
            steps <= 2 * every for steps in redone
        ),
        f"memory flat (last quarter / second quarter of a life at most {FLAT})": all(
            value <= FLAT for value in growth
        ),
    }
    return {
        "benchmark": "soak",
        "minutes": options.minutes,
        "seconds": {"whole": whole["seconds"], "shaken": shaken["seconds"]},
        "steps": num_steps,
        "steps_per_second": rate,
        "checkpoint_every_steps": every,
        "kill_seconds": options.kill_seconds,
        "seed": seed,
        "tensors": len(one),
        "kills": shaken["kills"],
        "resumed_from": resumed,
        "memory_growth": {"whole": whole["memory_growth"], "shaken": shaken["memory_growth"]},
        "peak_bytes": {"whole": whole["peak_bytes"], "shaken": shaken["peak_bytes"]},
        "checks": checks,
        "holds": all(checks.values()) and bool(shaken["kills"]),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def words_of(data: Path, folder: Path, num_steps: int, every: int) -> list[Any]:
    """The command of the job."""
    options = ("--standalone", "--nproc-per-node", 2)
    more = ["--train.max-steps", num_steps, "--train.checkpoint-every", every]
    more += ["--train.num-epochs", 10**6, "--train.log-every", 10]
    more += ["--train.keep-checkpoints", 3, "--train.eval-every", 10**9]
    return [*torchrun_words("killed", data, folder, *options), *more]


def steps_per_second(calibration: Path, data: Path) -> float:
    """Measured between two lines of metrics of a short run."""
    job = Job(words_of(data, calibration, RATE_STEPS, RATE_STEPS), calibration.parent)
    if job.wait(600) != 0:
        raise RuntimeError(job.said)
    lines = [json.loads(line) for line in (calibration / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train/loss" in line]
    first, last = trained[len(trained) // 4], trained[-1]
    return (last["step"] - first["step"]) / (last["time"] - first["time"])


def run(
    folder: Path,
    data: Path,
    name: str,
    num_steps: int,
    every: int,
    *,
    kill_seconds: float | None,
    rng: random.Random,
) -> dict[str, Any]:
    """Train to the end, starting the job again whenever it was killed."""
    path, lives, kills = folder / name, [], []
    begin = time.monotonic()
    while not (path / "result.json").exists():
        life = Life()
        lives.append(life)
        # Never at a fixed rhythm, which a checkpoint every minute could agree with.
        until = None if kill_seconds is None else rng.uniform(0.6, 1.4) * kill_seconds
        victim = rng.choice(["rank 0", "rank 1", "torchrun"])
        job = Job(words_of(data, path, num_steps, every), folder)
        killed = watch(job, life, path / "metrics.jsonl", until, victim)
        if killed is None:
            if job.process.returncode != 0:
                raise RuntimeError(f"{name} failed by itself: {job.said[-2000:]}")
            continue
        newest = Checkpoints(path / "checkpoints").newest()
        saved = int(newest.name[5:]) if newest is not None else 0
        kills.append(
            {
                "victim": victim,
                "after_seconds": round(killed, 1),
                "saved": saved,
                "trained": max(saved, last_step(path)),
            }
        )
        logger.info("%s: killed %s after %.0f s, step %d saved", name, victim, killed, saved)
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "kills": kills,
        "memory_growth": [g for life in lives if (g := growth(life.memory)) is not None],
        "peak_bytes": [max((b for _, b in life.memory), default=0) for life in lives],
    }


def watch(job: Job, life: Life, metrics: Path, until: float | None, victim: str) -> float | None:
    """Measure memory until the job ends or is killed; how long it had trained when killed."""
    before = changed_at(metrics)
    start = None
    while job.process.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        if start is None:
            if changed_at(metrics) == before:
                continue
            start = time.monotonic()
        ranks = job.ranks()
        seconds = time.monotonic() - start
        if len(ranks) == 2 and seconds > WARM_SECONDS:
            try:
                life.memory.append((seconds, sum(r.memory_info().rss for r in ranks.values())))
            except psutil.NoSuchProcess:
                continue
        if until is not None and seconds > until and len(ranks) == 2:
            everything = job.everything()
            (job.process if victim == "torchrun" else ranks[int(victim[-1])]).kill()
            job.process.wait()
            alive = psutil.wait_procs(everything, timeout=120)[1]
            if alive:
                raise RuntimeError(f"{alive} outlived the job")
            return seconds
    return None


def changed_at(path: Path) -> int:
    """When a file was last written to; 0 before there is one."""
    return path.stat().st_mtime_ns if path.exists() else 0


def growth(memory: Sequence[tuple[float, int]]) -> float | None:
    """Resident memory of the last quarter of a life over that of its second quarter."""
    quarter = len(memory) // 4
    if quarter < 5:
        return None
    values = [num_bytes for _, num_bytes in memory]
    return statistics.mean(values[-quarter:]) / statistics.mean(values[quarter : 2 * quarter])


def last_step(path: Path) -> int:
    """Step of the last whole line of metrics."""
    steps = [0]
    for line in (path / "metrics.jsonl").read_text().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except json.JSONDecodeError:
            break
    return max(steps)


def as_markdown(found: dict[str, Any]) -> str:
    """A dated note."""
    growths = [g for values in found["memory_growth"].values() for g in values]
    lines = [
        f"# Soak, {found['date']}",
        "",
        f"{found['machine']}; `python tests/faults/soak.py --minutes {found['minutes']:g} "
        f"--kill-seconds {found['kill_seconds']:g} --seed {found['seed']}`",
        "",
        f"{found['steps']} steps on 2 ranks, a checkpoint every {found['checkpoint_every_steps']} "
        f"steps; uninterrupted {found['seconds']['whole']:g} s, with {len(found['kills'])} kills "
        f"{found['seconds']['shaken']:g} s. {found['tensors']} boxes of tensors compared.",
        "",
        "| check | holds |",
        "|---|---|",
        *(
            f"| {name} | {'yes' if holds else '**no**'} |"
            for name, holds in found["checks"].items()
        ),
        "",
        f"Memory, last quarter over second quarter of a life: {min(growths, default=0):.3f} to "
        f"{max(growths, default=0):.3f}.",
        "",
        "| killed | after s | step trained | step saved |",
        "|---|---|---|---|",
        *(
            f"| {k['victim']} | {k['after_seconds']:g} | {k['trained']} | {k['saved']} |"
            for k in found["kills"]
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
