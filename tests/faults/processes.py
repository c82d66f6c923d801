"""Runs of the command line in processes of their own, to be killed; and what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from trainer.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = Path(__file__).with_name("tiny_experiment.py")
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


class Job:
    """A command with all that it starts; ends with the test.

    Args:
        words: of the command.
        workspace: where it runs; its output goes to a file there.
        environment: beside that of the tests.
    """

    def __init__(self, words, workspace, **environment):
        base = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
        self.output = workspace / f"output_{time.monotonic_ns()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                cwd=workspace,
                env={
                    **base,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    **environment,
                },
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self):
        """Standard output and error so far."""
        return self.output.read_text()

    def wait(self, timeout=400):
        """Exit code."""
        return self.process.wait(timeout)

    def everything(self):
        """The process and all that it has started, which it may outlive."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ranks(self):
        """Processes that train, by rank."""
        found, spawned = {}, []
        for process in self.everything()[1:]:
            try:
                environment, words = process.environ(), " ".join(process.cmdline())
                if "LOCAL_RANK" in environment and "RANK" in environment:  # under torchrun
                    found.setdefault(int(environment["RANK"]), process)
                elif "multiprocessing.spawn" in words:  # by `farewell train`, one after the other
                    spawned.append((process.create_time(), process.pid, process))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found or {rank: entry[-1] for rank, entry in enumerate(sorted(spawned))}


@contextmanager
def job(words, workspace, **environment):
    """A `Job` that is over, with all that it started, when the block is left."""
    started = Job(words, workspace, **environment)
    seen = []
    try:
        yield started
        seen = started.everything()
    finally:
        for process in {*seen, *started.everything()}:
            if process.is_running():
                process.kill()
        started.process.wait()


def train_words(experiment, data, folder, *options):
    """`farewell train` of an experiment of this folder."""
    named = f"{EXPERIMENTS}:{experiment}"
    words = ["-m", "launch.cli", "train", named, "--data.folder", data, "--folder", folder]
    return [sys.executable, *words, *options]


def torchrun_words(experiment, data, folder, *options):
    """The same under torchrun; `options` are torchrun's."""
    named = f"{EXPERIMENTS}:{experiment}"
    words = ["-m", "launch.cli", "train", named, "--data.folder", data, "--folder", folder]
    return [sys.executable, "-m", "torch.distributed.run", *options, *words, "--resume"]


def wait_for_checkpoints(folder, number, running):
    """Wait until a run has saved so often; its newest checkpoint."""
    deadline = time.monotonic() + 300
    checkpoints = Checkpoints(folder / "checkpoints")
    while len(checkpoints.complete()) < number:
        assert running.process.poll() is None, running.said
        assert time.monotonic() < deadline, running.said
        time.sleep(0.02)
    return checkpoints.newest()


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weights(run, step):
    """(name, offsets) -> box of every tensor of a checkpoint, read with safetensors alone."""
    path = run / "checkpoints" / f"step_{step:010d}"
    index = json.loads((path / "index.json").read_text())
    files = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    return {
        (name, tuple(chunk["offsets"])): files[chunk["file"]][chunk["key"]]
        for name, entry in index.items()
        for chunk in entry["chunks"]
    }


def assert_same_end(run, whole, step):
    """The run ended as the uninterrupted one: weights, state and scores, bit for bit."""
    found, expected = weights(run, step), weights(whole, step)
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    scores = [(one / "predictions_test.parquet").read_bytes() for one in (run, whole)]
    assert scores[0] == scores[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if "train/loss" in line]
    assert trained == sorted(set(trained))  # no step is told twice
    assert trained[-1] == step


def steps_resumed_from(run):
    """Steps of the checkpoints that the run went on from, by its log."""
    text = (run / "log" / "rank_0.log").read_text()
    return [int(line.rsplit("step_", 1)[1]) for line in text.splitlines() if "resumed " in line]
