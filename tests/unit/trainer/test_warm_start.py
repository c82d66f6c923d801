from dataclasses import replace

import numpy as np
import pytest
import torch

from configs import datasets, dig, migration
from tests.unit.trainer.stored_checkpoint import whole, write_checkpoint
from tokenization.embedding_table import EmbeddingTable
from trainer.state_parts import Box, Part
from trainer.stored_state import StoredState
from trainer.warm_start import WarmStart, _Choice

MAP = "sparse/items._managed_collision_collection.modules.{}.ids"


@pytest.fixture
def experiment():
    """With a managed table of item IDs."""
    return migration.with_fewer_rows(datasets.smoke(), "managed", 0.5)


def choice(tmp_path, experiment, *, was_managed, ranks=2, **options):
    table = experiment.item_tables["item_id"]
    tensors = {f"table/{table.name}/weight": whole(torch.ones(table.rows, table.dim))}
    if was_managed:
        tensors[MAP.format(table.name)] = whole(torch.ones(table.rows))
    path = write_checkpoint(tmp_path / "step_0000000001", tensors, state={"world_size": 2})
    config = WarmStart(checkpoint=path, **options)
    return _Choice(config, experiment, None, StoredState(path), ranks)


def outcomes(chosen, experiment):
    """Of the managed table and of its map."""
    table = experiment.item_tables["item_id"]
    shape = (table.rows, table.dim)
    weight = Part(f"table/{table.name}/weight", shape, Box.whole(shape), torch.zeros(shape))
    ids = torch.zeros(table.rows)
    ids = Part(MAP.format(table.name), tuple(ids.shape), Box.whole(ids.shape), ids)
    found = [chosen.outcome(part) for part in (weight, ids)]
    return [one.outcome for one in found], found[0].why


def test_managed_table_is_taken_with_its_map(tmp_path, experiment):
    chosen = choice(tmp_path, experiment, was_managed=True)
    assert outcomes(chosen, experiment) == (["taken", "taken"], "")


def test_managed_table_of_other_ranks_is_begun_anew(tmp_path, experiment):
    found, why = outcomes(choice(tmp_path, experiment, was_managed=True, ranks=4), experiment)
    assert found == ["new", "new"]
    assert why.startswith("managed by 2 ranks")


def test_rows_that_were_not_managed_are_of_no_use_to_a_managed_table(tmp_path, experiment):
    found, why = outcomes(choice(tmp_path, experiment, was_managed=False), experiment)
    assert found == ["new", "new"]
    assert why == "its rows were not managed"


def test_map_stays_with_its_table_where_tables_are_named(tmp_path, experiment):
    other = next(t.name for t in experiment.tables if t.pooling != "none")
    chosen = choice(tmp_path, experiment, was_managed=True, tables=(other,))
    found, why = outcomes(chosen, experiment)
    assert found == ["new", "new"]
    assert why == "not among the tables asked for"


def test_hashed_table_does_not_grow(tmp_path, experiment):
    hashed = next(f.name for f in experiment.data.schema.pooled_features)
    schema = replace(
        experiment.data.schema,
        features=tuple(
            replace(f, hashed=True) if f.name == hashed else f
            for f in experiment.data.schema.features
        ),
    )
    table = next(t for t in experiment.tables if hashed in t.features)
    tensors = {f"table/{table.name}/weight": whole(torch.ones(table.rows - 1, table.dim))}
    path = write_checkpoint(tmp_path / "step_0000000001", tensors)
    shape = (table.rows, table.dim)
    part = Part(f"table/{table.name}/weight", shape, Box.whole(shape), torch.zeros(shape))
    found = {}
    for name, data in (
        ("own", experiment.data),
        ("hashed", replace(experiment.data, schema=schema)),
    ):
        own = replace(experiment, data=data)
        chosen = _Choice(WarmStart(checkpoint=path), own, None, StoredState(path), 1)
        found[name] = chosen.outcome(part)
    assert found["own"].outcome == "grown"
    assert found["hashed"].outcome == "new"
    assert "depends on their number" in found["hashed"].why


def test_smaller_table_is_not_cut(tmp_path, experiment):
    table = next(t for t in experiment.tables if t.pooling != "none")
    tensors = {f"table/{table.name}/weight": whole(torch.ones(table.rows + 1, table.dim))}
    path = write_checkpoint(tmp_path / "step_0000000001", tensors)
    shape = (table.rows, table.dim)
    part = Part(f"table/{table.name}/weight", shape, Box.whole(shape), torch.zeros(shape))
    chosen = _Choice(WarmStart(checkpoint=path), experiment, None, StoredState(path), 1)
    assert "fewer than were trained" in chosen.outcome(part).why


