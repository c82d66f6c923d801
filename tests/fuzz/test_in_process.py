"""At random: schemas, parquet bytes, configs, plan files, manifests. 6,900 inputs with -m faults.

Each is accepted, and then means what it says, or is refused by our own words.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from datetime import timedelta

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.fast_planner import plan_tables
from sharding.hardware import Cluster, cpu
from sharding.plan_io import (
    PlanMismatchError,
    plan_file,
    plan_from_json,
    plan_to_json,
    read_given_plan,
)
from sharding.tables import TableSpec
from tests.faults import tiny_experiment
from tests.fuzz.refusals import refusal, tree
from tests.fuzz.strategies import JUNK, changed, damaged
from tests.unit.trainer.stored_checkpoint import whole as one_box
from tests.unit.trainer.stored_checkpoint import write_checkpoint, write_manifest
from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans
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
from trainer.stored_state import CheckpointError, StoredState

HANGS = timedelta(seconds=20)
FULL = [pytest.mark.faults, pytest.mark.slow]


def numbers_of_inputs(few, many):
    """A few in every run of the tests, many with `-m faults`."""
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=FULL)])


def fuzz(number, strategy, check):
    """Call `check` with so many inputs; one that takes long fails."""
    seen = 0

    @settings(
        max_examples=number,
        deadline=HANGS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        nonlocal seen
        seen += 1
        check(value)

    run()
    assert seen >= number * 0.8  # a small strategy is exhausted before


# Schemas


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


# Parquet bytes


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


# Configs


FIELDS = {
    "train": [
        *("batch_size", "num_epochs", "max_steps", "gradient_accumulation", "seed", "log_every"),
        *("eval_every", "checkpoint_every", "keep_checkpoints", "keep_best", "eval_batch_size"),
        "checkpoint_memory_bytes",
    ],
    "optim": [
        *("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "warmup_steps", "decay"),
        *("final_fraction", "max_dense_norm", "max_sparse_gradient"),
    ],
    "data.split": ["train", "valid"],
    "tables.0": [
        *("name", "rows", "dim", "features", "role", "pooling", "dtype", "optimizer"),
        *("sharding_types", "kernels", "cache_load_factor", "pooling_factors"),
    ],
}
VALUES = st.one_of(
    st.none(),
    st.integers(-3, 300),
    st.sampled_from([0.0, -1.0, 0.5, 1e-3, math.nan, math.inf]),
    st.sampled_from(
        ["sum", "mean", "none", "fp32", "int8", "adagrad", "linear", "valid/click_auc"]
    ),
    st.lists(st.sampled_from(["row_wise", "grid_shard", "user_id", "fused", "x"]), max_size=2).map(
        tuple
    ),
)
KINDS = {
    "keep_best": str | None,
    "decay": str,
    **dict.fromkeys(["name", "role", "pooling", "dtype", "optimizer"], str),
    **dict.fromkeys(["features", "sharding_types", "kernels", "pooling_factors"], tuple | None),
    **dict.fromkeys(
        [
            *("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "final_fraction"),
            *("max_dense_norm", "max_sparse_gradient", "cache_load_factor"),
        ],
        float | None,
    ),
}


@st.composite
def changes_of_configs(draw):
    """(part, field, value) of up to three fields, of types that the command line lets through."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(FIELDS)))
        field = draw(st.sampled_from(FIELDS[part]))
        kind = float if part == "data.split" else KINDS.get(field, int | None)
        value = draw(VALUES.filter(lambda v, kind=kind: isinstance(v, kind)))
        required = (*FIELDS["data.split"], "batch_size", "num_epochs", "seed", "log_every", "rows")
        required += ("keep_checkpoints", "eval_batch_size", "gradient_accumulation", "dim")
        required += ("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "warmup_steps")
        required += ("features", "final_fraction")
        if value is None and field in required:
            continue
        if field == "features":
            value = tuple(map(str, value))
        if field == "pooling_factors" and value is not None:
            value = tuple(float(len(word)) for word in value)
        found.append((part, field, value))
    return found


def replaced(experiment, part, field, value):
    """The experiment with one field changed."""
    if part == "tables.0":
        first, *others = experiment.tables
        return dataclasses.replace(
            experiment, tables=(dataclasses.replace(first, **{field: value}), *others)
        )
    if part == "data.split":
        split = dataclasses.replace(experiment.data.split, **{field: value})
        return dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, split=split)
        )
    own = dataclasses.replace(getattr(experiment, part), **{field: value})
    return dataclasses.replace(experiment, **{part: own})


@numbers_of_inputs(60, 1200)
def test_configs(number):
    outcomes = set()
    right = tiny_experiment.tiny()

    def check(changes):
        def build():
            experiment = right
            for part, field, value in changes:
                experiment = replaced(experiment, part, field, value)
            experiment.check_ranks(2)
            # JSON and back: a config that is no JSON could not be written down.
            text = json.dumps(experiment.to_dict(), allow_nan=False)
            assert json.loads(text)["train"]["batch_size"] == experiment.train.batch_size
            assert len(experiment.fingerprint) == 64
            for step in (0, 5, 11):
                assert 0 <= experiment.optim.factor(step, 12) <= 1

        outcomes.add(refusal(build) is None)

    fuzz(number, changes_of_configs(), check)
    assert outcomes == {True, False}


# Plan files


