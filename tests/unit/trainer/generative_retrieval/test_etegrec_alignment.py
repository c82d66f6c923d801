"""ETEGRec's losses against loops, and who learns from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenization.rq_vae import RQVAE
from trainer.generative_retrieval.etegrec_alignment import (
    Both,
    draw_pairs,
    histories,
    preference_semantic_loss,
    symmetric_divergence,
    token_chances,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_chances_of_tokens_follow_the_distances_along_the_walk():
    latents, codewords = normal(3, 4), normal(2, 5, 4, seed=1)
    found = token_chances(latents, codewords)
    for row in range(3):
        left = latents[row]
        for level in range(2):
            weights = [math.exp(-float(((left - word) ** 2).sum())) for word in codewords[level]]
            expected = [math.log(weight / sum(weights)) for weight in weights]
            assert found[row, level].tolist() == pytest.approx(expected, abs=1e-4)
            left = left - codewords[level][int(np.argmax(weights))]


def test_divergence_is_that_of_both_ways_summed_over_levels():
    a, b = (normal(3, 2, 4, seed=seed).log_softmax(2) for seed in (0, 1))
    total = 0.0
    for row in range(3):
        for level in range(2):
            for p, q in zip(a[row, level].tolist(), b[row, level].tolist(), strict=True):
                total += math.exp(p) * (p - q) + math.exp(q) * (q - p)
    assert float(symmetric_divergence(a, b)) == pytest.approx(total / 3, rel=1e-5)
    assert float(symmetric_divergence(a, a)) == 0.0


def test_preferences_and_items_find_each_other():
    preference, item = normal(4, 3), normal(4, 3, seed=1)

    def cosine(i, j):
        return float(preference[i] @ item[j] / (preference[i].norm() * item[j].norm())) / 0.3

    total = 0.0
    for i in range(4):
        total += math.log(sum(math.exp(cosine(i, j)) for j in range(4))) - cosine(i, i)
        total += math.log(sum(math.exp(cosine(j, i)) for j in range(4))) - cosine(i, i)
    found = preference_semantic_loss(preference, item, 0.3)
    assert float(found) == pytest.approx(total / 4, rel=1e-5)


def test_a_history_is_everything_before_the_item():
    outputs = normal(2, 3, 2, 4)  # two windows of three items of two levels
    window, place = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 1])
    pooled, first = histories(outputs, window, place)
    flat = outputs.flatten(1, 2)
    for at, (row, item) in enumerate([(0, 1), (1, 2), (1, 1)]):
        before = flat[row, : 2 * item + 1]  # start token and the tokens of the items before
        torch.testing.assert_close(pooled[at], before.mean(dim=0))
        torch.testing.assert_close(first[at], outputs[row, item, 0])


def test_pairs_are_items_with_one_before_them():
    there = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    every = draw_pairs(there, 10)
    assert sorted(map(tuple, every.tolist())) == [(0, 1), (0, 2), (2, 1)]
    assert len(draw_pairs(there, 2)) == 2
    assert len(draw_pairs(there[:, :1], 2)) == 0


def both():
    torch.manual_seed(0)
    embeddings = normal(6, 5).numpy()
    made = Both(RQVAE(num_levels=2, num_codes=3, hidden=(8,), latent_dim=4), embeddings, 4)
    made.tokenizer.standardizer.measure(embeddings)
    torch.nn.init.normal_(made.tokenizer.codebooks)
    return made


def test_losses_of_a_batch_are_those_of_its_pairs():
    made, outputs = both(), normal(2, 3, 2, 4)
    items = np.array([[0, 3, 5], [2, 1, -1]])
    pairs = torch.tensor([[0, 2], [1, 1]])
    quantization, divergence, contrast = made.losses(outputs, items, pairs, 0.5)
    embedding = made.items_NE[torch.tensor([5, 1])]
    pooled, first = histories(outputs, *pairs.T)
    network = made.tokenizer
    torch.testing.assert_close(quantization, network(embedding)[0])
    words = network.codebooks
    torch.testing.assert_close(
        divergence,
        symmetric_divergence(
            token_chances(network.encode(embedding), words),
            token_chances(network.encoder(made.heads[0](pooled)), words),
        ),
    )
    straight = network.quantize(network.encode(embedding))[0]
    expected = preference_semantic_loss(made.heads[1](first), network.decoder(straight), 0.5)
    torch.testing.assert_close(contrast, expected)
    nothing = made.losses(outputs, items, pairs[:0], 0.5)
    assert [float(loss) for loss in nothing] == [0.0, 0.0, 0.0]


def test_each_loss_reaches_both_sides():
    """Eq. 17 and 18 share their alignments: what is frozen decides who learns from them."""
    made, outputs = both(), normal(2, 3, 2, 4).requires_grad_()
    items, pairs = np.array([[0, 3, 5], [2, 1, -1]]), torch.tensor([[0, 2], [1, 1]])
    for index, (codebooks, encoder, generator) in enumerate(
        [(True, True, False), (True, True, True), (False, True, True)]
    ):
        made.zero_grad()
        outputs.grad = None
        made.losses(outputs, items, pairs, 0.5)[index].backward()
        grads = (made.tokenizer.codebooks.grad, made.tokenizer.encoder[0].weight.grad, outputs.grad)
        found = tuple(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
        assert found == (codebooks, encoder, generator)
