from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.tables import TableSpec
from trainer.serving.folder import ServingError
from trainer.serving.tables import ServingTables, quantize, stored_shapes

SPECS = [
    TableSpec(name="a", rows=11, dim=12, features=("x", "y"), role="side"),
    TableSpec(name="b", rows=7, dim=8, features=("z",), role="side", pooling="mean"),
    TableSpec(name="g", rows=9, dim=8, features=("gen_token",), role="gen_token", pooling="none"),
    TableSpec(name="m", rows=5, dim=8, features=("mem_token",), role="mem_token", pooling="none"),
    TableSpec(name="i", rows=6, dim=4, features=("item_id",), role="item_id", pooling="none"),
]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {s.name: torch.randn(s.rows, s.dim, generator=generator) for s in SPECS}


def naive_rows(weight, kind):
    """What a stored row stands for, worked out row by row in float64."""
    if kind in ("fp32", "fp16"):
        return weight.to(torch.float32 if kind == "fp32" else torch.float16).double().numpy()
    steps = 255 if kind == "int8" else 15
    rows = []
    for row in weight.double().numpy():
        low = float(np.float16(row.min()))
        scale = float(np.float16((row.max() - low) / steps))
        rows.append(low + scale * np.clip(np.round((row - low) / scale), 0, steps))
    return np.stack(rows)


def keyed(lists):
    return KeyedJaggedTensor(
        keys=list(lists),
        values=torch.tensor([i for rows in lists.values() for row in rows for i in row]).long(),
        lengths=torch.tensor([len(row) for rows in lists.values() for row in rows]),
    )


POOLED = {"z": [[1, 2], [], [6]], "x": [[3], [10, 0, 0], []], "y": [[], [5], [1, 2]]}
ITEMS = {
    "item_id": [[2], [], [0], [5]],
    "gen_token": [[0, 3], [1, 8], [2, 2], [4, 7]],
    "mem_token": [[4], [], [0, 1, 2], []],
}


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "int4"])
def test_lookups_equal_a_naive_reference(weights, kind):
    tables = ServingTables(SPECS, kind, {n: quantize(w, kind) for n, w in weights.items()})
    pooled, items = tables(keyed(POOLED), keyed(ITEMS))
    rows = {name: naive_rows(weight, kind) for name, weight in weights.items()}
    # A step of a row may be rounded the other way: half the largest scale is the most that is lost.
    atol = {"fp32": 1e-6, "fp16": 1e-6, "int8": 0.03, "int4": 0.25}[kind]
    for feature, table in (("x", "a"), ("y", "a"), ("z", "b")):
        found = pooled.to_dict()[feature].numpy()
        for bag, vector in zip(POOLED[feature], found, strict=True):
            expected = rows[table][bag].sum(axis=0)
            expected = expected / max(len(bag), 1) if table == "b" else expected
            np.testing.assert_allclose(vector, expected, atol=atol * max(len(bag), 1), rtol=0)
    for feature, table in (("gen_token", "g"), ("mem_token", "m"), ("item_id", "i")):
        ids = [i for row in ITEMS[feature] for i in row]
        np.testing.assert_allclose(items[feature].values(), rows[table][ids], atol=atol, rtol=0)
        assert items[feature].lengths().tolist() == [len(row) for row in ITEMS[feature]]


@pytest.mark.parametrize(("kind", "steps"), [("int8", 255), ("int4", 15)])
def test_each_row_has_a_scale_of_its_own(kind, steps):
    weight = torch.linspace(-1, 1, 8).repeat(3, 1) * torch.tensor([[1e-3], [1.0], [300.0]])
    spec = TableSpec(name="a", rows=3, dim=8, features=("x",), role="side")
    tables = ServingTables([spec], kind, {"a": quantize(weight, kind)})
    found, _ = tables(keyed({"x": [[0], [1], [2]]}), keyed({}))
    error = (found.values() - weight).abs().amax(dim=1) / (weight.amax(dim=1) - weight.amin(dim=1))
    assert (error < 0.55 / steps + 2e-3).all()
    assert error.max() > 0


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "int4"])
def test_stored_shapes_tell_what_is_written(weights, kind):
    for spec in SPECS:
        values, scales = quantize(weights[spec.name], kind)
        shapes = (tuple(values.shape), None if scales is None else tuple(scales.shape))
        assert shapes == stored_shapes(spec, kind)
        assert values.dtype == torch.uint8


def test_rows_of_another_shape_are_refused(weights):
    rows = {name: quantize(weight, "int8") for name, weight in weights.items()}
    rows["b"] = quantize(weights["b"], "fp16")
    with pytest.raises(ServingError, match=r"table 'b': .*expected .*7 int8 rows of 8"):
        ServingTables(SPECS, "int8", rows)


def test_rows_are_in_memory_once():
    specs = [replace(spec, rows=500) for spec in SPECS]
    rows = {spec.name: quantize(torch.randn(500, spec.dim), "int8") for spec in specs}
    tables = ServingTables(specs, "int8", rows)
    for collection in [tables.pooled, *tables.items]:
        assert collection._table_name_to_quantized_weights is None
        for tbe in collection._emb_modules:
            used = sum(rows * (dim + 4) for _, rows, dim, *_ in tbe.embedding_specs)
            room = 128 * len(tbe.embedding_specs)  # tables are padded, rows are not
            assert used <= tbe.weights_host.numel() <= used + room
