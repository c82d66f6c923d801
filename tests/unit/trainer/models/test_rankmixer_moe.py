import pytest
import torch
from torch.nn.functional import gelu, layer_norm
from torch.utils.checkpoint import checkpoint

from trainer.models.rankmixer_moe import RankMixerMoEConfig
from trainer.models.tower import RegularizedTower
from trainer.modules.moe import PerTokenMoE
from trainer.modules.token_mixing import mix_tokens

FEATURES = {"user": 6, "candidate": 5}
SIZES = {"num_tokens": 4, "dim": 8, "num_layers": 2, "num_experts": 3}


def naive_moe(moe, x_BTD, gates=None):
    """Token by token, expert by expert: sum of gate times network."""
    out = torch.zeros_like(x_BTD)
    for row, tokens in enumerate(x_BTD):
        for t, x in enumerate(tokens):
            router = moe.router
            gate = (x @ router.weight_TIO[t] + router.bias_TO[t]).clamp(min=0)
            gate = gate if gates is None or gates[row] is None else gates[row][t]
            for e in range(moe.num_experts):
                hidden = gelu(x @ moe.weight_in_TDEK[t, :, e] + moe.bias_in_TEK[t, e])
                expert = hidden @ moe.weight_out_TEKD[t, e] + moe.bias_out_TED[t, e]
                out[row, t] += gate[e] * expert
    return out


@pytest.fixture
def moe():
    torch.manual_seed(0)
    return PerTokenMoE(
        num_tokens=3, dim=6, hidden_dim=5, num_experts=4, training_mode="sparse"
    ).double()


