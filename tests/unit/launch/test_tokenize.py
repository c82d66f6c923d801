from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import embed, tokenize
from launch.token_tables import row_collisions
from tokenization.artifact import TokenArtifact
from tokenization.embedding_table import EmbeddingTable
from tokenization.exposures import count_exposures
from tokenization.text_encoder import TextEncoder
from trainer.data.hashing import hash_buckets

COLOURS = ["a red", "a green"]
THINGS = ["cake", "candle", "cake with candle", "candle with cake"]
TEXTS = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.parquet"
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 4)).tolist()
    ids = [100 + i for i in range(len(TEXTS))]
    pq.write_table(pa.table({"item_id": ids, "text": TEXTS, "vector": vectors}), path)
    return path


def test_texts_to_embeddings_to_tokens(tmp_path, items, tiny_text_encoder, capsys):
    out = tmp_path / "embeddings.parquet"
    embed.main(["--items", str(items), "--encoder", str(tiny_text_encoder), "--out", str(out)])
    assert "8 items x 16 dimensions" in capsys.readouterr().out
    table = EmbeddingTable.load(out)
    assert table.item_ids.tolist() == list(range(100, 108))
    np.testing.assert_allclose(
        table.embeddings, TextEncoder(folder=tiny_text_encoder).encode(TEXTS), atol=1e-6
    )

    args = ["--embeddings", str(out), "--out", str(tmp_path / "tokens")]
    args += ["--tokenizer.num-levels", "2", "--tokenizer.num-codes", "3", "--tokenizer.seed", "7"]
    args += ["--mem.num-merges", "2", "--mem.cover", "tree", "--json", str(tmp_path / "q.json")]
    tokenize.main(args)
    printed = capsys.readouterr().out
    artifact = TokenArtifact.load(tmp_path / "tokens")
    assert artifact.fingerprint in printed.replace("\n", "")
    for words in ("dead codes", "perplexity", "distinct token bags", "collision rate"):
        assert words in printed
    assert artifact.codes.shape == (8, 2)
    assert artifact.manifest["tokenizer"]["seed"] == 7
    assert artifact.manifest["mem"]["cover"] == "tree"
    written = json.loads((tmp_path / "q.json").read_text())
    assert written["fingerprint"] == artifact.fingerprint
    assert written["quality"]["num_items"] == 8
    assert written["quality"]["gen_rows"] == 6
    assert len(written["quality"]["levels"]) == 2


