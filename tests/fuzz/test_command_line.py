"""Wrong words and files through the command line: one message, no traceback, nothing left behind.

Every input is a process of its own, forked from one that has imported the packages.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import seed as seed_of_hypothesis

from launch import cli
from tests.faults.processes import EXPERIMENTS, free_port
from tests.fuzz.refusals import tree
from tests.fuzz.strategies import changed, damaged

pytestmark = [pytest.mark.faults, pytest.mark.slow]

NUM_INPUTS = 56
SECONDS = 60
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trainer.loop", "launch.train", "launch.plan", "launch.evaluate"])


def farewell(words, workspace, output, port):
    """What a process of the command line does; as one rank under torchrun, to be quick."""
    os.chdir(workspace)
    alone = ("0", "1", "0", "1", "127.0.0.1", str(port))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, alone, strict=True))
    torch.set_num_threads(1)
    sys.argv = ["farewell", *words]
    with output.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@pytest.fixture(scope="module")
def workspace(folder, tmp_path_factory):
    """A log, and a run on it to resume, evaluate, and take a plan from."""
    workspace = tmp_path_factory.mktemp("words")
    shutil.copytree(folder, workspace / "data")
    code, said = run(train_words("whole"), workspace)
    assert code == 0, said
    return workspace


def train_words(name, *options):
    """Few steps: there are few rows."""
    short = ("--train.batch-size", 16, "--train.max-steps", 4, "--train.checkpoint-every", 2)
    words = ["train", f"{EXPERIMENTS}:tiny", "--data.folder", "data", *short, *options]
    return [*words, "--folder", f"runs/{name}"]


def run(words, workspace):
    """Exit code and output."""
    output = workspace.parent / f"{workspace.name}.txt"
    process = _CONTEXT.Process(
        target=farewell, args=([str(word) for word in words], workspace, output, free_port())
    )
    process.start()
    process.join(SECONDS)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    assert not hangs, f"{words} hangs: {output.read_text()}"
    return process.exitcode, output.read_text()


WORDS = ["-1", "0", "17", "nan", "1e400", "abc", "", "None", "--", "../x", "'", "<b>", "9" * 30]
OPTIONS = [
    *("--train.batch-size", "--train.max-steps", "--train.seed", "--train.precision"),
    *("--optim.dense-lr", "--optim.sparse-lr", "--optim.decay", "--data.split.train", "--ranks"),
    *("--train.keep-best", "--plan", "--warm-start", "--no-such-option", "--data.folder"),
    "--hang-seconds",
]
VERBS = ["train", "evaluate", "plan", "export", "predict", "nothing"]


def drawn(strategy, seed):
    """One value of a strategy, decided by the seed."""
    found = []

    @seed_of_hypothesis(seed)
    @settings(max_examples=3, database=None, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found[-1]


def make_words(seed, workspace):
    """Wrong options, a wrong name, or a changed log, plan or checkpoint; and what to put back."""
    rng = random.Random(seed)
    kind = seed % 5
    if kind == 0:
        options = [rng.choice(OPTIONS), rng.choice(WORDS)]
        return train_words("new", *options), None
    if kind == 1:
        name = rng.choice(["nothing.smoke", f"{EXPERIMENTS}:x", "x.py:y", "trm", "..", "a:b:c", ""])
        return [rng.choice(VERBS), name, *rng.choices(WORDS, k=rng.randint(0, 2))], None
    if kind == 2:
        file = workspace / "data" / rng.choice(["items.parquet", "interactions/part-00000.parquet"])
        before = file.read_bytes()
        file.write_bytes(drawn(damaged(before), seed))
        return train_words("new"), (file, before)
    if kind == 3:
        plan = json.loads((workspace / "runs" / "whole" / "plan.json").read_text())
        file = workspace / "plan.json"
        file.write_text(json.dumps(drawn(changed(plan), seed)))
        return train_words("new", "--plan", "plan.json"), None
    newest = workspace / "runs" / "whole" / "checkpoints" / "step_0000000004"
    file = newest / rng.choice(["manifest.json", "state.json", "index.json"])
    before = file.read_bytes()
    file.write_bytes(drawn(damaged(before), seed))
    return train_words("whole", "--resume"), (file, before)


@pytest.mark.parametrize("seed", range(NUM_INPUTS))
def test_words_and_files(seed, workspace):
    (workspace / "plan.json").write_text("{}")
    before = tree(workspace)
    words, put_back = make_words(seed, workspace)
    try:
        code, said = run(words, workspace)
        assert "Traceback" not in said, said
        created = tree(workspace) - before
        if code == 0:  # accepted: then it is whole
            assert words[0] != "train" or (Path(workspace) / words[-1] / "result.json").exists()
        else:
            assert said.strip(), words
            kept = [path for path in created if not allowed(path)]
            assert not kept, (kept, said)
    finally:
        if put_back is not None:
            put_back[0].write_bytes(put_back[1])
        for path in sorted(tree(workspace) - before, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def allowed(path):
    """What a run that was refused on its ranks leaves: its record and its log."""
    return path.name in ("config.json", "log", "runs", "new", "rank_0.log", "given_plan.json")
