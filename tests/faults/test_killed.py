"""Processes that are killed from outside, at a moment that nobody chose."""

import json
import random

import psutil
import pytest

from tests.faults.processes import (
    assert_same_end,
    free_port,
    job,
    steps_resumed_from,
    torchrun_words,
    train_words,
    wait_for_checkpoints,
)
from trainer.checkpoint import Checkpoints
from trainer.stop import EXIT_STOPPED
from trainer.stored_state import StoredState

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LAST = 120


def after_some_saves():
    """How many checkpoints to wait for before killing; printed when a test fails."""
    number = random.SystemRandom().randint(2, 6)
    print(f"killed after {number} checkpoints")
    return number


def newest_step(folder):
    """Step of the newest checkpoint, every file of which is sound."""
    newest = Checkpoints(folder / "checkpoints").newest()
    StoredState(newest).verify()
    return int(newest.name[5:])


def resume(data, folder, workspace):
    with job(train_words("killed", data, folder, "--ranks", 2, "--resume"), workspace) as running:
        assert running.wait() == 0, running.said


def test_killed_rank_is_named_and_the_run_goes_on_bit_for_bit(data, whole_long, tmp_path):
    folder = tmp_path / "run"
    with job(train_words("killed", data, folder, "--ranks", 2), tmp_path) as running:
        wait_for_checkpoints(folder, after_some_saves(), running)
        running.ranks()[1].kill()
        assert running.wait() == 1
        assert "rank 1 was killed (SIGKILL): by the system when memory runs out" in running.said
        assert "--resume" in running.said
        assert "Traceback" not in running.said
    step = newest_step(folder)
    assert step < LAST
    resume(data, folder, tmp_path)
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole_long, LAST)


def test_killed_launcher_takes_its_ranks_along_and_they_save(data, whole_long, tmp_path):
    folder = tmp_path / "run"
    with job(train_words("killed", data, folder, "--ranks", 2), tmp_path) as running:
        before = wait_for_checkpoints(folder, after_some_saves(), running)
        ranks = list(running.ranks().values())
        assert len(ranks) == 2
        running.process.kill()
        assert psutil.wait_procs(ranks, timeout=60)[1] == []
    step = newest_step(folder)
    assert int(before.name[5:]) <= step < LAST
    assert not (folder / "result.json").exists()
    resume(data, folder, tmp_path)
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole_long, LAST)


def test_torchrun_starts_ranks_again_after_one_was_killed(data, whole_long, tmp_path):
    folder = tmp_path / "run"
    options = ("--standalone", "--nproc-per-node", 2, "--max-restarts", 2)
    with job(torchrun_words("killed", data, folder, *options), tmp_path) as running:
        wait_for_checkpoints(folder, after_some_saves(), running)
        running.ranks()[0].kill()
        assert running.wait() == 0, running.said
    (step,) = steps_resumed_from(folder)
    assert 0 < step < LAST
    assert_same_end(folder, whole_long, LAST)


def test_killed_agent_leaves_no_rank_that_goes_on_writing(data, whole_long, tmp_path):
    folder = tmp_path / "run"
    options = ("--standalone", "--nproc-per-node", 2)
    with job(torchrun_words("killed", data, folder, *options), tmp_path) as running:
        wait_for_checkpoints(folder, after_some_saves(), running)
        ranks = list(running.ranks().values())
        assert len(ranks) == 2
        running.process.kill()
        assert psutil.wait_procs(ranks, timeout=60)[1] == []
    step = newest_step(folder)
    assert step < LAST
    assert "SIGTERM: finishing the step, then saving" in (folder / "log" / "rank_0.log").read_text()
    resume(data, folder, tmp_path)
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole_long, LAST)


def test_terminated_run_saves_says_how_to_go_on_and_does(data, whole_long, tmp_path):
    folder = tmp_path / "run"
    with job(train_words("killed", data, folder, "--ranks", 2), tmp_path) as running:
        wait_for_checkpoints(folder, after_some_saves(), running)
        running.process.terminate()
        assert running.wait() == EXIT_STOPPED
        assert f"told to stop by SIGTERM; to go on: --folder {folder} --resume" in running.said
    log = (folder / "log" / "rank_0.log").read_text()
    step = newest_step(folder)
    assert "finishing the step, then saving" in log
    assert step < LAST
    resume(data, folder, tmp_path)
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole_long, LAST)


def test_rendezvous_that_is_lost_and_comes_back(data, whole_long, tmp_path):
    """The node that holds the rendezvous is lost, so the other ends too; both are started again."""
    folder = tmp_path / "run"
    port = free_port()
    options = [
        *("--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 1, "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "lost", "--local-addr", "localhost"),
        *("--rdzv-conf", "timeout=60,read_timeout=20"),
    ]
    # Two nodes would be planned in another way than the one that trained without interruption.
    plan = ("--plan", whole_long / "plan.json")
    words = [*torchrun_words("killed", data, folder, *options), *plan]
    with job(words, tmp_path) as first, job(words, tmp_path) as second:
        wait_for_checkpoints(folder, after_some_saves(), first)
        holder, other = (first, second) if _listens(first.process.pid, port) else (second, first)
        for process in holder.everything():
            process.kill()
        assert other.wait(150) != 0
        assert not other.ranks()
    step = newest_step(folder)
    assert step < LAST
    with job(words, tmp_path) as first, job(words, tmp_path) as second:
        assert first.wait() == 0, first.said
        assert second.wait() == 0, second.said
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole_long, LAST)
    assert json.loads((folder / "result.json").read_text())["num_ranks"] == 2


def _listens(pid, port):
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process(pid).net_connections()
    )
