"""Attention of which each query reads a few blocks of keys: MoBA, as STORE uses it (Eq. 11-12).

Keys stand in N blocks of `block_size`. A query scores every block by its product with the mean of
the block's keys, and attends to the keys of the best S blocks alone. Pairs of a query and a block
become rows that are sorted by block (`trainer.modules.block_rows`), so that everything is a
product of a block's rows with the block: what is not selected is never computed.

Legend: X attentions side by side (impressions x heads), H tokens, d head dim, N blocks, B keys of
a block, S blocks that a query selects, P rows in all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainer.modules.block_rows import (
    BlockProducts,
    BlockRows,
    num_tiles,
    sorted_by_block,
    tile_rows,
    way_of,
)

_CHUNK_BYTES = 1 << 20
"""Weights that a CPU thread works on at a time, so that they stay in its caches."""


def selected_blocks(num_tokens: int, block_size: int, sparsity: float) -> int:
    """Blocks that a query attends to: S.

    Args:
        num_tokens: H.
        block_size: B.
        sparsity: share of the keys that a query does not attend to.

    Raises:
        ValueError: when tokens are no whole number of blocks, or selected keys are none.
    """
    if block_size < 1 or num_tokens % block_size:
        raise ValueError(
            f"block_size is {block_size}, expected a divisor of the number of tokens ({num_tokens})"
        )
    num_blocks = num_tokens // block_size
    selected = (1 - sparsity) * num_blocks
    if not 0 <= sparsity < 1 or abs(selected - round(selected)) > 1e-6 or round(selected) < 1:
        choices = ", ".join(f"{n}/{num_blocks}" for n in range(num_blocks))
        raise ValueError(
            f"sparsity is {sparsity:g}, but a query attends to whole blocks: {num_tokens} tokens "
            f"in blocks of {block_size} allow {choices}"
        )
    return round(selected)


def attention_flops(
    num_tokens: int,
    dim: int,
    *,
    block_size: int,
    num_selected: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> int:
    """FLOPs of one head, forward and backward, for one impression (a multiply-add as two).

    `2 H N d` for routing and `12 P B d` for two products forward and four backward over P rows:
    H S, and with tiles what fills the last of each block. Attention to all keys costs `12 H^2 d`
    by the same products, so of that the share 1 - sparsity is left, routing and filling apart.
    """
    num_blocks = num_tokens // block_size
    way = way_of(dim, block_size=block_size, num_selected=num_selected, dtype=dtype, device=device)
    rows = num_tokens * num_selected
    if way == "tiles":
        of_tile = tile_rows(num_tokens, num_blocks, num_selected)
        rows = of_tile * num_tiles(num_tokens, num_blocks, num_selected, of_tile)
    return 2 * num_tokens * num_blocks * dim + 12 * rows * block_size * dim


def route(q_XHd: Tensor, k_XHd: Tensor, *, block_size: int, num_selected: int) -> Tensor:
    """Blocks that each query attends to, (X, H, S) int64: those whose mean key it likes best.

    The choice has no gradient; queries and keys learn through the attention that it leads to.
    """
    with torch.no_grad():
        mean_XNd = k_XHd.unflatten(1, (-1, block_size)).mean(dim=2)
        return torch.bmm(q_XHd, mean_XNd.transpose(1, 2)).topk(num_selected, dim=2).indices


class _BlockAttention(torch.autograd.Function):
    """Attention of X queries x H tokens to their selected blocks; no gradient to the selection.

    Each row has a softmax over its own block; a query's output is the sum of those of its rows,
    by the share that each block has in the sum of all weights (their log-sum-exps' softmax).
    """

    @staticmethod
    def forward(
        ctx: Any, q_XHd: Tensor, k_XHd: Tensor, v_XHd: Tensor, selected_XHS: Tensor, block_size: int
    ) -> Tensor:
        rows = sorted_by_block(selected_XHS, block_size, like_XHd=q_XHd)
        products = BlockProducts(rows, block_size, _chunk(q_XHd, rows, block_size))
        q_XHd, k_XHd, v_XHd = q_XHd * q_XHd.shape[2] ** -0.5, k_XHd.contiguous(), v_XHd.contiguous()

        q_Pd = rows.of_queries(q_XHd)
        out_Pd = torch.empty_like(q_Pd)
        weight_PB = q_Pd.new_empty(len(q_Pd), block_size)
        highest_P, most_P = q_Pd.new_empty(len(q_Pd)), q_Pd.new_empty(len(q_Pd))
        q, weight, out = (products.by_row(one) for one in (q_Pd, weight_PB, out_Pd))
        key_mT, value = products.by_block(k_XHd, transposed=True), products.by_block(v_XHd)
        for parts, at, score_PB in products.chunks(weight_PB):
            score = products.by_row(score_PB, parts)
            products.multiply(q[parts], key_mT[parts], score)
            torch.softmax(score_PB, dim=-1, out=weight_PB[at])
            torch.amax(score_PB, dim=-1, out=highest_P[at])
            torch.amax(weight_PB[at], dim=-1, out=most_P[at])
            products.multiply(weight[parts], value[parts], out[parts])
        # The highest weight of a row is 1 / sum(exp(score - highest score)).
        wide = torch.promote_types(q_Pd.dtype, torch.float32)
        share_XHS = (highest_P.to(wide) - most_P.to(wide).log())[rows.row_XHS].softmax(dim=2)
        out_XHd = rows.sums(out_Pd, share_XHS)
        ctx.products = products
        ctx.save_for_backward(q_XHd, k_XHd, v_XHd, out_XHd, weight_PB, share_XHS)
        return out_XHd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_XHd, k_XHd, v_XHd, out_XHd, weight_PB, share_XHS = ctx.saved_tensors
        products: BlockProducts = ctx.products
        rows, gradient_XHd = products.rows, gradients[0].contiguous()

        share_P = rows.of_pairs(share_XHS)
        gradient_Pd = rows.of_queries(gradient_XHd, share_P)
        # What the softmax takes from every score of a query.
        mean_P1 = rows.of_queries((gradient_XHd * out_XHd).sum(dim=2, keepdim=True), share_P)
        q_Pd = rows.of_queries(q_XHd)
        of_q_Pd = torch.empty_like(q_Pd)
        q, gradient, of_q = (products.by_row(one) for one in (q_Pd, gradient_Pd, of_q_Pd))
        weight_mT = products.by_row(weight_PB, transposed=True)
        key, value_mT = products.by_block(k_XHd), products.by_block(v_XHd, transposed=True)
        of_key_UBd, of_value_UBd = (products.new_blocks(one) for one in (k_XHd, v_XHd))
        of_key, of_value = products.by_unit(of_key_UBd), products.by_unit(of_value_UBd)
        for parts, at, score_PB in products.chunks(weight_PB):
            score = products.by_row(score_PB, parts)
            products.multiply(weight_mT[parts], gradient[parts], of_value[parts])
            products.multiply(gradient[parts], value_mT[parts], score)
            score_PB.sub_(mean_P1[at]).mul_(weight_PB[at])
            products.multiply(score, key[parts], of_q[parts])
            score_mT = products.by_row(score_PB, parts, transposed=True)
            products.multiply(score_mT, q[parts], of_key[parts])
        of_q_XHd = rows.sums(of_q_Pd).mul_(q_XHd.shape[2] ** -0.5)
        of_k_XHd, of_v_XHd = (products.summed(one, k_XHd) for one in (of_key_UBd, of_value_UBd))
        return of_q_XHd, of_k_XHd, of_v_XHd, None, None


def _chunk(x_XHd: Tensor, rows: BlockRows, block_size: int) -> int:
    """Attentions of which weights are computed at a time: all, but on CPUs few."""
    num = x_XHd.shape[0]
    if x_XHd.device.type != "cpu":
        return max(1, num)
    weight_bytes = len(rows.query_P) * block_size * x_XHd.element_size() // max(1, num)
    return max(1, _CHUNK_BYTES * torch.get_num_threads() // max(1, weight_bytes))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def block_attention(
    q_XHd: Tensor, k_XHd: Tensor, v_XHd: Tensor, *, block_size: int, num_selected: int
) -> Tensor:
    """Softmax(Q K[Ind]^T / sqrt(d)) V[Ind] with the selected blocks of each query (Eq. 11).

    The paper leaves the scale out, as MoBA's paper does; MoBA's code has it.

    Args:
        q_XHd: queries, fp32, fp64 or bf16; products of bf16 are rounded to bf16.
        k_XHd: keys.
        v_XHd: values.
        block_size: B; divides H.
        num_selected: S, at most H / B.

    Returns:
        (X, H, d).
    """
    with without_autocast(q_XHd.device.type):
        selected_XHS = route(q_XHd, k_XHd, block_size=block_size, num_selected=num_selected)
        out: Tensor = _BlockAttention.apply(q_XHd, k_XHd, v_XHd, selected_XHS, block_size)
    return out


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Compute in the dtypes that tensors have; where there is no autocast, nothing to leave."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


class EfficientAttention(nn.Module):
    """Multi-head self-attention over all keys, or over selected blocks of them (STORE Eq. 10-12).

    Args:
        dim: D.
        num_heads: divides `dim`.
        num_tokens: H.
        sparsity: share of keys that a query does not attend to; 0 is vanilla attention.
        block_size: B; None with sparsity 0, where there are no blocks.

    Shape:
        (impressions, H, D) -> (impressions, H, D).

    Raises:
        ValueError: see :func:`selected_blocks`; or a block size without sparsity, or none with it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_tokens: int,
        sparsity: float,
        block_size: int | None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.block_size = block_size
        self.num_selected = check_sparsity(num_tokens, block_size, sparsity)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BHD: Tensor) -> Tensor:
        """Attend."""
        num_rows, num_tokens, _ = x_BHD.shape
        parts = self.query_key_value(x_BHD).view(num_rows, num_tokens, 3, self.num_heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).contiguous()
        if self.block_size is None:
            attended = scaled_dot_product_attention(q, k, v)
        else:
            attended = block_attention(
                q.flatten(0, 1),
                k.flatten(0, 1),
                v.flatten(0, 1),
                block_size=self.block_size,
                num_selected=self.num_selected,
            ).view_as(q)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed


def check_sparsity(num_tokens: int, block_size: int | None, sparsity: float) -> int:
    """Blocks that a query selects; 0 where there are none.

    Raises:
        ValueError: see :class:`EfficientAttention`.
    """
    if (block_size is None) != (sparsity == 0):
        raise ValueError(
            f"sparsity is {sparsity:g} and block_size {block_size}: blocks are there to be left "
            "out; set both, or sparsity=0 and block_size=None for vanilla attention"
        )
    return 0 if block_size is None else selected_blocks(num_tokens, block_size, sparsity)
