from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tokenization.text_encoder import TextEncoder, mean_pool

TEXTS = ["a cake", "red", "", "a green candle with a red cake with a candle", "Red cake", "unknown"]


def one_by_one(folder, texts, max_length=32):
    """Encode each text alone, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state[0].double()
        pooled = sum(hidden) / len(hidden)
        rows.append((pooled / pooled.pow(2).sum().sqrt()).numpy())
    return np.stack(rows)


def test_mean_pool_leaves_padding_out():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_padding_batches_and_order_change_nothing(tiny_text_encoder, batch_size):
    seen = []
    encoder = TextEncoder(folder=tiny_text_encoder, batch_size=batch_size, max_length=32)
    embeddings = encoder.encode(TEXTS, progress=seen.append)
    assert embeddings.shape == (6, 16)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, one_by_one(tiny_text_encoder, TEXTS), atol=1e-5)
    np.testing.assert_allclose((embeddings**2).sum(axis=1), 1.0, rtol=1e-5)
    assert sum(seen) == len(TEXTS)
    assert max(seen) <= batch_size


def test_long_texts_are_cut(tiny_text_encoder):
    encoder = TextEncoder(folder=tiny_text_encoder, max_length=4)
    expected = one_by_one(tiny_text_encoder, TEXTS, max_length=4)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert not np.allclose(expected[3], one_by_one(tiny_text_encoder, TEXTS)[3], atol=1e-3)


def test_folders_and_texts_that_will_not_do(tiny_text_encoder, tmp_path):
    with pytest.raises(ValueError, match=r"found no config\.json"):
        TextEncoder(folder=tmp_path / "none").encode(["a cake"])
    with pytest.raises(ValueError, match="expected at least one text"):
        TextEncoder(folder=tiny_text_encoder).encode([])
    folder = tmp_path / "no_padding"
    shutil.copytree(tiny_text_encoder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no padding token"):
        TextEncoder(folder=folder).encode(["a cake"])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        TextEncoder(folder=tiny_text_encoder, batch_size=0)