@pytest.mark.parametrize(
    ("codebooks", "parts", "outcome"),
    [
        ((3, 32, 32), "all", "taken"),
        ((3, 32, 32), "tables", "new"),
        ((3, 16, 32), "all", "new"),
        (None, "all", "new"),
    ],
)
def test_sid_embeddings_are_taken_with_their_codebooks(tmp_path, codebooks, parts, outcome):
    experiment = dig.smoke()
    table = next(t for t in experiment.tables if t.role == "gen_token")
    tensors = {f"table/{table.name}/weight": whole(torch.ones(table.rows, table.dim))}
    if codebooks is not None:
        tensors["network/quantizer.codebooks_LKD/value"] = whole(torch.ones(codebooks))
    path = write_checkpoint(tmp_path / "step_0000000001", tensors)
    chosen = _Choice(
        WarmStart(checkpoint=path, parts=parts), experiment, None, StoredState(path), 1
    )
    shape = (table.rows, table.dim)
    part = Part(f"table/{table.name}/weight", shape, Box.whole(shape), torch.zeros(shape))
    found = chosen.outcome(part)
    assert found.outcome == outcome
    assert ("codewords that are not taken over" in found.why) == (outcome == "new")


def test_remap_is_refused_where_tokens_are_learned(tmp_path):
    path = write_checkpoint(tmp_path / "step_0000000001", {})
    config = WarmStart(checkpoint=path, remap=tmp_path)
    with pytest.raises(ValueError, match="no table of tokens from an artifact"):
        _Choice(config, dig.smoke(), None, StoredState(path), 1)


def test_a_tokenizer_is_taken_as_a_whole_or_not_at_all(tmp_path):
    experiment = dig.smoke()
    table = next(t for t in experiment.tables if t.role == "gen_token")
    shapes = {
        f"table/{table.name}/weight": (table.rows, table.dim),
        "network/quantizer.codebooks_LKD/value": (3, 32, 32),
        "network/num_steps/value": (1,),
        "network/encoder.norm.weight/value": (32,),
        "network/encoder.text.weight/value": (64, 32),
        "network/tower.blocks.0.weight/value": (5, 5),
    }
    stored = {name: whole(torch.ones(shape)) for name, shape in shapes.items()}
    path = write_checkpoint(tmp_path / "step_0000000001", stored)
    for width, outcome in ((32, "taken"), (40, "new")):
        chosen = _Choice(WarmStart(checkpoint=path), experiment, None, StoredState(path), 1)
        shapes["network/encoder.text.weight/value"] = (64, width)
        parts = [Part(n, s, Box.whole(s), torch.zeros(s)) for n, s in shapes.items()]
        chosen.look_at_encoder(parts)
        found = {part.name: chosen.outcome(part) for part in parts}
        assert found.pop("network/tower.blocks.0.weight/value").outcome == "taken"
        assert {one.outcome for one in found.values()} == {outcome}
        if outcome == "new":
            assert all("encoder.text.weight" in one.why for one in found.values())


def test_a_tokenizer_of_other_embeddings_begins_anew_and_the_rest_is_taken(tmp_path):
    smoke = dig.smoke()
    path = tmp_path / "item_embeddings.parquet"
    item = replace(smoke.model.item, embeddings=path, embedding_column=None)
    experiment = replace(smoke, model=replace(smoke.model, item=item))
    embeddings = np.ones((3, 32), np.float32)
    for made, outcome in (({"encoder": "a"}, "taken"), ({"encoder": "b"}, "new")):
        EmbeddingTable(item_ids=np.arange(3), embeddings=embeddings, made=made).save(path)
        names = ("network/encoder.norm.weight/value", "network/tower.blocks.0.weight/value")
        source = write_checkpoint(
            tmp_path / made["encoder"] / "step_0000000001",
            {name: whole(torch.ones(32)) for name in names},
            state={"item_embeddings": {"encoder": "a"}},
        )
        chosen = _Choice(WarmStart(checkpoint=source), experiment, None, StoredState(source), 1)
        parts = [Part(name, (32,), Box.whole((32,)), torch.zeros(32)) for name in names]
        chosen.look_at_encoder(parts)
        found = [chosen.outcome(part) for part in parts]
        assert [one.outcome for one in found] == [outcome, "taken"]
        assert ("trained on embeddings made with" in found[0].why) == (outcome == "new")
