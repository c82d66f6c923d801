"""How the codewords of RQ-VAE and OPMQ move, and what their losses are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenization.autoencoder import recent_points, revive_dead_codes
from tokenization.opmq import OPMQ, OPMQNetwork, RunningMeans
from tokenization.rq_vae import RQVAE, RQVAENetwork


@pytest.fixture
def x_BD():  # noqa: N802
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def vae(**settings):
    torch.manual_seed(0)
    network = RQVAENetwork(6, RQVAE(num_levels=2, num_codes=4, hidden=(8,), latent_dim=3))
    torch.nn.init.normal_(network.codebooks)
    network.commitment = settings.get("commitment", 0.25)
    return network


def experts(**settings):
    torch.manual_seed(0)
    config = OPMQ(num_levels=3, num_codes=4, latent_dim=5, hidden=(8,), **settings)
    network = OPMQNetwork(6, config)
    torch.nn.init.normal_(network.codebooks)
    return network


def test_rq_vae_quantizes_greedily_and_its_losses_are_those_of_the_formula(x_BD):
    network = vae()
    latent = network.encode(x_BD).detach()
    straight, loss, codes, _ = network.quantize(latent)
    total, left = 0.0, latent.clone()
    for level in range(2):
        squares = ((left[:, None] - network.codebooks[level]) ** 2).sum(dim=2)
        np.testing.assert_array_equal(codes[:, level], squares.argmin(dim=1))
        total += 1.25 * float(squares.min(dim=1).values.mean().detach())
        left = left - network.codebooks[level][codes[:, level]].detach()
    torch.testing.assert_close(straight, latent - left)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


def test_the_gradient_passes_straight_through_to_the_encoder(x_BD):
    network = vae(commitment=0.0)
    latent = network.encode(x_BD).detach().requires_grad_()
    straight, _, _, _ = network.quantize(latent)
    weights = torch.randn_like(straight)
    (straight * weights).sum().backward()
    torch.testing.assert_close(latent.grad, weights)
    assert network.codebooks.grad is None  # the codebook loss alone moves them


def test_commitment_moves_the_latent_and_the_codebook_loss_the_codewords(x_BD):
    network = vae()
    latent = network.encode(x_BD).detach().requires_grad_()
    _, loss, codes, _ = network.quantize(latent)
    loss.backward()
    assert network.codebooks.grad.abs().sum() > 0
    unused = torch.bincount(codes[:, 0], minlength=4) == 0
    assert network.codebooks.grad[0][unused].abs().sum() == 0
    assert latent.grad.abs().sum() > 0


def test_dead_codes_move_onto_points_and_the_others_stay():
    codewords = torch.zeros(4, 3)
    points = torch.randn(10, 3)
    counts = torch.tensor([5, 0, 2, 0])
    moved = revive_dead_codes(codewords, counts, points, torch.Generator().manual_seed(0))
    assert moved == 2
    assert codewords[[0, 2]].abs().sum() == 0
    for code in (1, 3):
        assert (points == codewords[code]).all(dim=1).any()


def test_reviving_uses_more_codes():
    points = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    points[:1000] *= 0.01
    settings = {"num_levels": 2, "num_codes": 64, "hidden": (32,), "latent_dim": 8}
    settings |= {"num_epochs": 12, "batch_size": 100, "learning_rate": 5e-3}
    revived = RQVAE(**settings).fit(points).encode(points)
    left_alone = RQVAE(**settings, revive_every=1000).fit(points).encode(points)
    used = [len(np.unique(codes[:, 1])) for codes in (revived, left_alone)]
    assert used[0] > used[1]


def test_opmq_losses_are_those_of_the_equations(x_BD):
    network = experts(commitment=0.5, orthogonality=2.0)
    loss, codes, _ = network(x_BD)
    total_sum = 0.0
    pull = 0.0
    flat = []
    for expert in range(3):
        z = x_BD @ network.experts[expert] + network.biases[expert]  # Eq. 2
        squares = ((z[:, None] - network.codebooks[expert]) ** 2).sum(dim=2)
        np.testing.assert_array_equal(codes[expert], squares.argmin(dim=1))  # Eq. 3
        total_sum = total_sum + network.codebooks[expert][codes[expert]]
        pull = pull + squares.min(dim=1).values.mean()
        flat.append((network.experts[expert] / network.experts[expert].norm()).flatten())
    v = torch.stack(flat)
    orthogonality = ((v @ v.T - torch.eye(3)) ** 2).sum()  # Eq. 5
    recon = ((network.decoder(total_sum) - x_BD) ** 2).sum(dim=1).mean()  # Eq. 4
    expected = recon + 0.5 * pull + 2.0 * orthogonality
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_equation_4_gives_codewords_no_gradient_and_reaches_the_experts(x_BD):
    network = experts(codewords="codebook_loss", commitment=0.0, orthogonality=0.0)
    z_EBH = network.encode(x_BD)
    codes = network.choose(z_EBH.detach())
    s_EBH = network.codebooks[torch.arange(3).unsqueeze(1), codes]
    straight = z_EBH + (s_EBH - z_EBH).detach()
    network.decoder(straight.sum(dim=0)).square().sum().backward()
    assert network.codebooks.grad is None
    assert network.experts.grad.abs().sum() > 0


def test_codebook_loss_moves_codewords_towards_their_latents(x_BD):
    network = experts(codewords="codebook_loss")
    loss, codes, z_EBH = network(x_BD)
    loss.backward()
    for expert in range(3):
        for code in range(4):
            mine = z_EBH[expert][codes[expert] == code]
            expected = 2 * (network.codebooks[expert, code].detach() - mine).sum(dim=0) / 40
            torch.testing.assert_close(network.codebooks.grad[expert, code], expected)


def test_under_ema_codewords_have_no_gradient_and_are_running_means():
    assert not experts(codewords="ema").codebooks.requires_grad
    codebooks = torch.zeros(1, 2, 1)
    means = RunningMeans(codebooks, decay=0.5)
    z = torch.tensor([[[2.0], [4.0], [9.0]]])
    codes = torch.tensor([[0, 0, 1]])
    means.step(codes, z)
    # Counts start at 1 with sum 0: (0 + 6)/2 over (1 + 2)/2, and (0 + 9)/2 over (1 + 1)/2.
    torch.testing.assert_close(codebooks[0, :, 0], torch.tensor([2.0, 4.5]))
    for _ in range(60):
        means.step(codes, z)
    torch.testing.assert_close(codebooks[0, :, 0], torch.tensor([3.0, 9.0]))


@pytest.mark.parametrize("rule", ["ema", "codebook_loss"])
@pytest.mark.parametrize(("num_levels", "num_codes"), [(3, 16), (32, 300)])
def test_the_paper_s_sizes_train_by_both_rules(rule, num_levels, num_codes):
    points = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    config = OPMQ(
        num_levels=num_levels,
        num_codes=num_codes,
        latent_dim=8,
        num_epochs=2,
        batch_size=200,
        codewords=rule,
    )
    codes = config.fit(points).encode(points)
    assert codes.shape == (400, num_levels)
    assert codes.max() < num_codes


def test_the_regulariser_makes_experts_orthogonal():
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    settings = {"num_levels": 6, "num_codes": 4, "latent_dim": 2, "num_epochs": 60}
    settings |= {"batch_size": 100, "learning_rate": 1e-2}

    def overlap(orthogonality):
        matrices = OPMQ(**settings, orthogonality=orthogonality).fit(points).tensors["experts"]
        flat = matrices.reshape(6, -1)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        return np.abs(flat @ flat.T - np.eye(6)).max()

    assert overlap(5.0) < 0.05 < overlap(0.0)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (OPMQ, {"codewords": "hope"}, "expected 'ema' or 'codebook_loss', found 'hope'"),
        (OPMQ, {"ema_decay": 1.0}, "ema_decay: expected 0 to below 1"),
        (OPMQ, {"commitment": -1.0}, "expected at least 0"),
        (RQVAE, {"learning_rate": 0.0}, "above 0"),
    ],
)
def test_settings_out_of_range(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_small_last_batch_is_filled_up_with_the_one_before():
    points = torch.arange(20.0).view(10, 2).requires_grad_()
    first = recent_points(None, points[:6], 4)
    assert not first.requires_grad
    assert first.tolist() == points[:6].tolist()
    assert recent_points(first, points[2:7], 4).tolist() == points[2:7].tolist()
    assert recent_points(first, points[9:], 4).tolist() == points[[3, 4, 5, 9]].tolist()
    assert recent_points(points[:1].detach(), points[9:], 4).tolist() == points[[0, 9]].tolist()
    sides = recent_points(first.expand(3, 6, 2), points[9:].expand(3, 1, 2), 4, dim=1)
    assert sides.shape == (3, 4, 2)
