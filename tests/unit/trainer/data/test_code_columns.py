import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import datasets, store_rows
from launch import data
from tokenization.artifact import TokenArtifact
from tokenization.mem_tokens import MemTokens
from tokenization.opq import OPQ
from tokenization.pipeline import fit_tokens
from trainer.data.code_columns import add_codes, code_features, coded_ids
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.synthetic import write_synthetic

QUERIES = datasets.SMOKE.num_queries


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "log"
    write_synthetic(replace(datasets.SMOKE, num_rows=3_000), folder)
    return folder


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    # Ids in another order than rows, as an artifact may have them.
    ids = rng.permutation(QUERIES).astype(np.int64)
    return fit_tokens(
        ids,
        rng.normal(size=(QUERIES, 8)).astype(np.float32),
        tokenizer=OPQ(num_levels=4, num_codes=8),
        mem=MemTokens(num_merges=0),
    )


def schema_of(source="interactions", **more):
    own = datasets.smoke().data.schema
    added = code_features(
        "query_id", num_levels=4, num_codes=8, entity="request", source=source, **more
    )
    return replace(own, features=(*own.features, *added))


def test_every_row_has_the_codes_of_its_id(log, tokens, tmp_path):
    told = []
    names = add_codes(
        log,
        tmp_path / "coded",
        column="query_id",
        tokens=tokens,
        progress=lambda done, total: told.append((done, total)),
    )
    assert names == tuple(f"query_id_code_{level}" for level in range(1, 5))
    dataset = Dataset.open(tmp_path / "coded", schema_of())
    before = Dataset.open(log, datasets.smoke().data.schema)
    assert dataset.num_rows == before.num_rows
    rows = dataset.split(datasets.smoke().data.split).train
    found = dataset.read(rows, ["query_id", "timestamp", *names])
    assert np.array_equal(found["timestamp"], before.read(rows, ["timestamp"])["timestamp"])
    by_id = {int(one): codes for one, codes in zip(tokens.item_ids, tokens.codes, strict=True)}
    expected = np.stack([by_id[int(one)] for one in found["query_id"]])
    assert np.array_equal(np.stack([found[name] for name in names], axis=1), expected)
    assert told[-1] == (before.num_rows, before.num_rows)
    manifest = json.loads((tmp_path / "coded" / "manifest.json").read_text())
    assert manifest["columns"]["interactions"]["query_id_code_4"] == "int32"
    assert tokens.fingerprint in manifest["source"]["codes of query_id"]


def test_codes_may_stand_beside_an_id_of_the_items(log, tokens, tmp_path):
    add_codes(log, tmp_path / "coded", column="category_1", tokens=tokens, source="items")
    table = pq.read_table(tmp_path / "coded" / "items.parquet")
    assert table["category_1_code_4"].type == pa.int32()
    parts = (tmp_path / "coded" / "interactions").glob("*.parquet")
    assert all("category_1_code_1" not in pq.read_schema(part).names for part in parts)


def test_the_command_says_what_to_write_in_the_schema(log, tokens, tmp_path, capsys):
    tokens.save(tmp_path / "tokens")
    words = ["--column", "query_id", "--tokens", str(tmp_path / "tokens")]
    data.main(["codes", "--log", str(log), *words, "--folder", str(tmp_path / "coded")])
    printed = capsys.readouterr().out
    assert "code_features('query_id', num_levels=4, num_codes=8, entity=" in printed
    assert Dataset.open(tmp_path / "coded", schema_of())


def test_store_takes_them_for_semantic_ids():
    source = datasets.smoke()
    coded = replace(source, data=replace(source.data, schema=schema_of()))
    tower = store_rows.tower(coded, 4, group_dim=8, ffn_dim=16)
    plain = store_rows.tower(source, 4, group_dim=8, ffn_dim=16)
    assert tower.semantic_ids == (("candidate",), coded_ids(coded.data.schema)["query_id"])
    assert tower.groups == plain.groups
    assert plain.semantic_ids == (("candidate",),)


def refused(log, folder, message, tokens, column="query_id"):
    with pytest.raises((DataError, ValueError), match=message):
        add_codes(log, folder, column=column, tokens=tokens)


def test_what_does_not_fit_is_named_and_nothing_is_left(log, tokens, tmp_path):
    target = tmp_path / "coded"
    few = replace_ids(tokens, tokens.item_ids + 1)
    refused(log, target, "'query_id': expected ids that the tokens have, found 0 in row", few)
    refused(
        log, target, "'query_idd': expected an integer column.*did you mean", tokens, "query_idd"
    )
    refused(tmp_path / "none", target, "expected a data set folder with interactions/", tokens)
    refused(log, log, "exists; choose another folder", tokens)
    assert list(tmp_path.iterdir()) == []
    add_codes(log, target, column="query_id", tokens=tokens)
    refused(
        target, tmp_path / "twice", "expected no codes yet, found columns query_id_code_1", tokens
    )


def test_an_id_that_is_missing_in_a_row_is_named(log, tokens, tmp_path):
    holed = tmp_path / "holed"
    (holed / "interactions").mkdir(parents=True)
    table = pa.table({"query_id": pa.array([1, None, 2], pa.int64())})
    pq.write_table(table, holed / "interactions" / "part-00000.parquet")
    refused(holed, tmp_path / "coded", "expected an id, found null in row 1; give it", tokens)


def test_levels_that_are_missing_are_named():
    own = schema_of()
    lacking = [one for one in own.features if one.name != "query_id_code_2"]
    with pytest.raises(ValueError, match=r"'query_id' have levels \[1, 3, 4\], expected 1 to 4"):
        coded_ids(replace(own, features=tuple(lacking)))


def replace_ids(tokens, ids):
    return TokenArtifact(
        item_ids=ids,
        codes=tokens.codes,
        mem_values=tokens.mem_values,
        mem_offsets=tokens.mem_offsets,
        codebooks=tokens.codebooks,
        merges=tokens.merges,
    )
