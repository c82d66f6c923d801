import math

import pytest
import torch

from trainer.modules.semi_causal import SemiCausalBlock, semi_causal_mask

DIM, HEADS, CONTEXT, TOKENS = 8, 2, 3, 4


@pytest.fixture
def block():
    torch.manual_seed(1)
    return SemiCausalBlock(dim=DIM, num_heads=HEADS, expansion=1.5)


def test_mask_shows_the_whole_context_to_all_and_tokens_to_later_ones_alone():
    mask = semi_causal_mask(CONTEXT, TOKENS)
    for looker in range(CONTEXT + TOKENS):
        for seen in range(CONTEXT + TOKENS):
            expected = seen < CONTEXT if looker < CONTEXT else seen <= looker
            assert bool(mask[looker, seen]) == expected, (looker, seen)
    assert torch.equal(semi_causal_mask(0, 3), torch.ones(3, 3).tril().bool())
    assert semi_causal_mask(3, 0).all()


def naive(block, x_TD, mask):
    """The block, one row at a time, head by head and position by position."""
    normed = block.attention_norm(x_TD)
    qkv = normed @ block.query_key_value.weight.T
    query, key, value = qkv[:, :DIM], qkv[:, DIM : 2 * DIM], qkv[:, 2 * DIM :]
    seen = torch.zeros_like(x_TD)
    width = DIM // HEADS
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        for at in range(len(x_TD)):
            others = [other for other in range(len(x_TD)) if mask[at, other]]
            scores = torch.stack(
                [query[at, part] @ key[other, part] / math.sqrt(width) for other in others]
            ).softmax(0)
            for weight, other in zip(scores, others, strict=True):
                seen[at, part] += weight * value[other, part]
    x_TD = x_TD + seen @ block.attention_out.weight.T + block.attention_out.bias
    hidden = block.ffn_norm(x_TD) @ block.ffn_in.weight.T + block.ffn_in.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x_TD + hidden @ block.ffn_out.weight.T + block.ffn_out.bias


def test_block_equals_a_loop_over_heads_and_positions(block):
    x_BTD = torch.randn(2, CONTEXT + TOKENS, DIM)
    mask = semi_causal_mask(CONTEXT, TOKENS)
    found, _ = block(x_BTD, mask)
    for row, x_TD in zip(found, x_BTD, strict=True):
        torch.testing.assert_close(row, naive(block, x_TD, mask), atol=1e-5, rtol=1e-5)


def test_context_first_and_tokens_after_it_is_one_pass_under_the_mask(block):
    x_BTD = torch.randn(5, CONTEXT + TOKENS, DIM)
    mask = semi_causal_mask(CONTEXT, TOKENS)
    whole, _ = block(x_BTD, mask)
    context, past = block(x_BTD[:, :CONTEXT])
    torch.testing.assert_close(context, whole[:, :CONTEXT])
    tokens, _ = block(x_BTD[:, CONTEXT:], mask[CONTEXT:], past)
    torch.testing.assert_close(tokens, whole[:, CONTEXT:])
    for at in range(CONTEXT, CONTEXT + TOKENS):  # and a token at a time
        one, past = block(x_BTD[:, at : at + 1], None, past)
        torch.testing.assert_close(one, whole[:, at : at + 1])


def test_context_does_not_change_with_the_tokens(block):
    x_BTD = torch.randn(2, CONTEXT + TOKENS, DIM)
    mask = semi_causal_mask(CONTEXT, TOKENS)
    before, _ = block(x_BTD, mask)
    x_BTD[:, CONTEXT + 1] += 1
    after, _ = block(x_BTD, mask)
    assert torch.equal(before[:, : CONTEXT + 1], after[:, : CONTEXT + 1])
    assert not torch.equal(before[:, CONTEXT + 2], after[:, CONTEXT + 2])


def test_no_row_at_all_leaves_zero_gradients(block):
    out, past = block(torch.zeros(0, CONTEXT, DIM))
    tokens, _ = block(torch.zeros(0, 1, DIM), None, past)
    (out.sum() + tokens.sum()).backward()
    for name, weight in block.named_parameters():
        assert weight.grad is not None, name
        assert not weight.grad.any(), name


def test_heads_must_divide_the_dim():
    with pytest.raises(ValueError, match=r"dim \(8\) must be a multiple of num_heads \(3\)"):
        SemiCausalBlock(dim=8, num_heads=3, expansion=2)
