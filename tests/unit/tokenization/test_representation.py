"""Captioning and alignment with a tiny, randomly initialised model of a real architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tokenization.representation import (
    Representation,
    add_lora,
    caption_batch,
    caption_loss,
    pooled,
    remove_lora,
)

WORDS = ["[PAD]", "[UNK]", "[END]", "red", "green", "blue", "cake", "candle", "sweet", "bright"]
TEXTS = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cake", "candle")]
CAPTIONS = ["sweet" if "cake" in text else "bright" for text in TEXTS]


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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def naive_caption_loss(model, tokenizer, text, caption):
    """Token by token, without padding."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in [*tokenizer(caption, add_special_tokens=False)["input_ids"], 2]:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total -= float(torch.log_softmax(logits.detach(), dim=0)[token])
        ids = [*ids, token]
    return total


@torch.no_grad()
def test_the_caption_loss_is_equation_1_whatever_the_padding(folder):
    model, tokenizer = load(folder)
    texts, captions = ["red", "green candle blue", "cake cake"], ["sweet", "bright sweet", "blue"]
    batch = caption_batch(tokenizer, texts, captions, max_length=16)
    expected = np.mean(
        [naive_caption_loss(model, tokenizer, *pair) for pair in zip(texts, captions, strict=True)]
    )
    assert float(caption_loss(model, **batch)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_pooling_is_the_mean_of_the_last_layer_s_tokens(folder):
    model, tokenizer = load(folder)
    both = pooled(model, tokenizer, ["red", "green candle blue"], 16)
    ids = torch.tensor([[WORDS.index(word) for word in ("green", "candle", "blue")]])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(both[1], states[0].mean(dim=0), rtol=1e-4, atol=1e-5)


# Under low rank the random output layer stays, which keeps the loss high.
@pytest.mark.parametrize(("lora_rank", "fall"), [(None, 0.5), (4, 0.93)])
def test_captions_are_learnt(folder, tmp_path, lora_rank, fall):
    config = Representation(
        folder=folder,
        out=tmp_path / "model",
        align_weight=0.0,
        lora_rank=lora_rank,
        num_steps=150,
        batch_size=6,
        learning_rate=3e-2 if lora_rank else 1e-2,
    )
    losses = config.fit(TEXTS, CAPTIONS, np.zeros((0, 2), dtype=np.int64))
    assert losses[-1] < fall * losses[0]
    model, tokenizer = load(tmp_path / "model")
    right = naive_caption_loss(model, tokenizer, "red cake", "sweet")
    assert right < naive_caption_loss(model, tokenizer, "red cake", "bright")


def similarity(folder, one, other):
    model, tokenizer = load(folder)
    with torch.no_grad():
        states = torch.nn.functional.normalize(pooled(model, tokenizer, [one, other], 16), dim=1)
    return float(states[0] @ states[1])


def test_the_joint_objective_captions_and_brings_pairs_together(folder, tmp_path):
    pairs = np.array([[0, 2], [2, 4], [0, 4], [1, 3], [3, 5], [1, 5]])  # cakes, candles
    config = Representation(
        folder=folder, out=tmp_path / "model", num_steps=80, batch_size=6, learning_rate=5e-3
    )
    losses = config.fit(TEXTS, CAPTIONS, pairs)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    together = similarity(tmp_path / "model", "red cake", "green cake")
    apart = similarity(tmp_path / "model", "red cake", "red candle")
    assert together > apart
    assert similarity(folder, "red cake", "green cake") - similarity(
        folder, "red cake", "red candle"
    ) < (together - apart)


def test_low_rank_updates_start_at_zero_train_alone_and_merge_exactly(folder):
    model, tokenizer = load(folder)
    batch = caption_batch(tokenizer, TEXTS, CAPTIONS, max_length=16)
    del batch["labels"]
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


def test_what_can_t_be_trained_is_named(folder, tmp_path):
    no_pairs = np.zeros((0, 2), dtype=np.int64)
    config = Representation(folder=folder, out=tmp_path)
    with pytest.raises(ValueError, match="captions: expected one for each of 6 texts, found 5"):
        config.fit(TEXTS, CAPTIONS[:5], no_pairs)
    with pytest.raises(ValueError, match="pairs: expected rows of 6 texts"):
        config.fit(TEXTS, CAPTIONS, np.array([[0, 6]]))
    with pytest.raises(ValueError, match="not both 0"):
        Representation(folder=folder, out=tmp_path, caption_weight=0.0, align_weight=0.0)
    with pytest.raises(ValueError, match="expected a folder of a causal language model"):
        Representation(folder=tmp_path, out=tmp_path).fit(TEXTS, CAPTIONS, no_pairs)
