import pytest
import torch

from trainer.models.autoint import AutoIntConfig

FEATURES = {"user": 3, "candidate": 3, "dense": 3}


def naive_layer(layer, vectors, *, num_heads, head_dim):
    """Field by field and head by head (AutoInt Eq. 5 to 8); no division of scores."""
    query, key, value, residual = layer.project.weight.chunk(4)
    out = []
    for m, vector in enumerate(vectors):
        heads = []
        for h in range(num_heads):
            rows = slice(h * head_dim, (h + 1) * head_dim)
            scores = torch.stack(
                [torch.dot(query[rows] @ vector, key[rows] @ other) for other in vectors]
            )
            weights = scores.exp() / scores.exp().sum()
            heads.append(
                sum(w * (value[rows] @ other) for w, other in zip(weights, vectors, strict=True))
            )
        out.append((torch.cat(heads) + residual @ vectors[m]).clamp(min=0))
    return out


@pytest.mark.parametrize("hidden_dims", [(), (6, 4)])
def test_equals_the_equations(hidden_dims):
    torch.manual_seed(0)
    config = AutoIntConfig(num_layers=2, num_heads=2, head_dim=2, hidden_dims=hidden_dims)
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(4, 9, dtype=torch.float64)
    expected = []
    for row in x_BF:
        vectors = list(row.split(3))
        for layer in tower.blocks[:2]:
            vectors = naive_layer(layer, vectors, num_heads=2, head_dim=2)
        parts = vectors
        if hidden_dims:
            hidden = row
            for layer in tower.blocks[2]:
                if isinstance(layer, torch.nn.Linear):
                    hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
            parts = [*vectors, hidden]
        expected.append(torch.cat(parts))
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))
    assert tower.out_dim == 3 * 4 + (hidden_dims[-1] if hidden_dims else 0)


def test_features_of_unequal_dims_are_refused_by_name():
    with pytest.raises(ValueError, match=r"AutoInt .*found \[3, 8\].*'dense': 8.*field_dim"):
        AutoIntConfig().build({**FEATURES, "dense": 8})


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"num_heads": 0}, {"dropout": 0.5}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=f"AutoInt: {next(iter(wrong))}"):
        AutoIntConfig(**wrong)
