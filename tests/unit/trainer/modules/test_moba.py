import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from trainer.modules import block_rows, moba
from trainer.modules.moba import (
    EfficientAttention,
    attention_flops,
    block_attention,
    selected_blocks,
)


def naive(q_XHd, k_XHd, v_XHd, block_size, num_selected):
    """Eq. 11 and 12 query by query."""
    num, num_tokens, dim = q_XHd.shape
    outputs = []
    for x in range(num):
        for query in q_XHd[x]:
            blocks = [range(b, b + block_size) for b in range(0, num_tokens, block_size)]
            scores = [float((query @ k_XHd[x][list(block)].mean(0)).detach()) for block in blocks]
            best = sorted(range(len(blocks)), key=lambda b: -scores[b])[:num_selected]
            keys = [key for b in best for key in blocks[b]]
            odds = torch.softmax(k_XHd[x][keys] @ query / math.sqrt(dim), dim=0)
            outputs.append(odds @ v_XHd[x][keys])
    return torch.stack(outputs).view(num, num_tokens, dim)


def inputs(num, num_tokens, dim, dtype=torch.float32):
    torch.manual_seed(num * num_tokens + dim)
    return [torch.randn(num, num_tokens, dim, dtype=dtype, requires_grad=True) for _ in range(3)]


def gradients(out, values):
    torch.manual_seed(0)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), values)


SIZES = [
    (2, 4, 4, 1, 2),
    (3, 12, 5, 3, 1),
    (1, 12, 8, 4, 2),
    (5, 3, 2, 1, 1),
    (2, 64, 16, 8, 3),
    (1, 96, 4, 16, 6),
    (4, 1, 3, 1, 1),
    (2, 40, 7, 2, 7),
]


@pytest.mark.parametrize(("num", "num_tokens", "dim", "block_size", "num_selected"), SIZES)
def test_equals_loops_forward_and_backward(num, num_tokens, dim, block_size, num_selected):
    values = inputs(num, num_tokens, dim)
    out = block_attention(*values, block_size=block_size, num_selected=num_selected)
    expected = naive(*values, block_size, num_selected)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(out, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segment_flops", [0, 250_000])
def test_no_impressions(monkeypatch, segment_flops):
    monkeypatch.setattr(block_rows, "_SEGMENT_FLOPS", segment_flops)
    values = inputs(0, 12, 4)
    out = block_attention(*values, block_size=4, num_selected=2)
    assert out.shape == (0, 12, 4)
    assert [one.shape for one in gradients(out, values)] == [(0, 12, 4)] * 3


def test_chunks_change_nothing(monkeypatch):
    values = inputs(7, 16, 4)
    whole = block_attention(*values, block_size=4, num_selected=2)
    expected = gradients(whole, values)
    monkeypatch.setattr(moba, "_chunk", lambda x, rows, block_size: 3)
    cut = block_attention(*values, block_size=4, num_selected=2)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(gradients(cut, values), expected)


@pytest.mark.parametrize(("num", "num_tokens", "dim", "block_size", "num_selected"), SIZES)
def test_a_product_a_block_equals_loops(
    monkeypatch, num, num_tokens, dim, block_size, num_selected
):
    monkeypatch.setattr(block_rows, "_SEGMENT_FLOPS", 0)
    test_equals_loops_forward_and_backward(num, num_tokens, dim, block_size, num_selected)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_tiles_of_every_size_give_the_same(monkeypatch, rows):
    values = inputs(3, 24, 4)
    expected = naive(*values, 3, 2)
    monkeypatch.setattr(block_rows, "tile_rows", lambda *sizes: rows)
    out = block_attention(*values, block_size=3, num_selected=2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(out, values), gradients(expected, values), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["segments", "tiles"])
def test_all_queries_may_choose_the_same_blocks(monkeypatch, way):
    monkeypatch.setattr(block_rows, "way_of", lambda *sizes, **more: way)
    q, k, v = inputs(2, 32, 4)
    with torch.no_grad():
        q.abs_()
        k[:, :8] += 9
    out = block_attention(q, k, v, block_size=8, num_selected=1)
    expected = scaled_dot_product_attention(q, k[:, :8], v[:, :8])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        gradients(out, (q, v)), gradients(expected, (q, v)), atol=1e-5, rtol=1e-5
    )


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v = (value.detach() * 60 for value in inputs(1, 16, 4))
    out = block_attention(q, k, v, block_size=4, num_selected=2)
    torch.testing.assert_close(out, naive(q, k, v, 4, 2), atol=1e-3, rtol=1e-5)