def test_an_interrupted_embedding_goes_on_where_it_stopped(
    tmp_path, items, tiny_text_encoder, monkeypatch
):
    out = tmp_path / "embeddings.parquet"
    args = ["--items", str(items), "--encoder", str(tiny_text_encoder), "--out", str(out)]
    args += ["--chunk-items", "3"]
    encode, encoded = TextEncoder.encode, []

    def stopping(self, texts, **kwargs):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(list(texts))
        return encode(self, texts, **kwargs)

    monkeypatch.setattr(TextEncoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed.main(args)
    assert not out.exists()
    encoded[:] = [None]  # one more chunk may be encoded
    embed.main(args)
    assert encoded == [None, TEXTS[6:]]
    monkeypatch.undo()
    expected = TextEncoder(folder=tiny_text_encoder).encode(TEXTS)
    np.testing.assert_allclose(EmbeddingTable.load(out).embeddings, expected, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "embeddings.parquet",
        "items.parquet",
    ]


def test_embeddings_aligned_with_a_log(tmp_path, items):
    rng = np.random.default_rng(0)
    log = {"user_id": np.arange(400) // 20, "item_id": rng.integers(100, 108, 400)}
    pq.write_table(pa.table({**log, "like": rng.integers(0, 2, 400)}), tmp_path / "log.parquet")
    args = ["--items", str(items), "--embedding-column", "vector", "--out", str(tmp_path / "e")]
    args += ["--align-log", str(tmp_path / "log.parquet"), "--align-positive", "like"]
    embed.main([*args, "--alignment.num-epochs", "2", "--alignment.out-dim", "3"])
    aligned = EmbeddingTable.load(tmp_path / "e")
    assert aligned.embeddings.shape == (8, 3)
    np.testing.assert_allclose(np.linalg.norm(aligned.embeddings, axis=1), 1, rtol=1e-5)


def test_embeddings_of_behaviour_alone(tmp_path, items):
    rng = np.random.default_rng(0)
    log = {"user_id": np.arange(400) // 20, "item_id": rng.integers(103, 110, 400)}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    args = ["--items", str(items), "--out", str(tmp_path / "e"), "--sasrec.dim", "6"]
    args += ["--sasrec.num-epochs", "1"]
    embed.main([*args, "--sasrec-log", str(tmp_path / "log.parquet")])
    table = EmbeddingTable.load(tmp_path / "e")
    assert table.item_ids.tolist() == [103, 104, 105, 106, 107]
    assert table.embeddings.shape == (5, 6)
    pq.write_table(pa.table({**log, "item_id": [1] * 400}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="none of its items occurs"):
        embed.main([*args, "--sasrec-log", str(tmp_path / "log.parquet")])


def test_embeddings_that_the_catalogue_brings(tmp_path, items):
    out = tmp_path / "embeddings.parquet"
    embed.main(["--items", str(items), "--embedding-column", "vector", "--out", str(out)])
    expected = EmbeddingTable.load(items, column="vector")
    np.testing.assert_array_equal(EmbeddingTable.load(out).embeddings, expected.embeddings)
    args = ["--embeddings", str(items), "--embedding-column", "vector"]
    args += ["--out", str(tmp_path / "tokens"), "--tokenizer.num-codes", "4"]
    tokenize.main(args)
    assert TokenArtifact.load(tmp_path / "tokens").item_ids.tolist() == list(range(100, 108))


@pytest.mark.parametrize("kind", ["rq_vae", "balanced_rq_kmeans", "opq", "opmq"])
def test_every_tokenizer_by_its_kind(tmp_path, items, kind):
    args = ["--embeddings", str(items), "--embedding-column", "vector", "--tokenizer", kind]
    args += ["--out", str(tmp_path / "tokens"), "--tokenizer.num-codes", "3"]
    tokenize.main([*args, "--collisions", "next_nearest", "--mem", "k_grams"])
    artifact = TokenArtifact.load(tmp_path / "tokens")
    assert artifact.manifest["tokenizer"]["kind"] == kind
    assert artifact.manifest["mem"]["kind"] == "k_grams"
    assert artifact.manifest["collisions"] == "next_nearest"
    with pytest.raises(SystemExit):
        tokenize.main([*args[:-2], "--tokenizer", "hash"])


def test_mem_tokens_by_exposure(tmp_path, items):
    (tmp_path / "log").mkdir()
    shown = [100] * 5 + [103] * 2 + [7] + [105] * 2
    pq.write_table(pa.table({"item_id": shown[:4]}), tmp_path / "log" / "part-0.parquet")
    pq.write_table(pa.table({"item_id": shown[4:]}), tmp_path / "log" / "part-1.parquet")
    ids = np.arange(100, 108)
    whole = count_exposures(tmp_path / "log", ids)
    assert whole.tolist() == [5, 0, 0, 2, 0, 2, 0, 0]
    assert count_exposures(tmp_path / "log", ids, share=0.6).tolist() == [5, 0, 0, 1, 0, 0, 0, 0]
    args = ["--embeddings", str(items), "--embedding-column", "vector"]
    args += ["--out", str(tmp_path / "tokens"), "--tokenizer.num-codes", "3"]
    tokenize.main([*args, "--exposures", str(tmp_path / "log")])
    made = TokenArtifact.load(tmp_path / "tokens").manifest
    assert made["mem"]["weighted"]
    assert made["log_rows"] == 8  # 0.8 of ten rows
    with pytest.raises(ValueError, match="none of the 8 items occurs"):
        count_exposures(tmp_path / "log", ids + 1000)
    with pytest.raises(ValueError, match="no such file or folder"):
        count_exposures(tmp_path / "nothing", ids)
    with pytest.raises(ValueError, match="expected an integer column 'vector'"):
        count_exposures(items, ids, column="vector")


def test_an_update_knows_the_rows_that_its_embeddings_know(tmp_path, items):
    table = EmbeddingTable.load(items, column="vector")
    table.save(tmp_path / "old.parquet")
    args = ["--tokenizer.num-codes", "3", "--embeddings", str(tmp_path / "old.parquet")]
    tokenize.main([*args, "--out", str(tmp_path / "tokens")])
    assert "log_rows" not in TokenArtifact.load(tmp_path / "tokens").manifest
    new = EmbeddingTable(
        item_ids=np.append(table.item_ids, 999),
        embeddings=np.append(table.embeddings, table.embeddings[:1], axis=0),
        made={"log_rows": 70},
    )
    new.save(tmp_path / "new.parquet")
    args = ["--embeddings", str(tmp_path / "new.parquet"), "--update", str(tmp_path / "tokens")]
    tokenize.main([*args, "--out", str(tmp_path / "updated")])
    assert TokenArtifact.load(tmp_path / "updated").manifest["log_rows"] == 70
    with pytest.raises(ValueError, match="--exposures has no effect with --update"):
        tokenize.tokenize(tokenize.parse([*args, "--out", "x", "--exposures", str(tmp_path)]))


def test_mem_tokens_that_share_a_row_are_counted_from_the_rows_themselves(tmp_path, items, capsys):
    assert row_collisions(100, 100) == 0.0
    rows = hash_buckets(np.arange(100), 50).tolist()
    expected = sum(rows.count(row) > 1 for row in rows) / 100
    assert row_collisions(100, 50) == pytest.approx(expected)
    args = ["--embeddings", str(items), "--embedding-column", "vector", "--mem-rows", "1"]
    args += ["--out", str(tmp_path / "tokens"), "--tokenizer.num-codes", "2"]
    tokenize.main(args)
    assert "in 1 rows" in capsys.readouterr().out


def test_a_text_column_without_texts(tmp_path, items):
    args = ["--items", str(items), "--text-column", "vector", "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="column vector: expected strings, found list"):
        embed.main(args)
    assert not (tmp_path / "out").exists()


def test_the_paper_s_sizes_do_not_fit_eight_items(tmp_path, items):
    args = ["--embeddings", str(items), "--embedding-column", "vector"]
    with pytest.raises(ValueError, match=r"num_codes: 4096 codes need .* found 8 items"):
        tokenize.main([*args, "--out", str(tmp_path / "tokens")])
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("verb", [embed, tokenize])
def test_help_has_an_example_and_unknown_options_fail(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        verb.main(["--help"])
    assert stopped.value.code == 0
    name = verb.__name__.rpartition(".")[2]
    assert f"farewell {name} --" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        verb.main(["--no-such-option", "1"])
    assert stopped.value.code != 0


def test_behaviour_beside_content(tmp_path, items):
    rng = np.random.default_rng(0)
    clicked = EmbeddingTable(
        item_ids=np.arange(100, 106), embeddings=rng.normal(size=(6, 2)).astype(np.float32)
    )
    clicked.save(tmp_path / "behaviour.parquet")
    args = ["--embeddings", str(items), "--embedding-column", "vector"]
    args += ["--collaborative", str(tmp_path / "behaviour.parquet")]
    args += ["--out", str(tmp_path / "tokens")]
    sizes = ["--tokenizer", "letter", "--tokenizer.num-levels", "2", "--tokenizer.num-codes", "3"]
    sizes += ["--tokenizer.num-epochs", "2"]
    tokenize.main([*args, *sizes, "--tokenizer.collaborative-dim", "2"])
    artifact = TokenArtifact.load(tmp_path / "tokens")
    assert artifact.codes.shape == (8, 2)
    assert artifact.tokenizer.dim == 6
    with pytest.raises(ValueError, match=r"expected lists of 64 values .* found 2; set it to 2"):
        tokenize.main([*args, *sizes])
    with pytest.raises(ValueError, match=r"letter, das, dos\), found rq_kmeans"):
        tokenize.main(args)
    with pytest.raises(ValueError, match="stream: expected no collaborative embeddings"):
        tokenize.main([*args, "--stream"])
