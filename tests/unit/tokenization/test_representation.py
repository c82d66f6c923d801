"""Captioning and alignment with a tiny, randomly initialised model of a real architecture."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenization.captioning import caption_loss, encode_contents, load_model, pooled
from tokenization.catalogue import Content
from tokenization.lora import add_lora, remove_lora
from tokenization.representation import Representation, _draw

WORDS = ["[PAD]", "[UNK]", "[END]", "red", "green", "blue", "cake", "candle", "sweet", "bright"]
TEXTS = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cake", "candle")]
CONTENTS = [Content(text=text) for text in TEXTS]
CAPTIONS = ["sweet" if "cake" in text else "bright" for text in TEXTS]
NO_PAIRS = np.zeros((0, 2), dtype=np.int64)
_FILE = io.BytesIO()
Image.new("RGB", (1, 1)).save(_FILE, "PNG")
PIXEL = _FILE.getvalue()


def run_ranks(code, words, *, num_ranks):
    """Run Python code on ranks of one process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env={**os.environ, **shared, "PYTHONPATH": os.getcwd(), "RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * num_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_llama")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(folder):
    model, preparation = load_model(folder)
    return model.eval(), preparation


def texts(*words):
    return [Content(text=text) for text in words]


def naive_caption_loss(model, preparation, text, caption):
    """Token by token, without padding."""
    tokenizer = preparation.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in [*tokenizer(caption, add_special_tokens=False)["input_ids"], 2]:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total -= float(torch.log_softmax(logits.detach(), dim=0)[token])
        ids = [*ids, token]
    return total


@torch.no_grad()
def test_the_caption_loss_is_equation_1_whatever_the_padding(folder):
    model, preparation = load(folder)
    words, captions = ["red", "green candle blue", "cake cake"], ["sweet", "bright sweet", "blue"]
    batch = preparation.batch(texts(*words), captions, max_length=16)
    expected = np.mean(
        [naive_caption_loss(model, preparation, *p) for p in zip(words, captions, strict=True)]
    )
    assert float(caption_loss(model, batch)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_pooling_is_the_mean_of_the_last_layer_s_tokens(folder):
    model, preparation = load(folder)
    both = pooled(model, preparation.batch(texts("red", "green candle blue"), max_length=16))
    ids = torch.tensor([[WORDS.index(word) for word in ("green", "candle", "blue")]])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    expected = states[0].mean(dim=0)
    torch.testing.assert_close(both[1], expected, rtol=1e-4, atol=1e-5)
    contents = texts("red", "green candle blue")
    unit = encode_contents(folder, contents, batch_size=1, max_length=16)
    np.testing.assert_allclose(unit[1], expected / expected.norm(), rtol=1e-4, atol=1e-5)
    cut = encode_contents(folder, texts("green candle blue cake"), batch_size=1, max_length=3)
    np.testing.assert_allclose(cut[0], unit[1], rtol=1e-5, atol=1e-6)


# Under low rank the random output layer stays, which keeps the loss high.
@pytest.mark.parametrize(("lora_rank", "fall"), [(None, 0.5), (4, 0.93)])
def test_captions_are_learnt(folder, tmp_path, lora_rank, fall):
    config = Representation(
        align_weight=0.0,
        lora_rank=lora_rank,
        num_steps=150,
        batch_size=6,
        learning_rate=3e-2 if lora_rank else 1e-2,
    )
    losses = config.fit(
        folder, tmp_path / "model", contents=CONTENTS, captions=CAPTIONS, pairs=NO_PAIRS
    )
    assert losses[-1] < fall * losses[0]
    model, preparation = load(tmp_path / "model")
    right = naive_caption_loss(model, preparation, "red cake", "sweet")
    assert right < naive_caption_loss(model, preparation, "red cake", "bright")


def similarity(folder, one, other):
    states = encode_contents(folder, texts(one, other), batch_size=2, max_length=16)
    return float(states[0] @ states[1])


def test_the_joint_objective_captions_and_brings_pairs_together(folder, tmp_path):
    pairs = np.array([[0, 2], [2, 4], [0, 4], [1, 3], [3, 5], [1, 5]])  # cakes, candles
    config = Representation(num_steps=80, batch_size=6, learning_rate=5e-3)
    losses = config.fit(
        folder, tmp_path / "model", contents=CONTENTS, captions=CAPTIONS, pairs=pairs
    )
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    together = similarity(tmp_path / "model", "red cake", "green cake")
    apart = similarity(tmp_path / "model", "red cake", "red candle")
    assert together > apart
    assert similarity(folder, "red cake", "green cake") - similarity(
        folder, "red cake", "red candle"
    ) < (together - apart)


def test_low_rank_updates_start_at_zero_train_alone_and_merge_exactly(folder):
    model, preparation = load(folder)
    batch = preparation.batch(CONTENTS, max_length=16)
    assert "labels" not in batch
    with torch.no_grad():
        before = model(**batch).logits
        wraps = add_lora(model, 2)
        torch.testing.assert_close(model(**batch).logits, before)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(name.endswith((".down", ".up")) for name in trained)
        for wrap in wraps:
            torch.nn.init.normal_(wrap.up, std=0.1)
        changed = model(**batch).logits
        for wrap in wraps:
            wrap.merge()
        remove_lora(model)
        torch.testing.assert_close(model(**batch).logits, changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before)


def test_queries_are_brought_to_what_was_clicked_for_them(folder, tmp_path):
    contents = [*CONTENTS, *texts("sweet", "bright")]
    pairs = np.array([[6, row] if row % 2 == 0 else [7, row] for row in range(6)])
    config = Representation(caption_weight=0.0, num_steps=60, batch_size=6, learning_rate=5e-3)
    config.fit(folder, tmp_path / "model", contents=contents, captions=[], pairs=pairs)
    for query, mine, other in (("sweet", "cake", "candle"), ("bright", "candle", "cake")):
        near, far = (
            similarity(tmp_path / "model", query, f"red {thing}") for thing in (mine, other)
        )
        assert near > far + 0.3


def test_pairs_are_drawn_by_their_weights_and_a_pair_of_weight_0_never(folder, tmp_path):
    pairs = np.array([[0, 2], [0, 1]])
    config = Representation(caption_weight=0.0, num_steps=3, batch_size=4)
    drawn = _draw(pairs, np.array([1.0, 0.0]), config)
    assert drawn.shape == (3, 4, 2)
    assert set(map(tuple, drawn.reshape(-1, 2).tolist())) == {(0, 2), (2, 0)}


class StoppedError(Exception):
    """What stops a training in the test."""


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_interrupted_training_ends_as_if_it_had_not_been(folder, tmp_path, lora_rank):
    pairs = np.array([[0, 2], [2, 4], [1, 3], [3, 5]])
    config = Representation(num_steps=9, batch_size=4, save_every=2, lora_rank=lora_rank)
    data = {"contents": CONTENTS, "captions": CAPTIONS, "pairs": pairs}
    whole = config.fit(folder, tmp_path / "whole", **data)

    def stop(step, _):
        if step == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        config.fit(folder, tmp_path / "model", **data, progress=stop)
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match=r"model.unfinished: is of a training with other settings"):
        replace(config, num_steps=8).fit(folder, tmp_path / "model", **data)
    steps = []
    losses = config.fit(folder, tmp_path / "model", **data, progress=lambda n, _: steps.append(n))
    assert (losses, steps) == (whole, [7, 8, 9])
    one, other = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole"]


