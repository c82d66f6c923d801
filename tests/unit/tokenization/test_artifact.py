from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization import artifact_files
from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans

NUM_ITEMS = 200


def embeddings(seed=0):
    return np.random.default_rng(seed).normal(size=(NUM_ITEMS, 6)).astype(np.float32)


def fit(seed=0, cover="finest", weights=None):
    return fit_tokens(
        np.arange(NUM_ITEMS)[::-1] * 10,
        embeddings(seed),
        tokenizer=RQKMeans(num_levels=3, num_codes=8, num_iterations=5),
        mem=MemTokens(num_merges=50, cover=cover),
        weights=weights,
    )


ARRAYS = ("item_ids", "codes", "mem_values", "mem_offsets", "codebooks")


def test_the_parts_agree_with_one_another():
    artifact = fit()
    assert (artifact.num_items, artifact.num_levels, artifact.num_codes) == (NUM_ITEMS, 3, 8)
    assert 0 < artifact.num_merges <= 50
    values, offsets = artifact.merges.encode(artifact.codes, cover="finest")
    np.testing.assert_array_equal(artifact.mem_values, values)
    np.testing.assert_array_equal(artifact.mem_offsets, offsets)
    assert artifact.manifest["tokenizer"] == {
        "kind": "rq_kmeans",
        "num_levels": 3,
        "num_codes": 8,
        "num_iterations": 5,
        "points_per_code": None,
        "seed": 0,
    }
    assert artifact.manifest["mem"]["num_merges"] == 50
    assert artifact.manifest["mem"]["kind"] == "bpe"
    assert artifact.manifest["versions"]["numpy"] == np.__version__


def test_tree_lists_more_mem_tokens_than_the_finest_cover():
    assert len(fit(cover="tree").mem_values) > len(fit().mem_values)


def test_fit_is_deterministic_and_weights_matter():
    assert fit().fingerprint == fit().fingerprint
    assert fit(seed=1).fingerprint != fit().fingerprint
    weights = np.random.default_rng(0).integers(1, 1000, size=NUM_ITEMS)
    assert fit(weights=weights).fingerprint != fit().fingerprint


def test_save_and_load(tmp_path):
    artifact = fit()
    artifact.save(tmp_path / "deep" / "tokens")
    loaded = TokenArtifact.load(tmp_path / "deep" / "tokens")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(artifact, name))
        assert getattr(loaded, name).dtype == getattr(artifact, name).dtype
    for name in ("left", "right", "count"):
        np.testing.assert_array_equal(getattr(loaded.merges, name), getattr(artifact.merges, name))
    assert loaded.fingerprint == artifact.fingerprint == loaded.manifest["fingerprint"]
    assert loaded.manifest["tokenizer"] == artifact.manifest["tokenizer"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tokens"]


def test_files_have_the_stated_columns(tmp_path):
    fit().save(tmp_path / "tokens")
    schema = pq.read_schema(tmp_path / "tokens" / "tokens.parquet")
    assert schema.names == ["item_id", "codes", "mem_tokens"]
    assert schema.field("item_id").type == pa.int64()
    assert schema.field("codes").type.value_type == pa.int32()
    assert schema.field("mem_tokens").type.value_type == pa.int32()


def test_an_artifact_without_mem_tokens_round_trips(tmp_path):
    artifact = fit_tokens(
        np.arange(NUM_ITEMS),
        embeddings(),
        tokenizer=RQKMeans(num_levels=1, num_codes=8),
        mem=MemTokens(),
    )
    artifact.save(tmp_path / "tokens")
    loaded = TokenArtifact.load(tmp_path / "tokens")
    assert loaded.num_merges == 0
    assert loaded.mem_offsets.tolist() == [0] * (NUM_ITEMS + 1)


def test_saving_again_replaces_the_artifact(tmp_path):
    fit().save(tmp_path / "tokens")
    fit(seed=1).save(tmp_path / "tokens")
    assert TokenArtifact.load(tmp_path / "tokens").fingerprint == fit(seed=1).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TokenArtifactError, match="is no token artifact"):
        fit().save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_save_leaves_the_old_artifact(tmp_path, monkeypatch):
    fit().save(tmp_path / "tokens")

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(artifact_files, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        fit(seed=1).save(tmp_path / "tokens")
    assert TokenArtifact.load(tmp_path / "tokens").fingerprint == fit().fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_no_folder(tmp_path):
    with pytest.raises(TokenArtifactError, match="no such folder; make the artifact with"):
        TokenArtifact.load(tmp_path / "tokens")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "\udcff"])
def test_manifest_that_is_no_json(tmp_path, text):
    folder = tmp_path / "tokens"
    fit().save(folder)
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenArtifactError, match=r"manifest\.json: expected JSON"):
        TokenArtifact.load(folder)


