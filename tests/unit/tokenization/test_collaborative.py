"""Losses of LETTER, DAS and DOS against loops, and what their tokenizers look at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenization import residual
from tokenization.autoencoder import network_tensors
from tokenization.collaborative import info_nce, join_collaborative
from tokenization.das import DAS, alignment_loss
from tokenization.dos import DOS, DOSNetwork, match_loss
from tokenization.embedding_table import EmbeddingTable
from tokenization.kmeans import fit_kmeans
from tokenization.letter import LETTER, diversity_loss, drawn_from, groups_of

SIZES = {"num_levels": 2, "num_codes": 4, "hidden": (8,), "latent_dim": 6, "collaborative_dim": 3}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def items(num_items=40, seed=0):
    return np.random.default_rng(seed).normal(size=(num_items, 8)).astype(np.float32)


def started(config):
    """A network on its starting codebooks."""
    torch.manual_seed(0)
    network = config.network(5)
    network.measure(items())
    network.start(items())
    return network


def share(scores, right):
    """-log of the softmax of one score among a list."""
    return math.log(sum(math.exp(s) for s in scores)) - scores[right]


def test_info_nce_is_that_of_a_loop():
    a, b = normal(5, 3), normal(5, 3, seed=1)
    loop = [share([float(a[i] @ b[j]) / 0.5 for j in range(5)], i) for i in range(5)]
    assert float(info_nce(a, b, temperature=0.5)) == pytest.approx(sum(loop) / 5, rel=1e-5)


def test_diversity_draws_to_one_codeword_and_away_from_all_but_the_own():
    codewords, codes = normal(4, 3), torch.tensor([2, 0, 3, 2])
    drawn = torch.tensor([1, 3, -1, 0])
    loop = []
    for own, other in zip(codes.tolist(), drawn.tolist(), strict=True):
        if other >= 0:
            others = [k for k in range(4) if k != own]
            scores = [float(codewords[own] @ codewords[k]) for k in others]
            loop.append(share(scores, others.index(other)))
    found = diversity_loss(codewords, codes, drawn)
    assert float(found) == pytest.approx(sum(loop) / len(loop), rel=1e-5)
    assert float(diversity_loss(codewords, codes, torch.full((4,), -1))) == 0.0


def test_what_is_drawn_is_of_the_own_group_and_never_oneself():
    group = torch.tensor([0, 1, 0, 2, 0])
    codes = torch.arange(5).repeat(50)
    drawn = drawn_from(codes, group).view(50, 5)
    assert set(drawn[:, 0].tolist()) == {2, 4}
    assert set(drawn[:, 2].tolist()) == {0, 4}
    assert set(drawn[:, 1].tolist()) == set(drawn[:, 3].tolist()) == {-1}


def test_groups_of_codewords_are_of_nearly_equal_size():
    crowded = np.concatenate([items(48) * 0.5, items(16, seed=1) + 2])
    plain = fit_kmeans(crowded, num_codes=4, num_iterations=10, seed=0)
    uneven, even = (
        np.bincount(groups, minlength=4)
        for groups in (residual.nearest(crowded, plain), groups_of(crowded, 4, seed=0))
    )
    assert even.max() <= 20 < uneven.max()
    assert even.min() >= 12 > uneven.min()


def test_letter_adds_its_terms_to_rq_vae_s_loss():
    network = started(LETTER(**SIZES, alpha=0.3, beta=0.2, num_groups=2))
    x = torch.from_numpy(items())
    torch.manual_seed(7)
    loss, codes, _ = network(x)
    content, collaborative, _ = network.sides(x)
    straight, quantization, _, _ = network.quantize(network.encoder(content))
    recon = (network.decoder(straight) - content).square().sum(dim=1).mean()
    cf = info_nce(straight, network.to_latent(collaborative))
    torch.manual_seed(7)
    diversity = [
        diversity_loss(
            network.codebooks[level],
            codes[:, level],
            drawn_from(codes[:, level], network._group_LK[level]),
        )
        for level in range(2)
    ]
    expected = recon + quantization + 5 * (0.3 * cf + 0.2 * sum(diversity) / 2)
    torch.testing.assert_close(loss, expected)


def test_das_aligns_with_the_factor_and_with_the_most_alike_item():
    z, factor, behaviour = normal(4, 3), normal(4, 3, seed=1), normal(4, 2, seed=2)

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    total = 0.0
    for i in range(4):
        total += share([cosine(z[i], factor[j]) / 0.2 for j in range(4)], i)
        total += share([cosine(factor[i], z[j]) / 0.2 for j in range(4)], i)
        others = [j for j in range(4) if j != i]
        alike = [cosine(behaviour[i], behaviour[j]) for j in others]
        scores = [cosine(z[i], z[j]) / 0.2 for j in others]
        total += share(scores, alike.index(max(alike)))
    found = alignment_loss(z, factor, behaviour, temperature=0.2)
    assert float(found) == pytest.approx(total / 4, rel=1e-5)
    assert float(alignment_loss(z[:1], factor[:1], behaviour[:1], temperature=0.2)) == 0.0


def test_das_weighs_its_three_parts():
    network = started(DAS(**SIZES, alpha=0.7, beta=0.4))
    x = torch.from_numpy(items())
    loss, _, _ = network(x)
    content, collaborative, _ = network.sides(x)
    straight, quantization, _, _ = network.quantize(network.encoder(content))
    recon = (network.decoder(straight) - content).square().sum(dim=1).mean()
    factors = network.factors(collaborative)
    debiased, bias = factors[:, :6], factors[:, 6:]
    cosines = (debiased * bias).sum(1) / (debiased.norm(dim=1) * bias.norm(dim=1))
    cf = (network.rebuild(factors) - collaborative).square().mean() + cosines.square().mean()
    aligned = alignment_loss(straight, debiased, collaborative, temperature=0.1)
    torch.testing.assert_close(loss, recon + quantization + 5 * (0.7 * cf + 0.4 * aligned))


def test_dos_matches_pairs_by_binary_cross_entropy():
    user, item, bias = normal(3, 4), normal(3, 4, seed=1), torch.tensor(0.3)
    positive, negative = [], []
    for i in range(3):
        for j in range(3):
            logit = float(user[i] @ item[j]) / 2 + 0.3
            chance = 1 / (1 + math.exp(-logit))
            (positive if i == j else negative).append(-math.log(chance if i == j else 1 - chance))
    expected = sum(positive) / 6 + sum(negative) / 12
    assert float(match_loss(user, item, bias)) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(match_loss(user[:1], item[:1], bias))


@pytest.mark.parametrize(
    "config",
    [
        LETTER(**SIZES, alpha=0.3, beta=0.0, num_groups=2),
        DAS(**SIZES, alpha=0.7, beta=0.4),
        DOS(**SIZES, match_weight=0.7),
    ],
    ids=lambda config: config.kind,
)
def test_items_without_known_behaviour_teach_nothing_of_behaviour(config):
    network = started(config)
    x = torch.from_numpy(items())
    cold = torch.arange(len(x)) % 3 == 0
    x[cold, 5:] = network.collaborative.mean + 1e-7  # the mean, and rounding
    assert (network.sides(x)[2] == ~cold).all()

    def content_alone(x):
        content, _, _ = network.sides(x)
        straight, quantization, _, _ = network.quantize(network.encoder(content))
        return (network.decoder(straight) - content).square().sum(dim=1).mean() + quantization

    further = network(x[~cold])[0] - content_alone(x[~cold])
    assert float(further.detach()) > 0.01
    torch.testing.assert_close(network(x)[0], content_alone(x) + further)
    torch.testing.assert_close(network(x[cold])[0], content_alone(x[cold]))


def turned() -> DOSNetwork:
    network = started(DOS(**SIZES, primary_share=0.5, match_weight=0.7))
    torch.nn.init.normal_(network.skew_LHH, std=0.3)
    torch.nn.init.normal_(network.codebooks)
    return network


def test_dos_rotations_are_orthogonal_and_start_on_principal_directions():
    network = started(DOS(**SIZES))
    with torch.no_grad():
        latents = network.encode(torch.from_numpy(items()[:, :5]))
    centred = latents - latents.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    found = network.rotations()[0, :3].detach()
    torch.testing.assert_close(
        (found * directions[:3]).sum(1).abs(), torch.ones(3), atol=1e-3, rtol=0
    )
    rotations = turned().rotations().detach()
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(6).expand(2, 6, 6), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_dos_quantizes_primary_features_and_passes_on_the_rest():
    network = turned()
    latent = normal(7, 6)
    _, _, codes, seen = network.quantize(latent)
    left = latent
    for level in range(2):
        turned_left = left @ network.rotations()[level].T
        words = network.codebooks[level] @ network.rotations()[level].T
        distances = ((turned_left[:, None, :3] - words[None, :, :3]) ** 2).sum(dim=2)
        assert codes[:, level].tolist() == distances.argmin(dim=1).tolist()
        torch.testing.assert_close(seen[:, level], left)
        primary = turned_left.clone()
        primary[:, :3] -= words[codes[:, level], :3]  # secondary features stay as they are
        left = primary @ network.rotations()[level]
    network.finish()
    tensors = network_tensors(network)
    torch.testing.assert_close(torch.from_numpy(tensors["codebooks"]), network.codewords())


def test_dos_adds_both_flows():
    network = turned()
    x = torch.from_numpy(items())
    loss, _, _ = network(x)
    content, collaborative, _ = network.sides(x)
    item, of_items, _, _ = network.quantize(network.encoder(content))
    user, of_users, _, _ = network.quantize(network.user_flow(collaborative))
    recon = (network.decoder(item) - content).square().sum(dim=1).mean()
    match = match_loss(user, item, network.match_bias)
    torch.testing.assert_close(loss, recon + of_items + of_users + 5 * 0.7 * match)
    loss.backward()
    assert network.skew_LHH.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [LETTER, DAS, DOS])
def test_codes_are_of_the_content_and_behaviour_shapes_them(kind):
    config = kind(**SIZES, num_epochs=3, batch_size=20)
    fitted = config.fit(items())
    codes = fitted.encode(items())
    unknown = items()
    unknown[:, 5:] = 0.0
    np.testing.assert_array_equal(fitted.encode(unknown), codes)
    other = items()
    other[:, 5:] = items(seed=1)[:, 5:]
    assert not np.allclose(config.fit(other).codebooks, fitted.codebooks)
    with pytest.raises(ValueError, match="3 collaborative columns, found 3 columns in all"):
        config.fit(items()[:, :3])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LETTER, {"alpha": -1.0}, "alpha and beta: expected at least 0"),
        (LETTER, {"num_groups": 0}, "num_groups: expected at least 1"),
        (DAS, {"temperature": 0.0}, "above 0"),
        (DOS, {"primary_share": 0.0}, "primary_share"),
        (DOS, {"collaborative_dim": 0}, "collaborative_dim: expected at least 1"),
    ],
)
def test_settings_out_of_range(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_items_without_behaviour_get_the_mean():
    content = EmbeddingTable(
        item_ids=np.array([5, 3, 9]), embeddings=items(3)[:, :2], made={"encoder": "minilm"}
    )
    behaviour = EmbeddingTable(
        item_ids=np.array([9, 7, 5]), embeddings=items(3)[:, 2:5], made={"log_rows": 80}
    )
    joined = join_collaborative(content, behaviour)
    assert joined.item_ids.tolist() == [5, 3, 9]
    np.testing.assert_array_equal(joined.embeddings[:, :2], content.embeddings)
    np.testing.assert_array_equal(joined.embeddings[[0, 2], 2:], behaviour.embeddings[[2, 0]])
    mean = behaviour.embeddings[[0, 2]].mean(axis=0)
    np.testing.assert_allclose(joined.embeddings[1, 2:], mean, rtol=1e-6)
    assert joined.made["log_rows"] == 80
    strangers = EmbeddingTable(item_ids=np.array([1]), embeddings=items(1))
    with pytest.raises(ValueError, match="none of their 1 items"):
        join_collaborative(content, strangers)
