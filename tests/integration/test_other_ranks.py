import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.integration.other_ranks_workers import (
    score_newest_and_best,
    train_until_the_disk_is_full,
    train_whole,
)
from tests.integration.rank_processes import RanksFailedError, run_ranks
from tests.integration.workers import resume
from trainer.data.dataset import Dataset
from trainer.metrics import auc
from trainer.parallelize import ShardingConfig
from trainer.predictions import Predictions
from trainer.stored_state import StoredState


@pytest.fixture(scope="module")
def experiment(smoke):
    """Saved in one rhythm and evaluated in another; the best checkpoint is kept."""
    return replace(
        smoke,
        name="other_ranks",
        train=replace(
            smoke.train,
            checkpoint_every=10,
            eval_every=4,
            keep_checkpoints=2,
            keep_best="valid/click_auc",
        ),
    )


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """A run trained on two ranks."""
    folder = tmp_path_factory.mktemp("other_ranks") / "run"
    run_ranks(train_whole, 2, experiment, folder)
    return folder


def respread(experiment, sharding_type, fsdp_min_parameters=10**9):
    tables = tuple(
        table
        if table.pooling == "none" and sharding_type == "data_parallel"
        else replace(table, sharding_types=(sharding_type,))
        for table in experiment.tables
    )
    sharding = ShardingConfig(fsdp_min_parameters=fsdp_min_parameters, min_partition=4)
    return replace(experiment, tables=tables, sharding=sharding)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def aucs(run):
    """Validation AUC by step."""
    found = lines(run)
    return {one["step"]: one["valid/click_auc"] for one in found if "valid/click_auc" in one}


def best_step(run):
    by_step = aucs(run)
    return max(by_step, key=lambda step: (by_step[step], -step))


def test_newest_and_best_checkpoints_are_kept(run):
    """Whatever the rhythm of checkpoints: each evaluation is followed by one."""
    assert set(aucs(run)) == {4, 8, 12, 16, 20, 22}
    kept = {int(path.name[5:]): path for path in (run / "checkpoints").iterdir()}
    assert set(kept) == {best_step(run), 20, 22}
    for step, path in kept.items():
        assert StoredState(path).state["validation"]["valid/click_auc"] == aucs(run)[step]


def test_a_checkpoint_knows_no_metrics_of_other_steps(experiment, tmp_path):
    train = replace(experiment.train, keep_best=None, keep_checkpoints=10, max_steps=11)
    run_ranks(train_whole, 1, replace(experiment, train=train), tmp_path / "run")
    kept = {path.name: path for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert set(kept) == {"step_0000000010", "step_0000000011"}
    assert set(aucs(tmp_path / "run")) == {4, 8, 11}
    assert StoredState(kept["step_0000000010"]).state["validation"] == {}
    assert StoredState(kept["step_0000000011"]).state["validation"]


def test_each_save_tells_what_it_costs(run):
    saves = [one for one in lines(run) if "checkpoint/bytes" in one]
    assert [one["step"] for one in saves] == [4, 8, 10, 12, 16, 20, 22]
    for one in saves:
        size = sum(
            path.stat().st_size
            for path in (run / "checkpoints" / "step_0000000022").glob("*.safetensors")
        )
        assert 0.7 * size < one["checkpoint/bytes"] < size  # headers are all that is added
        assert 0 < one["checkpoint/seconds_stalled"] < 60


@pytest.mark.faults
@pytest.mark.parametrize(
    ("world_size", "sharding_type", "fsdp_min_parameters"),
    [(1, "table_wise", 1), (2, "column_wise", 10**9), (4, "row_wise", 1)],
)
def test_scores_are_the_same_on_other_ranks_and_plans(
    run, experiment, world_size, sharding_type, fsdp_min_parameters, tmp_path
):
    other = respread(experiment, sharding_type, fsdp_min_parameters)
    run_ranks(score_newest_and_best, world_size, other, run, tmp_path)
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    splits = dataset.split(experiment.data.split)
    rows = splits.test
    labels = dataset.read(rows, dataset.schema.labels)
    before = Predictions.load(run / "predictions_test.parquet").aligned(rows)
    after = Predictions.load(tmp_path / "test.parquet").aligned(rows)
    for task, scores in before.items():
        truth = labels[task].astype(np.float64)
        np.testing.assert_allclose(after[task], scores, atol=1e-6)
        assert abs(auc(truth, after[task]) - auc(truth, scores)) <= 1e-6
    best = Predictions.load(tmp_path / "valid.parquet").aligned(splits.valid)
    truth = dataset.read(splits.valid, ["click"])["click"].astype(np.float64)
    assert abs(auc(truth, best["click"]) - aucs(run)[best_step(run)]) <= 1e-6


@pytest.mark.faults
@pytest.mark.parametrize(
    ("world_size", "sharding_type"),
    [(1, "data_parallel"), pytest.param(4, "row_wise", marks=pytest.mark.slow)],
)
def test_training_goes_on_with_other_ranks_and_plans(
    run, experiment, world_size, sharding_type, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step_0000000022")
    (folder / "result.json").unlink()
    other = respread(experiment, sharding_type)
    run_ranks(resume, world_size, other, folder)
    trained = [one["train/loss"] for one in lines(folder) if "train/loss" in one]
    whole = [one["train/loss"] for one in lines(run) if "train/loss" in one]
    assert len(trained) == len(whole) == 8
    assert trained[:6] == whole[:6]  # up to step 18, before the checkpoint
    assert all(math.isfinite(loss) for loss in trained)
    assert json.loads((folder / "result.json").read_text())["num_ranks"] == world_size
    log = (folder / "log" / "rank_0.log").read_text()
    assert "rows of it are seen again" in log
    assert "seeded anew" in log
    size = sum(
        path.stat().st_size
        for path in (run / "checkpoints" / "step_0000000020").iterdir()
        if path.name != "manifest.json"
    )
    assert re.search(rf"step_0000000020: {size} bytes checked and put in force in \d", log)


@pytest.mark.faults
def test_a_plan_for_other_ranks_is_replaced_and_one_that_is_given_now_is_not(
    run, experiment, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    plan = json.loads((run / "plan.json").read_text())
    (folder / "given_plan.json").write_text(json.dumps({"num_ranks": 2, "modules": plan}))
    run_ranks(resume, 1, experiment, folder)
    log = (folder / "log" / "rank_0.log").read_text()
    assert "started with a plan for 2 ranks and goes on with 1: planned anew" in log
    given = tmp_path / "plan.json"
    given.write_text(json.dumps({"num_ranks": 2, "modules": plan}))
    with pytest.raises(RanksFailedError, match="the plan is for 2 ranks, this run has 1"):
        run_ranks(train_whole, 1, experiment, tmp_path / "new", given)


@pytest.mark.faults
def test_full_disk_ends_the_run_at_the_next_step_and_keeps_the_checkpoint_before(
    experiment, tmp_path
):
    folder = tmp_path / "run"
    every_fifth = replace(experiment.train, checkpoint_every=5, eval_every=5)
    with pytest.raises(
        RanksFailedError, match=r"step_0000000010: was not saved \(rank 0: No space left"
    ):
        run_ranks(train_until_the_disk_is_full, 1, replace(experiment, train=every_fifth), folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_0000000005"]
    assert max(one["step"] for one in lines(folder)) <= 15
    assert not (folder / "result.json").exists()
