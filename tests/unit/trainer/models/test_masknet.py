import pytest
import torch

from trainer.models.masknet import MaskNetConfig

FEATURES = {"user": 3, "candidate": 2}


def normed(x, norm):
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def naive_block(block, features, x):
    first, _, second = block.mask
    mask = second.weight @ (first.weight @ features + first.bias).clamp(min=0) + second.bias
    return normed(block.hidden.weight @ (mask * x), block.norm).clamp(min=0)


def unsettle(tower):
    """Norms that are not the identity."""
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)


@pytest.mark.parametrize("structure", ["serial", "parallel"])
def test_equals_the_equations(structure):
    torch.manual_seed(0)
    hidden_dims = (6, 5) if structure == "parallel" else ()
    config = MaskNetConfig(
        num_blocks=2, block_dim=4, reduction=1.5, structure=structure, hidden_dims=hidden_dims
    )
    tower = config.build(FEATURES).double()
    unsettle(tower)
    x_BF = torch.randn(4, 5, dtype=torch.float64)
    expected = []
    for row in x_BF:
        fields = zip(tower.norms.norms, row.split([3, 2]), strict=True)
        hidden = torch.cat([normed(field, norm) for norm, field in fields])
        if structure == "serial":
            for block in tower.blocks:
                hidden = naive_block(block, row, hidden)
        else:
            *blocks, deep = tower.blocks
            hidden = torch.cat([naive_block(block, row, hidden) for block in blocks])
            for layer in deep:
                if isinstance(layer, torch.nn.Linear):
                    hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
        expected.append(hidden)
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_blocks": 0},
        {"structure": "parallel"},
        {"hidden_dims": (4,)},
        {"dropout": 0.5},
        {"reduction": 0.0},
    ],
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="MaskNet"):
        MaskNetConfig(**({"structure": "serial"} | wrong))
