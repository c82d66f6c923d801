"""`farewell embed` with models of texts that are trained first, and on two ranks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from launch import embed, tokenize
from launch.embed_options import EmbedArgs
from tokenization.artifact import TokenArtifact
from tokenization.captioning import encode_contents
from tokenization.catalogue import Content
from tokenization.embedding_table import EmbeddingTable

WORDS = ["[PAD]", "[UNK]", "[END]", "red", "green", "cake", "candle", "sweet", "bright", "."]
THINGS = ["cake", "candle"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_llama")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    """20 items in two kinds; users click one kind; queries `sweet` and `bright` ask for them."""
    rng = np.random.default_rng(0)
    ids = np.arange(20) + 100
    things = [THINGS[n % 2] for n in range(20)]
    items = {
        "item_id": ids,
        "title": ["red" if n % 4 < 2 else "green" for n in range(20)],
        "text": things,
        "caption": ["sweet" if thing == "cake" else "bright" for thing in things],
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    users = np.repeat(np.arange(40), 10)
    log = {
        "user_id": users,
        "item_id": 100 + 2 * rng.integers(0, 10, 400) + users % 2,
        "query_id": users % 2,
        "click": np.ones(400, dtype=np.int8),
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    queries = {"query_id": [0, 1], "text": ["sweet", "bright"]}
    pq.write_table(pa.table(queries), tmp_path / "queries.parquet")
    return tmp_path


def words(files, model, *more):
    return [
        *("--items", str(files / "items.parquet"), "--out", str(files / "embeddings.parquet")),
        *("--text-column", "title", "text", "--encoder", str(model)),
        *more,
    ]


def apart(embeddings):
    """How much nearer items of one kind are to each other than to the others."""
    similarity = embeddings @ embeddings.T
    kind = np.arange(20) % 2
    same = kind[:, None] == kind
    return similarity[same].mean() - similarity[~same].mean()


def test_a_language_model_encodes_several_columns(files, model):
    embed.main(words(files, model))
    table = EmbeddingTable.load(files / "embeddings.parquet")
    expected = encode_contents(
        model, [Content(text="red. cake"), Content(text="red. candle")], batch_size=2, max_length=9
    )
    np.testing.assert_allclose(table.embeddings[:2], expected, atol=1e-5)
    assert table.made == {"encoder": str(model), "text_column": ["title", "text"]}


def test_a_model_tuned_by_both_losses_and_both_kinds_of_pairs(files, model, capsys):
    embed.main(words(files, model))
    before = EmbeddingTable.load(files / "embeddings.parquet").embeddings
    options = ["--tuned", str(files / "tuned"), "--caption-column", "caption"]
    options += ["--align-log", str(files / "log.parquet"), "--align-positive", "click"]
    options += ["--queries", str(files / "queries.parquet"), "--align-rows", "300"]
    options += ["--tuning.num-steps", "150", "--tuning.batch-size", "16"]
    options += ["--tuning.learning-rate", "5e-3"]
    embed.main(words(files, model, *options))
    table = EmbeddingTable.load(files / "embeddings.parquet")
    assert re.search(r"150/150 loss \d", capsys.readouterr().err)
    assert apart(table.embeddings) > apart(before) + 0.1
    assert table.made["log_rows"] == 300
    assert table.made["tuning"]["num_steps"] == 150
    queries = encode_contents(
        files / "tuned", [Content(text="sweet"), Content(text="bright")], batch_size=2, max_length=8
    )
    near = queries @ table.embeddings.T
    assert (near[0, ::2].mean() > near[0, 1::2].mean()) and (near[1, 1::2] > near[1, ::2]).all()
    # The tuned model is an encoder like any other, and still says what it knows.
    embed.main(words(files, files / "tuned"))
    again = EmbeddingTable.load(files / "embeddings.parquet")
    np.testing.assert_allclose(again.embeddings, table.embeddings, atol=1e-5)
    assert again.made["log_rows"] == 300
    with pytest.raises(ValueError, match=r"tuned: exists; encode with it by --encoder"):
        embed.main(words(files, model, *options))


@pytest.mark.parametrize("part", ["caption", "align"])
def test_either_part_alone(files, model, part):
    options = ["--tuned", str(files / "tuned"), "--tuning.num-steps", "2"]
    if part == "caption":
        options += ["--caption-column", "caption", "--tuning.align-weight", "0"]
    else:
        options += ["--align-log", str(files / "log.parquet"), "--tuning.caption-weight", "0"]
    embed.main(words(files, model, *options))
    made = json.loads((files / "tuned" / "farewell.json").read_text())
    assert ("log_rows" in made) == (part == "align")


def test_a_head_learns_query_item_pairs_too(files, model):
    options = ["--align-log", str(files / "log.parquet"), "--align-positive", "click"]
    options += ["--alignment.num-epochs", "2", "--alignment.out-dim", "4"]
    embed.main(words(files, model, *options))
    without = EmbeddingTable.load(files / "embeddings.parquet")
    embed.main(words(files, model, *options, "--queries", str(files / "queries.parquet")))
    table = EmbeddingTable.load(files / "embeddings.parquet")
    assert table.item_ids.tolist() == without.item_ids.tolist()
    assert table.embeddings.shape == (20, 4)
    assert not np.allclose(table.embeddings, without.embeddings)
    assert (table.made["queries"], without.made["queries"]) == (True, False)


def test_a_head_reads_columns_of_the_catalogue(files, model):
    options = ["--align-log", str(files / "log.parquet"), "--alignment.heads", "spectral"]
    options += ["--alignment.out-dim", "4"]
    items = pq.read_table(files / "items.parquet")
    kind = pa.array([[n % 2, 2] for n in range(20)])
    pq.write_table(items.append_column("kind", kind), files / "items.parquet")
    embed.main(words(files, model, *options, "--feature-column", "kind"))
    table = EmbeddingTable.load(files / "embeddings.parquet")
    assert apart(table.embeddings) > 1.0
    assert table.made["feature_column"] == ["kind"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_column": "caption"}, "caption_column is 'caption', tuned None and"),
        ({"tuned": Path("x")}, "caption_column is None, tuned x and tuning.caption_weight 1.0"),
        ({"tuned": Path("x"), "caption_column": "c"}, "tuning.align_weight is 1.0 but"),
        ({"queries": Path("q")}, "queries: expected align_log too"),
        ({"embedding_column": "e", "image_column": "i"}, "image_column: expected none where"),
        ({"feature_column": ("year",)}, "feature_column: expected align_log too"),
        ({"features": Path("f")}, "features: expected feature_column too"),
        ({"sasrec_log": Path("l"), "tuned": Path("x")}, "tuned: expected none where"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EmbedArgs(items=Path("i"), out=Path("o"), **options)


def test_an_encoder_of_texts_has_no_use_for_images(files, tiny_text_encoder):
    items = pq.read_table(files / "items.parquet")
    items = items.append_column("cover", pa.array([b"x"] * 20))
    pq.write_table(items, files / "items.parquet")
    with pytest.raises(ValueError, match="this encoder reads texts alone"):
        embed.main(words(files, tiny_text_encoder, "--image-column", "cover"))


def on_two_ranks(verb, options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.cli", verb, *options],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def test_two_ranks_encode_what_one_does(files, model):
    embed.main(words(files, model))
    alone = EmbeddingTable.load(files / "embeddings.parquet")
    (files / "embeddings.parquet").unlink()
    said = on_two_ranks("embed", words(files, model, "--chunk-items", "6"))
    assert ["20 items x 16" in text for text in said] == [True, False]
    both = EmbeddingTable.load(files / "embeddings.parquet")
    assert both.item_ids.tolist() == alone.item_ids.tolist()
    np.testing.assert_allclose(both.embeddings, alone.embeddings, atol=1e-6)
    assert not list(files.glob("*.parts"))


@pytest.fixture
def embeddings(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 6))
    values = (centres[rng.integers(0, 12, 500)] + 0.3 * rng.normal(size=(500, 6))).astype("f4")
    path = tmp_path / "embeddings.parquet"
    EmbeddingTable(item_ids=np.arange(500), embeddings=values, made={"encoder": "x"}).save(path)
    pq.write_table(pq.read_table(path), path, row_group_size=64)
    return path


SIZES = ["--tokenizer.num-levels", "3", "--tokenizer.num-codes", "8", "--mem.num-merges", "40"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_of_embeddings_that_memory_need_not_hold(embeddings, tmp_path, ranks):
    options = ["--embeddings", str(embeddings), *SIZES, "--collisions", "extra_code"]
    options += ["--tokenizer.num-codes", "24"]
    tokenize.main([*options, "--out", str(tmp_path / "memory"), "--json", str(tmp_path / "m.json")])
    streamed = [*options, "--out", str(tmp_path / "disk"), "--json", str(tmp_path / "d.json")]
    streamed += ["--report", str(tmp_path / "report")]
    if ranks == 1:
        tokenize.main([*streamed, "--stream"])
    else:
        said = on_two_ranks("tokenize", streamed)
        assert ["fingerprint" in text for text in said] == [True, False]
    memory, disk = (TokenArtifact.load(tmp_path / name) for name in ("memory", "disk"))
    np.testing.assert_allclose(disk.codebooks, memory.codebooks, rtol=1e-4, atol=1e-5)
    assert (disk.codes == memory.codes).mean() > 0.999
    np.testing.assert_array_equal(disk.item_ids, memory.item_ids)
    for key in ("embedding_fingerprint", "tokenizer", "mem", "collisions", "embeddings"):
        assert disk.manifest[key] == memory.manifest[key], key
    figures = [json.loads((tmp_path / f"{n}.json").read_text())["quality"] for n in "md"]
    for one, other in zip(figures[0]["levels"], figures[1]["levels"], strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    report = json.loads((tmp_path / "report" / "quality.json").read_text())
    assert report["floor_bound"]["delta"] > 0


def test_what_needs_the_embeddings_in_memory_is_refused(embeddings, tmp_path):
    options = ["--embeddings", str(embeddings), "--out", str(tmp_path / "tokens"), "--stream"]
    with pytest.raises(ValueError, match="stream: expected a fit of rq_kmeans, found opq"):
        tokenize.main(["--tokenizer", "opq", *options])
    with pytest.raises(ValueError, match="next_nearest needs the embeddings in memory"):
        tokenize.main([*options, *SIZES, "--collisions", "next_nearest"])
    with pytest.raises(ValueError, match="found --update"):
        tokenize.main([*options, "--update", str(tmp_path / "tokens")])
