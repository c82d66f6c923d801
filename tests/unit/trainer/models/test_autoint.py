import pytest
import torch

from trainer.models.autoint import AutoIntConfig, InteractingLayer

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


@pytest.mark.parametrize(
    ("in_dim", "num_fields", "num_heads", "head_dim"),
    [(3, 5, 2, 4), (6, 4, 1, 2), (2, 1, 3, 1), (4, 7, 4, 3)],
)
def test_a_layer_and_its_gradients_equal_the_equations(in_dim, num_fields, num_heads, head_dim):
    torch.manual_seed(0)
    layer = InteractingLayer(in_dim, num_heads=num_heads, head_dim=head_dim).double()
    x_BNI = torch.randn(3, num_fields, in_dim, dtype=torch.float64, requires_grad=True)
    sizes = {"num_heads": num_heads, "head_dim": head_dim}
    naive = torch.stack([torch.stack(naive_layer(layer, list(row), **sizes)) for row in x_BNI])
    out = layer(x_BNI)
    torch.testing.assert_close(out, naive)
    gradient = torch.randn_like(out)
    inputs = (x_BNI, layer.project.weight)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, gradient), torch.autograd.grad(naive, inputs, gradient)
    )


def test_large_scores_choose_one_field():
    """Scores of hundreds, beyond what exp can hold, still give weights of 0 and 1."""
    layer = InteractingLayer(2, num_heads=1, head_dim=2)
    identity, zero = torch.eye(2), torch.zeros(2, 2)
    with torch.no_grad():
        layer.project.weight.copy_(torch.cat([100 * identity, identity, identity, zero]))
        x_BNI = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        torch.testing.assert_close(layer(x_BNI), x_BNI)


def test_no_rows_give_no_rows():
    layer = InteractingLayer(3, num_heads=2, head_dim=4)
    assert layer(torch.empty(0, 5, 3)).shape == (0, 5, 8)


def test_features_of_unequal_dims_are_refused_by_name():
    with pytest.raises(ValueError, match=r"AutoInt .*found \[3, 8\].*'dense': 8.*field_dim"):
        AutoIntConfig().build({**FEATURES, "dense": 8})


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"num_heads": 0}, {"dropout": 0.5}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=f"AutoInt: {next(iter(wrong))}"):
        AutoIntConfig(**wrong)
