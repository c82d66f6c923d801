"""Rows of IDs beside tokens belong to the items that they were trained for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs import datasets, migration
from tests.unit.trainer.stored_checkpoint import whole, write_checkpoint
from trainer.data.dataset import Dataset
from trainer.data.schema import GlobalTimeSplit
from trainer.residual_ids import RESIDUAL_IDS, check_residual_ids, digest_of, residual_ids
from trainer.run_inputs import item_features, load_tokens
from trainer.state_parts import Box, Part
from trainer.stored_state import StoredState
from trainer.warm_start import WarmStart, _Choice


@pytest.fixture(scope="module")
def experiment(smoke):
    made = migration.with_residual_ids(datasets.smoke(), 0.25)
    return replace(made, data=smoke.data, tokenizer=smoke.tokenizer)


def ids_of(experiment, train):
    experiment = replace(
        experiment, data=replace(experiment.data, split=GlobalTimeSplit(train=train, valid=0.1))
    )
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    features = item_features(experiment, dataset, load_tokens(experiment))
    return residual_ids(experiment, dataset, features)


def test_they_are_the_items_with_most_impressions_of_the_training_part(experiment, smoke):
    ids = ids_of(experiment, 0.8)
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    train = dataset.split(GlobalTimeSplit(train=0.8, valid=0.1)).train
    shown, counts = np.unique(dataset.read(train, ["item_id"])["item_id"], return_counts=True)
    rows = experiment.item_tables["item_id"].rows
    assert len(ids) == rows
    fewest = np.sort(counts)[-rows]
    assert set(shown[counts > fewest]) <= set(ids) <= set(shown[counts >= fewest])
    features = item_features(smoke, dataset, load_tokens(smoke))
    assert residual_ids(smoke, dataset, features) is None


def test_another_training_part_is_refused_and_not_taken_over(experiment, tmp_path):
    before, after = ids_of(experiment, 0.6), ids_of(experiment, 0.8)
    assert set(before) != set(after)
    table = experiment.item_tables["item_id"]
    shape = (table.rows, table.dim)
    name = f"table/{table.name}/weight"
    path = write_checkpoint(
        tmp_path / "step_0000000001",
        {name: whole(torch.ones(shape))},
        state={RESIDUAL_IDS: digest_of(before)},
    )
    check_residual_ids(before, StoredState(path))
    with pytest.raises(ValueError, match="another training part than the log has now"):
        check_residual_ids(after, StoredState(path))
    part = Part(name, shape, Box.whole(shape), torch.zeros(shape))
    for ids, outcome in ((before, "taken"), (after, "new")):
        chosen = _Choice(WarmStart(checkpoint=path), experiment, None, StoredState(path), 1, ids)
        found = chosen.outcome(part)
        assert found.outcome == outcome
        assert ("another training part" in found.why) == (outcome == "new")
