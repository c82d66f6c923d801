"""Schemas and parquet bytes at random: read as they say, or refused by our own words."""

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.faults import tiny_experiment
from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal, tree
from tests.fuzz.strategies import damaged
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.schema import (
    Bag,
    Categorical,
    DatasetSchema,
    Dense,
    GlobalTimeSplit,
    ItemSequence,
    RowRange,
)
from trainer.data.synthetic_config import schema as schema_of

NAMES = st.sampled_from(
    [
        *("user_id", "item_id", "timestamp", "session_id", "query_id", "click", "play", "region"),
        *("created_at", "history", "embedding", "no_such_column", "", "a\nb", "<script>"),
    ]
)
SOURCES = st.sampled_from(["interactions", "items", "users"])
CARDINALITIES = st.one_of(st.integers(-1, 5), st.sampled_from([50, 100, 1000, 10**7]))
ENTITIES = st.sampled_from(["user", "item", "request", "cross"])


@st.composite
def schemas(draw):
    """Arguments of a schema: the right one with some changes."""
    right = schema_of(tiny_experiment.LOG)
    values = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    features = list(values["features"])
    for _ in range(draw(st.integers(0, 3))):
        name, entity, source = draw(NAMES), draw(ENTITIES), draw(SOURCES)
        if draw(st.booleans()):
            transform = draw(st.sampled_from(["none", "log1p"]))
            features.append(Dense(name=name, entity=entity, source=source, transform=transform))
        else:
            kind = draw(st.sampled_from([Categorical, Bag]))
            cardinality, hashed = draw(CARDINALITIES), draw(st.booleans())
            features.append(
                kind(
                    name=name,
                    entity=entity,
                    cardinality=cardinality,
                    source=source,
                    hashed=hashed,
                )
            )
    for _ in range(draw(st.integers(0, 2))):
        features.pop(draw(st.integers(0, len(features) - 1)))
    values["features"] = tuple(features)
    for role in ("user", "item", "time", "user_group", "query_group", "created_at"):
        if draw(st.integers(0, 11)) == 11:
            values[role] = draw(NAMES)
    if draw(st.integers(0, 3)) == 3:
        values["labels"] = tuple(draw(st.lists(NAMES, max_size=3)))
    if draw(st.integers(0, 3)) == 3:
        lengths = st.sampled_from([-1, 0, 1, 50])
        sequences = st.builds(ItemSequence, name=NAMES, max_length=lengths)
        values["histories"] = tuple(draw(st.lists(sequences, max_size=2)))
    return values


@numbers_of_inputs(60, 1200)
def test_schemas(number, folder):
    before = tree(folder)
    outcomes = set()

    def check(values):
        found = {}

        def read():
            schema = DatasetSchema(**values)
            dataset = Dataset.open(folder, schema)
            dataset.validate()
            found["block"] = dataset.block(RowRange(0, dataset.num_rows))
            found["schema"] = schema

        said = refusal(read)
        outcomes.add(said is None)
        if said is None:
            assert_keeps(found["schema"], found["block"])

    fuzz(number, schemas(), check)
    assert outcomes == {True, False}
    assert tree(folder) == before


def assert_keeps(schema, block):
    """What was read keeps the promises of the schema."""
    assert np.isin(block.labels, (0, 1)).all()
    assert block.labels.shape[1] == len(schema.labels)


@numbers_of_inputs(60, 1500)
@pytest.mark.parametrize("name", ["interactions/part-00000.parquet", "items.parquet"])
def test_parquet_bytes(number, name, folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    data = (copy / name).read_bytes()
    schema = schema_of(tiny_experiment.LOG)
    before = tree(copy)

    def check(changed_data):
        (copy / name).write_bytes(changed_data)

        def read():
            dataset = Dataset.open(copy, schema)
            dataset.validate()
            dataset.split(GlobalTimeSplit())
            block = dataset.block(RowRange(0, dataset.num_rows))
            assert_keeps(schema, block)

        refusal(read, DataError)

    fuzz(number // 2, damaged(data), check)
    assert tree(copy) == before
