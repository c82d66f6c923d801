"""Preflight, stop signals and watchdog on two ranks."""

import json
import os
import time
from dataclasses import replace

import pytest

from tests.integration import guard_workers
from tests.integration.rank_processes import RanksFailedError, run_ranks
from trainer.watchdog import EXIT_HUNG


def test_preflight_of_two_ranks_finds_all_well(tmp_path):
    run_ranks(guard_workers.fly, 2, tmp_path)
    for rank in range(2):
        found = (tmp_path / f"rank_{rank}.txt").read_text()
        assert found.startswith("preflight: 2 ranks on 1 hosts")
        assert "all_reduce" in found
        assert "all_to_all" in found


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (guard_workers.hang_in_a_probe, r"rank 1 \(host \S+, local rank 1\)"),
        (guard_workers.stay_away, r"rank 1 \(host \S+, local rank 1\) did not start; 1 of 2"),
        (guard_workers.lie, r"local rank 1\): RuntimeError: sum is 2, expected 3"),
    ],
)
def test_preflight_names_the_rank_that_does_not_answer(worker, message):
    start = time.monotonic()
    with pytest.raises(RanksFailedError, match=message) as failed:
        run_ranks(worker, 2, 4.0, timeout=60)
    assert 0 in failed.value.errors
    assert time.monotonic() - start < 40


@pytest.fixture(scope="module")
def in_small_batches(smoke):
    """Evaluated in several batches."""
    return replace(smoke, train=replace(smoke.train, eval_batch_size=256))


@pytest.fixture(scope="module")
def stopped(in_small_batches, tmp_path_factory):
    """Runs: trained whole, and told to stop at step 13 by a signal to rank 1 alone."""
    folder = tmp_path_factory.mktemp("signal")
    run_ranks(guard_workers.train_and_signal, 2, in_small_batches, folder, 13, 1)
    return folder


def test_ranks_agree_on_the_step_and_save(stopped):
    told = [(stopped / f"message_{rank}.txt").read_text() for rank in range(2)]
    assert told[0].startswith("told to stop (another rank): saved after step 1")
    assert told[1].startswith("told to stop (SIGTERM): saved after step 1")
    steps = {message.rsplit(" ", 1)[1] for message in told}
    assert len(steps) == 1
    step = int(steps.pop())
    assert 13 <= step <= 16  # batches that were in flight are trained on
    saved = sorted(os.listdir(stopped / "stopped" / "checkpoints"))
    assert f"step_{step:010d}" in saved


@pytest.mark.faults
def test_what_was_stopped_ends_like_what_was_not(stopped):
    predictions = [
        (stopped / run / "predictions_test.parquet").read_bytes() for run in ("whole", "stopped")
    ]
    assert predictions[0] == predictions[1]


@pytest.mark.faults
def test_told_while_scoring_a_run_saves_at_once_and_scores_when_it_goes_on(
    in_small_batches, stopped
):
    """A long evaluation would not end before the time that the signal leaves."""
    run_ranks(guard_workers.be_told_while_scoring, 2, in_small_batches, stopped)
    for rank, who in enumerate(("another rank", "SIGTERM")):
        first, last = json.loads((stopped / f"said_{rank}.json").read_text())
        assert first == f"told to stop ({who}) while it scored: saved after step 10"
        assert last == f"told to stop ({who}) while it scored"
    told, whole = stopped / "told_while_scoring", stopped / "whole"
    name = "predictions_test.parquet"
    assert (told / name).read_bytes() == (whole / name).read_bytes()
    evaluated = [
        [
            {key: value for key, value in json.loads(line).items() if key != "time"}
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if "valid/click_auc" in line
        ]
        for run in (told, whole)
    ]
    assert evaluated[0] == evaluated[1]
    assert [line["step"] for line in evaluated[0]] == [10, 20, 22]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (guard_workers.train_and_hang, "local rank 1) hangs in tests/integration/guard_workers.py"),
        (guard_workers.train_and_freeze, "local rank 1) does not answer"),
    ],
)
def test_watchdog_names_the_rank_and_leaves_the_stacks(smoke, tmp_path, worker, message):
    experiment = replace(smoke, train=replace(smoke.train, checkpoint_every=None))
    start = time.monotonic()
    with pytest.raises(RanksFailedError, match=f"exit code {EXIT_HUNG}"):
        run_ranks(worker, 2, experiment, tmp_path / "run", 6, 1)
    assert time.monotonic() - start < 60
    log = (tmp_path / "run" / "log" / "rank_0.log").read_text()
    assert message in log
    assert "rank 1 (host" in log
    assert "Current thread" in log
    assert "most recent call first" in log


@pytest.mark.faults
@pytest.mark.slow
def test_watchdog_tells_when_the_rank_that_holds_the_store_is_frozen(smoke, tmp_path):
    experiment = replace(smoke, train=replace(smoke.train, checkpoint_every=None))
    with pytest.raises(RanksFailedError, match=f"exit code {EXIT_HUNG}"):
        run_ranks(guard_workers.train_and_freeze, 2, experiment, tmp_path / "run", 6, 0)
    log = (tmp_path / "run" / "log" / "rank_1.log").read_text()
    assert "the process or host of rank 0, which holds it, is stopped or lost" in log