def test_all_blocks_selected_is_vanilla_attention():
    values = inputs(3, 24, 8, torch.float64)
    out = block_attention(*values, block_size=6, num_selected=4)
    torch.testing.assert_close(out, scaled_dot_product_attention(*values))


def test_bf16_is_near():
    values = inputs(2, 64, 16)
    low = [value.detach().bfloat16().requires_grad_() for value in values]
    high = [value.detach().float().requires_grad_() for value in low]
    chosen = moba.route(low[0], low[1], block_size=8, num_selected=4)
    out = moba._BlockAttention.apply(*low, chosen, 8)
    expected = moba._BlockAttention.apply(*high, chosen, 8)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    for ours, theirs in zip(gradients(out, low), gradients(expected, high), strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "block_size", "num_selected"),
    [(64, 8, 8, 4), (512, 16, 64, 2), (32, 8, 4, 4)],
)
def test_flops_are_those_of_the_formula(device, dtype, num_tokens, dim, block_size, num_selected):
    values = [
        value.detach().to(device, dtype).requires_grad_() for value in inputs(3, num_tokens, dim)
    ]
    sizes = {"block_size": block_size, "num_selected": num_selected}
    with FlopCounterMode(display=False) as counter:
        block_attention(*values, **sizes).sum().backward()
    formula = attention_flops(num_tokens, dim, dtype=dtype, **sizes)
    assert counter.get_total_flops() == 3 * formula


def test_flops_fall_with_sparsity():
    flops = [attention_flops(512, 64, block_size=64, num_selected=n) for n in (8, 4, 2, 1)]
    dense = 12 * 512 * 512 * 64
    assert flops[1] < 0.6 * dense
    assert flops[2] < 0.32 * dense
    assert flops == sorted(flops, reverse=True)


@pytest.mark.parametrize(("sparsity", "block_size"), [(0.5, 2), (0.75, 1), (0.0, None)])
def test_heads_attend_apart(sparsity, block_size):
    torch.manual_seed(0)
    attention = EfficientAttention(
        12, num_heads=3, num_tokens=4, sparsity=sparsity, block_size=block_size
    ).double()
    x_BHD = torch.randn(5, 4, 12, dtype=torch.float64)
    weight = attention.query_key_value.weight
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (x_BHD @ part[rows].T for part in weight.chunk(3))
        selected = attention.num_selected or 4
        heads.append(naive(q, k, v, block_size or 1, selected))
    expected = torch.cat(heads, dim=2) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x_BHD), expected)


def test_sparsity_is_the_share_of_keys_left_out():
    assert selected_blocks(32, 4, 0.5) == 4
    assert selected_blocks(3, 1, 2 / 3) == 1
    assert selected_blocks(512, 64, 0.875) == 1
    with pytest.raises(ValueError, match="block_size is 5, expected a divisor"):
        selected_blocks(32, 5, 0.5)
    with pytest.raises(ValueError, match=r"sparsity is 0\.4, but a query attends to whole blocks"):
        selected_blocks(4, 1, 0.4)
    with pytest.raises(ValueError, match="allow 0/4, 1/4, 2/4, 3/4"):
        selected_blocks(4, 1, 1.0)
    for sparsity, block_size in ((0.0, 2), (0.5, None)):
        with pytest.raises(ValueError, match="blocks are there to be left out"):
            EfficientAttention(
                4, num_heads=1, num_tokens=4, sparsity=sparsity, block_size=block_size
            )
