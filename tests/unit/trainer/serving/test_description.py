import json
from dataclasses import dataclass, replace

import pytest

from configs import dlrm_id, migration, rankmixer_id, towers, trm_joint, trm_rankmixer
from sharding.tables import TableSpec
from trainer.data.schema import DatasetSchema
from trainer.models.ranking_network import RankingModelConfig
from trainer.serving.description import (
    ModelDescription,
    classes_of,
    describe,
    known_classes,
    restore,
    restored,
)
from trainer.serving.folder import ServingError

CLASSES = known_classes()
EXPERIMENTS = [
    trm_rankmixer.smoke(),
    trm_joint.smoke(),
    rankmixer_id.smoke(),
    dlrm_id.smoke(),
    *(row.experiment for row in migration.smoke().rows),
]


@dataclass(frozen=True, kw_only=True)
class TowerOfMine:
    """A user's own tower."""

    width: int


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_experiments_come_back_from_their_record(experiment):
    """What is read is `Experiment.to_dict`, as a checkpoint keeps it."""
    record = json.loads(json.dumps(experiment.to_dict()))
    schema = restored(record["data"]["schema"], DatasetSchema, CLASSES, at="schema")
    assert schema == experiment.data.schema
    model = restored(record["model"], RankingModelConfig, CLASSES, at="model")
    assert model == experiment.model
    assert restore(record["tables"], CLASSES, at="tables") == experiment.tables
    assert record["model"] == describe(experiment.model)


def test_every_named_tower_is_known():
    for model in towers.smoke().models:
        record = json.loads(json.dumps(describe(model.model)))
        assert restored(record, RankingModelConfig, CLASSES, at="model") == model.model


def description(experiment):
    return ModelDescription(
        name=experiment.name,
        step=3,
        rows="int4",
        precision="bf16",
        schema=experiment.data.schema,
        model=experiment.model,
        tables=experiment.tables,
        vocabulary="abc",
    )


def test_description_comes_back():
    expected = description(trm_rankmixer.smoke())
    values = json.loads(json.dumps(expected.to_dict()))
    assert ModelDescription.from_dict(values, CLASSES) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "int7"}, "rows is 'int7', expected one of fp32, fp16, int8, int4"),
        ({"precision": None}, "precision is 'None', expected one of fp32, bf16"),
        ({"tables": {}}, "tables is no list"),
        ({"tables": [{"class": "Dense", "name": "x", "entity": "user"}]}, "is a Dense, expected a"),
        ({"tables": [{"class": "TableSpec", "name": "x"}]}, "no TableSpec can be made of these"),
        ({"schema": {"class": "os.system"}}, "'os.system', which this installation does not have"),
        ({"schema": {"class": ["x"]}}, "which this installation does not have"),
        ({"model": {"class": "TowerOfMine", "width": 3}}, r"classes=\(\.\.\.\)"),
        ({"model": None}, "is a NoneType, expected a RankingModelConfig"),
    ],
)
def test_values_that_make_no_sense_are_refused(change, message):
    values = json.loads(json.dumps(description(trm_rankmixer.smoke()).to_dict()))
    with pytest.raises(ServingError, match=message):
        ModelDescription.from_dict({**values, **change}, CLASSES)


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"rows": "many"}, {"dim": 3}, {"pooling": "x"}, {"more": 1}]
)
def test_a_table_that_its_class_refuses(change):
    values = {**describe(trm_rankmixer.smoke().tables[0]), **change}
    with pytest.raises(ServingError, match="no TableSpec can be made of these values"):
        restored(values, TableSpec, CLASSES, at="tables[0]")


def test_own_classes_are_taken_where_they_are_given():
    experiment = trm_rankmixer.smoke()
    own = replace(experiment.model, item=experiment.model.item, tower=TowerOfMine(width=3))
    assert {TowerOfMine, RankingModelConfig} <= classes_of(own)
    record = json.loads(json.dumps(describe(own)))
    with pytest.raises(ServingError, match="TowerOfMine"):
        restore(record, CLASSES, at="model")
    assert restore(record, known_classes(classes_of(own)), at="model") == own