@pytest.mark.parametrize(
    "name", ["tokens.parquet", "codebooks.safetensors", "merges.parquet", "manifest.json"]
)
def test_missing_and_truncated_files(tmp_path, name):
    folder = tmp_path / "tokens"
    fit().save(folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenArtifactError, match=r"unreadable token artifact|expected JSON"):
        TokenArtifact.load(folder)
    (folder / name).unlink()
    with pytest.raises(TokenArtifactError, match=f"incomplete token artifact, {name} missing"):
        TokenArtifact.load(folder)


def test_a_column_whose_name_is_no_text(tmp_path):
    """pyarrow raises its own `UnicodeDecodeError` there."""
    folder = tmp_path / "tokens"
    fit().save(folder)
    path = folder / "tokens.parquet"
    path.write_bytes(path.read_bytes().replace(b"item_id", b"\x80tem_id"))
    with pytest.raises(TokenArtifactError, match="unreadable token artifact"):
        TokenArtifact.load(folder)


@pytest.mark.parametrize("name", ["tokens.parquet", "codebooks.safetensors", "merges.parquet"])
def test_files_of_another_artifact(tmp_path, name):
    fit().save(tmp_path / "one")
    fit(seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(TokenArtifactError, match=r"altered or mixed|mem_values: expected"):
        TokenArtifact.load(tmp_path / "one")


def test_a_changed_column_is_told(tmp_path):
    fit().save(tmp_path / "tokens")
    path = tmp_path / "tokens" / "tokens.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["item", "codes", "mem_tokens"]), path)
    with pytest.raises(TokenArtifactError, match=r"unreadable token artifact .*item_id"):
        TokenArtifact.load(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 10**15}, "manifest.json states num_items 1000000000000000, the files have"),
        ({"num_merges": None}, "manifest.json states num_merges None, the files have 50"),
        ({"num_codes": 9}, "states num_codes 9, the files have 8"),
        ({"embedding_dim": "4"}, "states embedding_dim '4', the files have"),
        ({"num_levels": 1}, "states num_levels 1, codebooks.safetensors has 3"),
    ],
)
def test_counts_are_compared_with_the_files_before_they_are_read(tmp_path, change, message):
    fit().save(tmp_path / "tokens")
    path = tmp_path / "tokens" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TokenArtifactError, match=message):
        TokenArtifact.load(tmp_path / "tokens")


def test_columns_longer_than_the_counts_allow_are_not_decoded(tmp_path):
    """A run of equal values of any length takes a few bytes of a parquet file."""
    fit().save(tmp_path / "tokens")
    path = tmp_path / "tokens" / "tokens.parquet"
    table = pq.read_table(path)
    row = table.column_names.index("mem_tokens")
    long = pa.array([[0] * 20_000] + [[]] * (NUM_ITEMS - 1), type=pa.list_(pa.int32()))
    pq.write_table(table.set_column(row, "mem_tokens", long), path)
    with pytest.raises(TokenArtifactError, match=r"column mem_tokens: 20199 values, at most 1800"):
        TokenArtifact.load(tmp_path / "tokens")


def test_huge_manifest_is_refused_unread(tmp_path):
    fit().save(tmp_path / "tokens")
    with (tmp_path / "tokens" / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no space is taken
    with pytest.raises(TokenArtifactError, match=r"1099511627776 bytes, at most"):
        TokenArtifact.load(tmp_path / "tokens")


def test_another_format(tmp_path):
    fit().save(tmp_path / "tokens")
    path = tmp_path / "tokens" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(TokenArtifactError, match="expected format 1, found 99"):
        TokenArtifact.load(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": np.zeros(NUM_ITEMS, dtype=np.int64)}, "each item once, found 0 200 times"),
        ({"codes": np.full((NUM_ITEMS, 3), 8, np.int32)}, r"values in \[0, 8\), found 8 to 8"),
        ({"codes": np.zeros((NUM_ITEMS, 2), np.int32)}, r"codes: expected shape \(200, 3\)"),
        ({"mem_offsets": np.zeros(NUM_ITEMS + 1, dtype=np.int64)}, "mem_offsets: expected 201"),
    ],
)
def test_parts_that_contradict_each_other(change, message):
    with pytest.raises(TokenArtifactError, match=message):
        dataclasses.replace(fit(), **change)


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        (np.arange(3), "one integer for each of 200 embeddings"),
        (np.arange(NUM_ITEMS).astype(float), "found float64"),
        (np.arange(NUM_ITEMS) // 2, "each item once, found 0 2 times"),
    ],
)
def test_bad_item_ids(item_ids, message):
    with pytest.raises(ValueError, match=message):
        fit_tokens(
            item_ids,
            embeddings(),
            tokenizer=RQKMeans(num_levels=2, num_codes=8),
            mem=MemTokens(num_merges=5),
        )