def test_a_damaged_state_is_named(folder, tmp_path):
    (tmp_path / "model.unfinished").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"model.unfinished: damaged .*delete it to start anew"):
        Representation(num_steps=1, align_weight=0.0).fit(
            folder, tmp_path / "model", contents=CONTENTS, captions=CAPTIONS, pairs=NO_PAIRS
        )


def test_what_can_t_be_trained_is_named(folder, tmp_path):
    fit = partial(Representation().fit, folder, tmp_path)
    with pytest.raises(ValueError, match="captions: expected one for each item, at most 6, found"):
        fit(contents=CONTENTS, captions=[*CAPTIONS, "more"], pairs=NO_PAIRS)
    with pytest.raises(ValueError, match="pairs: expected rows of 6 contents"):
        fit(contents=CONTENTS, captions=CAPTIONS, pairs=np.array([[0, 6]]))
    with pytest.raises(ValueError, match="weights: expected one for each of 1 pairs"):
        fit(contents=CONTENTS, captions=CAPTIONS, pairs=np.array([[0, 1]]), weights=np.ones(2))
    with pytest.raises(ValueError, match="not both 0"):
        Representation(caption_weight=0.0, align_weight=0.0)
    with pytest.raises(ValueError, match="expected a folder of a causal language model"):
        load_model(tmp_path)
    _, preparation = load_model(folder)
    with pytest.raises(ValueError, match="this model reads texts alone"):
        preparation.batch([Content(text="red", image=PIXEL)], max_length=4)


WORKER = """
import sys
import numpy as np
import torch.distributed as dist
from pathlib import Path
from tokenization.catalogue import Content
from tokenization.representation import Representation

folder, out, texts, captions = sys.argv[1:]
dist.init_process_group("gloo")
Representation(num_steps=4, batch_size=4, learning_rate=1e-2).fit(
    Path(folder), Path(out), contents=[Content(text=t) for t in texts.split(",")],
    captions=captions.split(","), pairs=np.array([[0, 2], [2, 4], [1, 3], [3, 5]]),
)
dist.destroy_process_group()
"""


def test_two_ranks_train_the_model_of_one(folder, tmp_path):
    words = [str(folder), str(tmp_path / "two"), ",".join(TEXTS), ",".join(CAPTIONS)]
    run_ranks(WORKER, words, num_ranks=2)
    Representation(num_steps=4, batch_size=4, learning_rate=1e-2).fit(
        folder,
        tmp_path / "one",
        contents=CONTENTS,
        captions=CAPTIONS,
        pairs=np.array([[0, 2], [2, 4], [1, 3], [3, 5]]),
    )
    two, one = (load_model(tmp_path / name)[0].state_dict() for name in ("two", "one"))
    before = load_model(folder)[0].state_dict()
    assert not torch.equal(one["lm_head.weight"], before["lm_head.weight"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