@pytest.mark.parametrize("training", [True, False])
def test_mixture_equals_a_loop_over_experts(moe, training):
    torch.nn.init.normal_(moe.router.bias_TO)
    x_BTD = torch.randn(7, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = naive_moe(moe, x_BTD)
        torch.testing.assert_close(moe.train(training)(x_BTD), expected)


@pytest.mark.parametrize("closed", ["all", "one"])
def test_experts_without_rows_are_left_out_of_evaluation(moe, closed):
    moe.eval()
    moe.router.bias_TO.data[:, slice(None) if closed == "all" else 1] = -100
    x_BTD = torch.randn(5, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(moe(x_BTD), naive_moe(moe, x_BTD))
        assert moe(x_BTD).any() == (closed == "one")


def test_dense_training_sends_each_row_through_one_of_two_routers():
    torch.manual_seed(0)
    moe = PerTokenMoE(
        num_tokens=3, dim=6, hidden_dim=5, num_experts=4, training_mode="dense"
    ).double()
    x_BTD = torch.randn(40, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        out = moe(x_BTD)
        dense = moe.dense_router(x_BTD).softmax(dim=2)
        by_relu = naive_moe(moe, x_BTD)
        by_softmax = naive_moe(moe, x_BTD, gates=list(dense))
        close = [
            [torch.allclose(found, expected) for found, expected in zip(out, side, strict=True)]
            for side in (by_relu, by_softmax)
        ]
        assert all(a != b for a, b in zip(*close, strict=True))
        assert 8 < sum(close[0]) < 32
        torch.testing.assert_close(moe.eval()(x_BTD), by_relu)


def test_penalty_is_the_sum_of_relu_gates(moe):
    x_BTD = torch.randn(9, 3, 6, dtype=torch.float64)
    moe(x_BTD)
    penalty, open_TE = moe.pop_penalty()
    gate = torch.stack(
        [
            torch.stack(
                [
                    x @ w + b
                    for x, w, b in zip(row, moe.router.weight_TIO, moe.router.bias_TO, strict=True)
                ]
            )
            for row in x_BTD
        ]
    ).clamp(min=0)
    assert penalty.item() == pytest.approx(gate.sum().item() / 9, rel=1e-6)
    torch.testing.assert_close(open_TE.double(), (gate > 0).double().mean(0))
    with pytest.raises(RuntimeError, match="training forward pass"):
        moe.pop_penalty()


def test_tower_equals_blocks_of_mixing_and_mixtures():
    torch.manual_seed(0)
    tower = RankMixerMoEConfig(**SIZES).build(FEATURES).double().eval()
    x_BF = torch.randn(4, 11, dtype=torch.float64)
    with torch.no_grad():
        x = tower.tokenize(x_BF)
        for block in tower.blocks:
            for norm, new in ((block.mixing_norm, mix_tokens), (block.ffn_norm, None)):
                made = new(x) if new else naive_moe(block.ffn, x)
                x = layer_norm(made + x, (8,), norm.weight, norm.bias)
        torch.testing.assert_close(tower(x_BF), x.mean(1))


def trained(config, steps):
    """Open share of experts at the end of a small regression."""
    torch.manual_seed(0)
    tower = config.build(FEATURES)
    x_BF = torch.randn(128, 11)
    target = torch.randn(128, 8)
    optimizer = torch.optim.Adam(tower.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (tower(x_BF) - target).square().mean() + tower.auxiliary_loss()
        loss.backward()
        optimizer.step()
    tower(x_BF)
    shares = torch.stack([mixture.pop_penalty()[1] for mixture in tower.mixtures])
    return tower, shares.mean().item()


def test_penalty_closes_experts_down_to_the_budget():
    config = RankMixerMoEConfig(**SIZES, open_share=0.4, training="dense")
    _, at_first = trained(config, 0)
    tower, at_last = trained(config, 150)
    assert at_first > 0.7
    assert at_last == pytest.approx(0.4, abs=0.15)
    assert tower.penalty_weight > config.penalty
    assert isinstance(tower, RegularizedTower)


def test_weight_of_the_penalty_moves_by_one_step_in_the_right_direction():
    for share, factor in ((0.01, 1.5), (1.0, 1 / 1.5)):
        torch.manual_seed(0)
        config = RankMixerMoEConfig(**SIZES, open_share=share, penalty=0.1, penalty_step=1.5)
        tower = config.build(FEATURES)
        tower(torch.randn(256, 11))
        penalties = sum(mixture._penalty for mixture in tower.mixtures)
        assert tower.auxiliary_loss().item() == pytest.approx(0.1 * penalties.item(), rel=1e-5)
        assert tower.penalty_weight.item() == pytest.approx(0.1 * factor)


def test_recomputed_blocks_give_the_same_loss_and_gradients():
    x_BF = torch.randn(32, 11)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        tower = RankMixerMoEConfig(**SIZES, penalty=0.01).build(FEATURES)
        torch.manual_seed(1)
        x_BTD = tower.tokenize(x_BF)
        for block in tower.blocks:
            x_BTD = checkpoint(block, x_BTD, use_reentrant=False) if recompute else block(x_BTD)
        loss = x_BTD.square().mean() + tower.auxiliary_loss()
        loss.backward()
        found.append([loss, *(weight.grad for weight in tower.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast_stays_near_fp32(training):
    torch.manual_seed(0)
    tower = RankMixerMoEConfig(**SIZES, training="sparse").build(FEATURES).train(training)
    x_BF = torch.randn(32, 11)
    expected = tower(x_BF)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tower(x_BF)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


def test_dead_experts_are_counted():
    tower = RankMixerMoEConfig(**SIZES).build(FEATURES)
    tower.blocks[0].ffn.router.bias_TO.data[:, 1] = -100
    for _ in range(1000):
        tower.blocks[0].ffn.remember(torch.tensor([[1.0, 0.0, 1.0]] * 4))
    assert tower.num_dead == 4


def test_dead_experts_are_reported_every_hundred_steps(caplog):
    caplog.set_level("INFO")
    tower = RankMixerMoEConfig(**SIZES).build(FEATURES)
    tower.mixtures[0].open_share_TE[:, 1] = 0
    tower.mixtures[0].router.bias_TO.data[:, 1] = -100
    x_BF = torch.randn(2, 11)
    for step in range(1, 201):
        tower(x_BF)
        tower.auxiliary_loss()
        assert len(caplog.records) == step // 100
    assert "4 of 24 experts are dead" in caplog.records[-1].message


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_tokens": 3}, "must be a multiple of num_tokens"),
        ({"num_experts": 1}, "num_experts is 1"),
        ({"open_share": 0.0}, "open_share is 0.0"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"penalty_step": 1.0}, "penalty_step 1.0"),
    ],
)
def test_settings_without_meaning_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        RankMixerMoEConfig(**(SIZES | wrong))