TABLES = tuple(
    TableSpec(
        name=name,
        rows=rows,
        dim=dim,
        features=(name,),
        role="item_id" if pooling == "none" else "side",
        pooling=pooling,
        sharding_types=kinds,
    )
    for name, rows, dim, pooling, kinds in (
        ("a", 1000, 64, "sum", ("table_wise",)),
        ("b", 101, 64, "sum", ("column_wise",)),
        ("c", 77, 16, "none", ("row_wise",)),
        ("d", 53, 8, "sum", ("row_wise",)),
        ("e", 40, 8, "sum", ("data_parallel",)),
    )
)


@numbers_of_inputs(100, 1200)
def test_plan_files(number, tmp_path):
    cluster = Cluster(machine=dataclasses.replace(cpu(), ranks_per_node=2), nodes=1)
    plan = plan_tables(TABLES, cluster.topology(), batch_size=8).to_sharding_plan()
    documents = [plan_file(plan, TABLES, 2), plan_to_json(plan)]
    path = tmp_path / "plan.json"
    outcomes = set()

    def check(document):
        path.write_text(json.dumps(document))
        found = []

        def read():
            values = read_given_plan(path, 2)
            found.append(
                plan_from_json(values, TABLES, num_ranks=2, ranks_per_node=2, device="cpu")
            )

        said = refusal(read, PlanMismatchError)
        outcomes.add(said is None)
        if said is None:
            assert_covers(found[0])

    for document in documents:
        document = json.loads(json.dumps(document))
        check(document)
        fuzz(number // 2, changed(document), check)
    assert outcomes == {True, False}
    assert list(tmp_path.iterdir()) == [path]


def assert_covers(plan):
    """Every weight of every table has one place, on the rank that ids are sent to."""
    by_name = {table.name: table for table in TABLES}
    seen = set()
    for module in plan.plan.values():
        for name, parameter in module.items():
            seen.add(name)
            table = by_name[name]
            if parameter.sharding_type == "data_parallel":
                assert parameter.sharding_spec is None
                continue
            cells = torch.zeros(table.rows, table.dim)
            for place, shard in enumerate(parameter.sharding_spec.shards):
                (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
                cells[row : row + rows, column : column + columns] += 1
                assert shard.placement.rank() == parameter.ranks[place] in (0, 1)
                if parameter.sharding_type == "row_wise":
                    assert shard.placement.rank() == place
                    assert row == place * math.ceil(table.rows / 2)
            assert (cells == 1).all()
    assert seen == set(by_name)


# Manifests


@pytest.fixture
def checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    boxes = [(0, (0, 0), (3, 4), weight[:3]), (1, (3, 0), (3, 4), weight[3:])]
    tensors = {"table/a/weight": ((6, 4), False, boxes), "network/b/value": one_box(torch.ones(2))}
    return write_checkpoint(tmp_path / "step_0000000007", tensors)


@numbers_of_inputs(60, 900)
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "state.json"])
def test_manifests_of_checkpoints(number, name, checkpoint):
    document = json.loads((checkpoint / name).read_text())
    right = StoredState(checkpoint).whole("table/a/weight")
    before = tree(checkpoint)

    def check(changed_document):
        (checkpoint / name).write_text(json.dumps(changed_document))
        if name != "manifest.json":
            write_manifest(checkpoint)  # so that it is read at all

        def read():
            stored = StoredState(checkpoint)
            stored.verify()
            assert stored.state["step"] >= 0
            for tensor, entry in stored.tensors.items():
                found = stored.whole(tensor)
                assert tuple(found.shape) == entry.shape
                if name == "manifest.json" and tensor == "table/a/weight":
                    assert torch.equal(found, right)

        refusal(read, CheckpointError)

    fuzz(number // 3, changed(document), check)
    assert tree(checkpoint) == before


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    noise = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    tokens = fit_tokens(
        np.arange(30),
        noise,
        tokenizer=RQKMeans(num_levels=2, num_codes=4),
        mem=MemTokens(num_merges=5),
    )
    tokens.save(folder)
    return folder


@numbers_of_inputs(40, 400)
def test_manifests_of_tokens(number, artifact, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(artifact, copy)
    right = TokenArtifact.load(copy)
    document = json.loads((copy / "manifest.json").read_text())
    before = tree(copy)

    def check(changed_document):
        (copy / "manifest.json").write_text(json.dumps(changed_document))

        def read():
            found = TokenArtifact.load(copy)
            assert found.fingerprint == right.fingerprint
            assert (found.codes == right.codes).all()
            assert found.tokenizer is not None

        refusal(read, TokenArtifactError)

    fuzz(number, st.one_of(changed(document), JUNK), check)
    assert tree(copy) == before


@numbers_of_inputs(40, 500)
@pytest.mark.parametrize("name", ["tokens.parquet", "merges.parquet", "codebooks.safetensors"])
def test_bytes_of_tokens(number, name, artifact, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(artifact, copy)
    right = TokenArtifact.load(copy)
    data = (copy / name).read_bytes()
    before = tree(copy)

    def check(changed_data):
        (copy / name).write_bytes(changed_data)

        def read():
            assert TokenArtifact.load(copy).fingerprint == right.fingerprint

        refusal(read, TokenArtifactError)

    fuzz(number // 3, damaged(data), check)
    assert tree(copy) == before
    assert hashlib.sha256(data).digest() == hashlib.sha256((artifact / name).read_bytes()).digest()
