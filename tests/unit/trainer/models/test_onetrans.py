import math

import pytest
import torch

from trainer.models.onetrans import OneTransConfig

FEATURES = {"user": 3, "history": 4, "candidate": 2, "feedback_sum": 5, "liked": 3}
SEQUENCES = ("history", "feedback_sum", "liked")


def linear(layer, at, x, num_history):
    """History tokens share a layer, each other token has its own."""
    if at < num_history:
        return layer.shared.weight @ x + layer.shared.bias
    own = at - num_history
    return x @ layer.own.weight_TIO[own] + layer.own.bias_TO[own]


def rms(x, norm):
    eps = torch.finfo(x.dtype).eps
    return x / (x.square().mean() + eps).sqrt() * norm.weight


def naive_block(block, tokens, num_history, num_kept, num_heads):
    """Token by token, head by head; what has no query leaves."""
    dim = len(tokens[0]) // num_heads
    dropped = num_history - num_kept
    keys, values = [], []
    for at, token in enumerate(tokens):
        both = linear(block.key_value, at, rms(token, block.attention_norm), num_history)
        keys.append(both[: len(token)])
        values.append(both[len(token) :])
    out = []
    for at in range(dropped, len(tokens)):
        place = at - dropped
        query = linear(block.query, place, rms(tokens[at], block.attention_norm), num_kept)
        heads = []
        for head in range(num_heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = torch.stack(
                [torch.dot(query[part], keys[k][part]) / math.sqrt(dim) for k in range(at + 1)]
            )
            weights = scores.softmax(0)
            heads.append(sum(weights[k] * values[k][part] for k in range(at + 1)))
        token = tokens[at] + linear(block.attention_out, place, torch.cat(heads), num_kept)
        hidden = linear(block.ffn_in, place, rms(token, block.ffn_norm), num_kept)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        out.append(token + linear(block.ffn_out, place, hidden, num_kept))
    return out


def test_equals_the_equations():
    torch.manual_seed(0)
    config = OneTransConfig(
        num_tokens=2, dim=8, num_layers=3, num_heads=2, expansion=1.5, sequence_features=SEQUENCES
    )
    tower = config.build(FEATURES).double()
    for module in tower.modules():
        if isinstance(module, torch.nn.RMSNorm):
            torch.nn.init.normal_(module.weight)
    x_BF = torch.randn(3, 17, dtype=torch.float64)
    expected = []
    for row in x_BF:
        user, history, candidate, feedback, liked = row.split([3, 4, 2, 5, 3])
        tokens = [
            layer.weight @ field + layer.bias
            for layer, field in zip(tower.history_tokens, (history, feedback, liked), strict=True)
        ]
        first, _, second = tower.other_tokens
        hidden = (first.weight @ torch.cat([user, candidate]) + first.bias).clamp(min=0)
        tokens += (second.weight @ hidden + second.bias).split(8)
        for block, before, after in zip(tower.blocks, (3, 2, 1), (2, 1, 0), strict=True):
            tokens = naive_block(block, tokens, before, after, num_heads=2)
        assert len(tokens) == 2
        expected.append(torch.cat([rms(token, tower.norm) for token in tokens]))
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))


def test_tokens_see_those_before_alone():
    torch.manual_seed(0)
    config = OneTransConfig(
        num_tokens=2, dim=8, num_layers=1, num_heads=2, sequence_features=SEQUENCES
    )
    block = config.build(FEATURES).blocks[0]
    x_BTD = torch.randn(1, 5, 8)
    changed = x_BTD.clone()
    changed[:, 4] += 1
    before, after = block(x_BTD), block(changed)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("names", [("clicks",), tuple(FEATURES)])
def test_sequence_features_must_be_some_of_the_features(names):
    with pytest.raises(ValueError, match="expected some of the features user, history"):
        OneTransConfig(num_tokens=2, dim=8, sequence_features=names).build(FEATURES)


@pytest.mark.parametrize("wrong", [{"num_tokens": 0}, {"sequence_features": ()}, {"num_heads": 3}])
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="OneTrans"):
        OneTransConfig(**({"num_tokens": 2, "dim": 8} | wrong))
