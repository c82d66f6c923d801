from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from trainer.models.store import StoreConfig
from trainer.models.tower import MeasuredTower, RegularizedTower, TowerWithTurns

FEATURES = {"user": 5, "site_1": 3, "site_2": 3, "candidate": 8, "site_3": 3, "site_4": 3, "d": 2}
CONFIG = StoreConfig(
    num_tokens=4,
    groups=(("user",), ("d",)),
    semantic_ids=(("candidate",), ("site_1", "site_2", "site_3", "site_4")),
    group_dim=3,
    group_hidden_dim=6,
    num_layers=2,
    num_heads=1,
    ffn_dim=10,
    sparsity=0.5,
    block_size=1,
)


def build(config=CONFIG):
    torch.manual_seed(0)
    return config.build(FEATURES)


def naive_store(tower, x_BF):
    """Row by row and token by token, from the tower's weights."""
    config = tower.config
    out = []
    for row in x_BF:
        at, feature = 0, {}
        for name, width in FEATURES.items():
            feature[name] = row[at : at + width]
            at += width
        fused = []
        for group, network in zip(("user", "d"), tower.groups.networks, strict=True):
            first, last = network[0], network[-1]
            hidden = torch.relu(first.weight @ feature[group] + first.bias)
            fused.append(last.weight @ hidden + last.bias)
        block_C = torch.cat(fused)
        tokens = []
        for token in range(config.num_tokens):
            item = feature["candidate"][2 * token : 2 * token + 2]
            site = feature[f"site_{token + 1}"]
            turned = block_C
            if tower.rotations is not None:
                turned = block_C @ tower.rotations.matrices()[token]
            tokens.append(torch.cat([item, site, turned]))
        for layer in tower.blocks:
            attended = naive_attention(layer.attention, torch.stack(tokens), config.sparsity)
            mixed = layer.attention.out
            for i, (token, value) in enumerate(zip(tokens, attended, strict=True)):
                norm = layer.attention_norm
                token = mixed.weight @ value + mixed.bias + token
                token = layer_norm(token, token.shape, norm.weight, norm.bias)
                hidden = gelu(layer.ffn_in.weight @ token + layer.ffn_in.bias)
                token = layer.ffn_out.weight @ hidden + layer.ffn_out.bias + token
                norm = layer.ffn_norm
                tokens[i] = layer_norm(token, token.shape, norm.weight, norm.bias)
        out.append(sum(tokens) / config.num_tokens)
    return torch.stack(out)


def naive_attention(attention, x_KD, sparsity):
    """One head, blocks of one token: each attends to the tokens that it likes best."""
    query, key, value = (x_KD @ part.T for part in attention.query_key_value.weight.chunk(3))
    kept = round((1 - sparsity) * len(x_KD))
    out = []
    for one in query:
        score = key @ one
        best = score.topk(kept).indices
        odds = torch.softmax(score[best] / x_KD.shape[1] ** 0.5, dim=0)
        out.append(odds @ value[best])
    return out


@pytest.mark.parametrize("rotation", ["orthogonal", "none"])
@pytest.mark.parametrize("sparsity", [0.75, 0.5, 0.0])
def test_equals_the_definition_token_by_token(rotation, sparsity):
    config = replace(
        CONFIG, rotation=rotation, sparsity=sparsity, block_size=1 if sparsity else None
    )
    tower = build(config).double()
    x_BF = torch.randn(5, sum(FEATURES.values()), dtype=torch.float64)
    torch.testing.assert_close(tower(x_BF), naive_store(tower, x_BF))
    assert tower.out_dim == 2 + 3 + 6


def test_says_what_the_trainer_asks_of_towers():
    tower = build()
    assert isinstance(tower, RegularizedTower)
    assert isinstance(tower, MeasuredTower)
    assert isinstance(tower, TowerWithTurns)
    assert tower.parameters_with_turns() == [tower.rotations.skew_KM]
    turns = [step for step in range(30) if tower.is_their_turn(step)]
    assert turns == [9, 19, 29]


def test_rotations_are_kept_apart_by_the_loss():
    tower = build(replace(CONFIG, diversity=0.2))
    tower(torch.randn(3, 27))
    loss = tower.auxiliary_loss()
    assert float(loss) == pytest.approx(-0.2 * float(tower.rotations.diversity()))
    loss.backward()
    others = [p for p in tower.parameters() if p is not tower.rotations.skew_KM]
    assert tower.rotations.skew_KM.grad.any()
    assert all(parameter.grad is None for parameter in others)


def test_without_rotation_nothing_has_turns():
    tower = build(replace(CONFIG, rotation="none"))
    tower(torch.randn(3, 27))
    assert float(tower.auxiliary_loss()) == 0
    assert tower.measures() == {}
    assert tower.parameters_with_turns() == []
    assert not any(tower.is_their_turn(step) for step in range(30))


def test_trains_under_autocast():
    tower = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tower(torch.randn(6, 27))
    (out.float().sum() + tower.auxiliary_loss()).backward()
    assert tower.measures()["orthogonality_error"] < 1e-5
    assert all(parameter.grad.isfinite().all() for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": (("user",),)}, r"that stand nowhere: \['d'\]"),
        ({"groups": (("user", "d"), ("x",))}, r"that are not there: \['x'\]"),
        ({"groups": (("user", "d"), ("d",))}, r"that stand twice: \['d'\]"),
        ({"groups": (("user", "d", "site_1"),)}, "that stand twice"),
        (
            {"semantic_ids": (("candidate", "site_1", "site_2", "site_3", "site_4", "d"),)},
            "twice",
        ),
        ({"num_heads": 2}, r"STORE: dim \(11\) must be a multiple of num_heads \(2\)"),
    ],
)
def test_features_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(replace(CONFIG, **changes))


def test_widths_that_tokens_cannot_share_are_named():
    config = replace(CONFIG, semantic_ids=(("candidate",),), groups=(("user",), ("d",)))
    with pytest.raises(ValueError, match="candidate have 9 values, which 4 tokens"):
        config.build({"user": 5, "candidate": 9, "d": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0, expected at least 1"),
        ({"network_steps": 0}, "network_steps is 0"),
        ({"diversity": -0.1}, r"diversity is -0\.1"),
        ({"rotation": "random"}, "rotation is 'random', expected 'orthogonal' or 'none'"),
        ({"groups": ()}, "expected at least one of each"),
        ({"sparsity": 0.3}, r"sparsity is 0\.3, but a query attends to whole blocks"),
        ({"block_size": None}, "sparsity=0 and block_size=None for vanilla attention"),
        ({"groups": (("user",),), "group_dim": 1}, "can't be rotated"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
