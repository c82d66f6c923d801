import itertools
import json
import os
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.integration.rank_processes import RanksFailedError, run_ranks
from tests.integration.workers import resume, train_and_die, train_whole_and_stopped
from tokenization.artifact import TokenArtifact
from tokenization.pipeline import fit_tokens
from trainer.parallelize import ShardingConfig


def random_step():
    """After the first checkpoint, before the last step; the seed is printed on failure."""
    step = random.SystemRandom().randint(6, 22)
    print(f"stopped at step {step}")
    return step


@pytest.fixture(scope="module")
def table_wise(smoke):
    """A rank without shards of some table: its fused optimizer has no state there."""
    tables = tuple(replace(table, sharding_types=("table_wise",)) for table in smoke.tables)
    return replace(smoke, name="table_wise", tables=tables)


@pytest.fixture(scope="module")
def data_parallel(smoke):
    """Pooled tables that optimizers outside the kernels train, in turn by each kind."""
    kinds = itertools.cycle(("rowwise_adagrad", "adagrad", "sgd"))
    tables = tuple(
        table
        if table.pooling == "none"
        else replace(table, sharding_types=("data_parallel",), optimizer=next(kinds))
        for table in smoke.tables
    )
    return replace(smoke, name="data_parallel", tables=tables)


@pytest.fixture(scope="module")
def on_two_ranks(smoke, table_wise, data_parallel, tmp_path_factory):
    """Folder of runs trained as a whole and stopped, by name of the experiment."""
    folder = tmp_path_factory.mktemp("two")
    fsdp = replace(
        smoke,
        name="fsdp",
        sharding=ShardingConfig(fsdp_min_parameters=1),
        train=replace(smoke.train, activation_checkpointing=True, gradient_accumulation=2),
    )
    run_ranks(
        train_whole_and_stopped,
        2,
        [(experiment, random_step()) for experiment in (smoke, table_wise, data_parallel, fsdp)],
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def on_one_rank(smoke, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_ranks(train_whole_and_stopped, 1, [(smoke, random_step())], folder)
    return folder


def tensors(run, step=22):
    """(name, offsets) -> box, of every tensor of a checkpoint, read with safetensors alone."""
    path = run / "checkpoints" / f"step_{step:010d}"
    index = json.loads((path / "index.json").read_text())
    files = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    return {
        (name, tuple(chunk["offsets"])): files[chunk["file"]][chunk["key"]]
        for name, entry in index.items()
        for chunk in entry["chunks"]
    }


def assert_bit_equal(one, other):
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    return {name for name, _ in first}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_parts_of_the_loss_are_logged(on_two_ranks):
    trained = [line for line in lines(on_two_ranks / "fsdp" / "whole") if "train/loss" in line]
    for line in trained:
        assert line["train/discriminative"] == pytest.approx(line["train/loss"], abs=1e-6)


def assert_each_step_once(run):
    trained = [line["step"] for line in lines(run) if "train/loss" in line]
    assert trained == [3, 6, 9, 12, 15, 18, 21, 22]
    evaluated = [line["step"] for line in lines(run) if "valid/click_auc" in line]
    assert evaluated == [10, 20, 22]


@pytest.mark.parametrize("name", ["trm_rankmixer", "table_wise", "data_parallel", "fsdp"])
def test_two_ranks_resume_bit_for_bit(on_two_ranks, name):
    runs = on_two_ranks / name
    saved = assert_bit_equal(runs / "whole", runs / "stopped")
    for part in ("table/.*/weight", "table/.*/state/sum", "network/.*/value", "network/.*/state/"):
        assert any(re.fullmatch(f"{part}.*", key) for key in saved), f"no {part} in {saved}"
    assert {"random/rank_0/cpu", "random/rank_1/cpu"} <= saved
    plan = json.loads((runs / "whole" / "plan.json").read_text())
    kinds = {table["sharding_type"] for module in plan.values() for table in module.values()}
    assert ("data_parallel" in kinds) or name != "data_parallel"
    assert kinds == {"table_wise"} or name != "table_wise"
    assert_each_step_once(runs / "whole")
    assert_each_step_once(runs / "stopped")
    predictions = [
        (runs / run / "predictions_test.parquet").read_bytes() for run in ("whole", "stopped")
    ]
    assert predictions[0] == predictions[1]


def test_training_changed_the_weights_after_the_first_checkpoint(on_two_ranks):
    run = on_two_ranks / "trm_rankmixer" / "whole"
    early, late = tensors(run, step=5), tensors(run)
    unmoved = {key[0] for key in early if torch.equal(early[key], late[key])}
    assert unmoved == {"network/dense_encoding.edges_FE/value"}


def test_one_rank_resumes_bit_for_bit(on_one_rank):
    runs = on_one_rank / "trm_rankmixer"
    assert_bit_equal(runs / "whole", runs / "stopped")
    assert_each_step_once(runs / "stopped")


@pytest.mark.faults
def test_killed_rank_resumes_bit_for_bit_and_half_a_checkpoint_is_ignored(
    smoke, on_two_ranks, tmp_path
):
    killed = tmp_path / "killed"
    with pytest.raises(RanksFailedError, match=r"rank 1: exit code -9"):
        run_ranks(train_and_die, 2, smoke, killed, random_step(), 1)
    assert not (killed / "result.json").exists()
    for name in ("step_0000000021", ".step_0000000022.unfinished"):
        half = killed / "checkpoints" / name
        half.mkdir(parents=True)
        (half / "rank_00000.safetensors").write_bytes(b"half")
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "train/lo')
    run_ranks(resume, 2, smoke, killed)
    assert_bit_equal(on_two_ranks / "trm_rankmixer" / "whole", killed)
    assert_each_step_once(killed)


def test_checkpoint_of_other_settings_is_refused(smoke, on_one_rank):
    other = replace(smoke, optim=replace(smoke.optim, sparse_lr=0.5))
    with pytest.raises(
        RanksFailedError,
        match=r"fingerprint .* this one is .*: optim\.sparse_lr was .*, is 0\.5\. .*config\.json",
    ):
        run_ranks(resume, 1, other, on_one_rank / "trm_rankmixer" / "whole")


def test_checkpoint_of_other_tokens_is_refused(smoke, on_one_rank):
    config = smoke.tokenizer
    trained_with = TokenArtifact.load(config.folder)
    noise = np.random.default_rng(0).standard_normal((trained_with.num_items, 8))
    other = fit_tokens(trained_with.item_ids, noise, tokenizer=config.tokenizer, mem=config.mem)
    try:
        other.save(config.folder)
        with pytest.raises(RanksFailedError, match="trained with tokens of vocabulary"):
            run_ranks(resume, 1, smoke, on_one_rank / "trm_rankmixer" / "whole")
    finally:
        trained_with.save(config.folder)


def test_old_checkpoints_make_room(on_two_ranks):
    found = sorted(os.listdir(on_two_ranks / "trm_rankmixer" / "whole" / "checkpoints"))
    assert found == [f"step_{step:010d}" for step in (5, 10, 15, 20, 22)]
