"""Attention of which each query reads a few blocks of keys: MoBA, as STORE uses it (Eq. 11-12).

Keys stand in N blocks of `block_size`. A query scores every block by its product with the mean of
the block's keys, and attends to the keys of the best S blocks alone. Pairs of a query and a block
become rows that are sorted by block, so that everything is a product of a block's rows with the
block: what is not selected is never computed. Two ways make these products:

| way | where | how |
|---|---|---|
| `segments` | CPUs, for blocks large enough | one product a block, of as many rows as chose it |
| `tiles` | elsewhere | one batched product of tiles of equally many rows, each of one block |

How many tiles there are depends on sizes alone (the most that any routing needs), so that no GPU
waits for the routing; rows that fill the last tile of a block are zeros.

Legend: X attentions side by side (impressions x heads), H tokens, d head dim, N blocks, B keys of
a block, S blocks that a query selects, T tiles of R rows each, P rows in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

Way = Literal["segments", "tiles"]

_TILE_ROWS = (1, 2, 4, 8, 16, 32, 64)
_ROWS_OF_A_COPY = 2.0
"""Bringing a block to its tile costs about as much time as so many rows of products."""
_SEGMENT_FLOPS = 250_000
"""A product of its own pays for the call from so many FLOPs on."""
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


def num_tiles(num_tokens: int, num_blocks: int, num_selected: int, rows: int) -> int:
    """Tiles of `rows` rows that are enough for every routing."""
    return (num_tokens * num_selected + num_blocks * (rows - 1)) // rows


def tile_rows(num_tokens: int, num_blocks: int, num_selected: int) -> int:
    """Rows of a tile for which padded rows and copied blocks together cost least: R."""
    return min(
        _TILE_ROWS,
        key=lambda rows: (
            num_tiles(num_tokens, num_blocks, num_selected, rows) * (rows + _ROWS_OF_A_COPY)
        ),
    )


def way_of(num_tokens: int, dim: int, *, block_size: int, num_selected: int, device: str) -> Way:
    """How products are made; shapes on the meta device stand for a CPU."""
    rows_of_a_block = num_tokens * num_selected * block_size // num_tokens
    large = 2 * rows_of_a_block * block_size * dim >= _SEGMENT_FLOPS
    return "segments" if large and device in ("cpu", "meta") else "tiles"


def attention_flops(
    num_tokens: int, dim: int, *, block_size: int, num_selected: int, device: str = "cpu"
) -> int:
    """FLOPs of one head, forward and backward, for one impression (a multiply-add as two).

    `2 H N d` for routing and `12 P B d` for two products forward and four backward over P rows:
    H S, and with tiles what fills the last of each block. Attention to all keys costs `12 H^2 d`
    by the same products, so of that the share 1 - sparsity is left, routing and filling apart.
    """
    num_blocks = num_tokens // block_size
    sizes = {"block_size": block_size, "num_selected": num_selected, "device": device}
    rows = num_tokens * num_selected
    if way_of(num_tokens, dim, **sizes) == "tiles":  # type: ignore[arg-type]
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


class _Rows(NamedTuple):
    """Where pairs of a query and a block stand, sorted by block.

    Attributes:
        row_XHS: row of each pair among all P.
        query_P: query of each row among X H; any query in rows that fill a tile.
        block_T: block of each tile among X N; without tiles the number of rows of each block.
        tile: rows of a tile; 0 without tiles.
    """

    row_XHS: Tensor
    query_P: Tensor
    block_T: Tensor
    tile: int

    def of_pairs(self, value_XHS: Tensor) -> Tensor:
        """Each row's value (P, 1); zero in rows that fill a tile."""
        value_P = value_XHS.new_zeros(self.query_P.shape)
        return value_P.scatter_(0, self.row_XHS.flatten(), value_XHS.flatten()).unsqueeze(1)

    def of_queries(self, x_XHd: Tensor) -> Tensor:
        """Each row's query: (X, H, d) -> (P, d)."""
        return _take(x_XHd.flatten(0, 1), self.query_P)

    def sums(self, x_Pd: Tensor, share_XHS: Tensor | None = None) -> Tensor:
        """Sums of each query's rows, weighted where there are weights: (P, d) -> (X, H, d)."""
        row_QS = self.row_XHS.flatten(0, 1)
        weight_QS = None if share_XHS is None else share_XHS.to(x_Pd.dtype).flatten(0, 1)
        summed = embedding_bag(row_QS, x_Pd, mode="sum", per_sample_weights=weight_QS)
        return summed.view(*self.row_XHS.shape[:2], -1)


def _sorted(selected_XHS: Tensor, num_blocks: int, tile: int) -> _Rows:
    num, num_tokens, num_selected = selected_XHS.shape
    device = selected_XHS.device
    each_X11 = torch.arange(num, device=device).view(-1, 1, 1)
    selected_XSH = selected_XHS.transpose(1, 2)
    is_in_XNH = torch.zeros(num, num_blocks, num_tokens, dtype=torch.int64, device=device)
    place_XNH = is_in_XNH.scatter_(1, selected_XSH, 1).cumsum(dim=2)
    count_XN = place_XNH[:, :, -1].clone()
    rows = tile or 1
    tiles_XN = (count_XN + (rows - 1)) // rows
    end_XN = tiles_XN.cumsum(dim=1)
    place_XNH += ((end_XN - tiles_XN) * rows - 1).unsqueeze(2)
    row_XSH = place_XNH.gather(1, selected_XSH)
    num_rows = rows * num_tiles(num_tokens, num_blocks, num_selected, rows)
    query_XP = torch.zeros(num, num_rows, dtype=torch.int64, device=device)
    tokens_H = torch.arange(num_tokens, device=device)
    query_XP.scatter_(1, row_XSH.flatten(1), tokens_H.repeat(num_selected).expand(num, -1))
    query_XP += each_X11[:, 0] * num_tokens
    block_T = count_XN
    if tile:
        order_T1 = torch.arange(num_rows // tile, device=device)[:, None]
        block_T = (order_T1 >= end_XN[:, None]).sum(dim=2).clamp_(max=num_blocks - 1)
        block_T += each_X11[:, 0] * num_blocks
    row_XHS = (row_XSH.transpose(1, 2) + each_X11 * num_rows).contiguous()
    return _Rows(row_XHS, query_XP.flatten(), block_T.flatten(), tile)


class _Products:
    """Products of rows with the blocks that they belong to.

    Args:
        rows: sorted by block.
        block_size: B.
    """

    def __init__(self, rows: _Rows, block_size: int) -> None:
        self.rows = rows
        self.block_size = block_size
        self.sizes: Sequence[int] = ()
        if not rows.tile:
            num_blocks = rows.block_T.shape[0]
            if rows.block_T.is_meta:  # how many rows each block has does not change the total
                even, rest = divmod(rows.query_P.shape[0], num_blocks)
                self.sizes = [even + (block < rest) for block in range(num_blocks)]
            else:
                self.sizes = rows.block_T.tolist()

    def parts(
        self, rows: Sequence[Tensor], blocks: Sequence[Tensor], sums: Sequence[Tensor] = ()
    ) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """What is multiplied with each other: rows, and their block.

        With tiles everything at once, as batches of tiles and of their blocks; else the rows of
        one block after the other, which caches hold from the first of their products to the last.

        Args:
            rows: tensors of P rows; what is yielded of them can be written to.
            blocks: (X, H, d), to be read.
            sums: made by :meth:`room_for_sums`, to be written.
        """
        if self.rows.tile:
            tiles = [one.unflatten(0, (-1, self.rows.tile)) for one in rows]
            yield tiles, [*(self._by_tile(one) for one in blocks), *sums]
            return
        by_block = (self._blocks(one).unbind() for one in (*blocks, *sums))
        by_part = (one.split(self.sizes) for one in rows)
        yield from zip(zip(*by_part, strict=True), zip(*by_block, strict=True), strict=True)

    def room(self, score_PB: Tensor, weight: Tensor) -> Tensor:
        """Room for the scores of a part, the same for each part."""
        if self.rows.tile:
            return score_PB.view_as(weight)
        return score_PB[: len(weight)]

    def room_for_sums(self, into: Sequence[Tensor]) -> Sequence[Tensor]:
        """Where sums over a part's rows go: the blocks themselves, or a place for each tile."""
        if not self.rows.tile:
            return into
        shape = (len(self.rows.block_T), self.block_size)
        return [one.new_empty(*shape, one.shape[2]) for one in into]

    def add_up(self, tiles: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Sum what tiles found of their blocks."""
        if not self.rows.tile:
            return
        for tiles_TBd, into_XHd in zip(tiles, into, strict=True):
            blocks = self._blocks(into_XHd.zero_()).flatten(1)
            blocks.index_add_(0, self.rows.block_T, tiles_TBd.flatten(1))

    def _blocks(self, x_XHd: Tensor) -> Tensor:
        return x_XHd.view(-1, self.block_size, x_XHd.shape[2])

    def _by_tile(self, x_XHd: Tensor) -> Tensor:
        """Each tile's block: (T, B, d)."""
        blocks = self._blocks(x_XHd).flatten(1)
        return _take(blocks, self.rows.block_T).unflatten(1, (self.block_size, -1))


class _BlockAttention(torch.autograd.Function):
    """Attention of X queries x H tokens to their selected blocks; no gradient to the selection.

    Each row has a softmax over its own block; a query's output is the sum of those of its rows,
    by the share that each block has in the sum of all weights (their log-sum-exps' softmax).
    """

    @staticmethod
    def forward(
        ctx: Any, q_XHd: Tensor, k_XHd: Tensor, v_XHd: Tensor, selected_XHS: Tensor, block_size: int
    ) -> Tensor:
        num, num_tokens, dim = q_XHd.shape
        num_selected = selected_XHS.shape[2]
        num_blocks = num_tokens // block_size
        sizes = {"block_size": block_size, "num_selected": num_selected}
        way = way_of(num_tokens, dim, device=q_XHd.device.type, **sizes)
        tile = tile_rows(num_tokens, num_blocks, num_selected) if way == "tiles" else 0
        num_rows = (tile or 1) * num_tiles(num_tokens, num_blocks, num_selected, tile or 1)
        chunk = _chunk(q_XHd, num_rows * block_size)
        ctx.block_size, ctx.tile, ctx.chunk, ctx.num_rows = block_size, tile, chunk, num_rows

        q_XHd, k_XHd, v_XHd = q_XHd * dim**-0.5, k_XHd.contiguous(), v_XHd.contiguous()
        out_XHd = torch.empty_like(v_XHd)
        weight_PB = q_XHd.new_empty(num * num_rows, block_size)
        score_PB = q_XHd.new_empty(min(num, chunk) * num_rows, block_size)
        kept: list[Tensor] = []
        for start in range(0, num, chunk):
            part = slice(start, start + chunk)
            rows = _sorted(selected_XHS[part], num_blocks, tile)
            weight = weight_PB[start * num_rows : (start + chunk) * num_rows]
            share_XHS = _attend(
                (q_XHd[part], k_XHd[part], v_XHd[part]),
                _Products(rows, block_size),
                score_PB[: len(weight)],
                weight,
                out_XHd[part],
            )
            kept += [*rows[:3], share_XHS]
        ctx.save_for_backward(q_XHd, k_XHd, v_XHd, out_XHd, weight_PB, *kept)
        return out_XHd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_XHd, k_XHd, v_XHd, out_XHd, weight_PB, *kept = ctx.saved_tensors
        gradient_XHd = gradients[0].contiguous()
        found = [torch.empty_like(one) for one in (q_XHd, k_XHd, v_XHd)]
        num, chunk, num_rows = q_XHd.shape[0], ctx.chunk, ctx.num_rows
        score_PB = q_XHd.new_empty(min(num, chunk) * num_rows, ctx.block_size)
        for number, start in enumerate(range(0, num, chunk)):
            part = slice(start, start + chunk)
            row, query, block, share_XHS = kept[4 * number : 4 * number + 4]
            weight = weight_PB[start * num_rows : (start + chunk) * num_rows]
            _attend_backward(
                (q_XHd[part], k_XHd[part], v_XHd[part], out_XHd[part], gradient_XHd[part]),
                _Products(_Rows(row, query, block, ctx.tile), ctx.block_size),
                (weight, share_XHS),
                score_PB[: len(weight)],
                [whole[part] for whole in found],
            )
        return (*found, None, None)


def _attend(
    values: tuple[Tensor, Tensor, Tensor],
    products: _Products,
    score_PB: Tensor,
    weight_PB: Tensor,
    out_XHd: Tensor,
) -> Tensor:
    """Write each row's softmax to `weight_PB` and outputs to `out_XHd`; shares of a query's rows.

    Args:
        values: scaled queries, keys, values.
        products: of the rows.
        score_PB: room for scores.
        weight_PB: room for weights.
        out_XHd: room for outputs.
    """
    q_XHd, k_XHd, v_XHd = values
    rows = products.rows
    q_Pd = rows.of_queries(q_XHd)
    out_Pd = torch.empty_like(q_Pd)
    highest_P, weight_P = q_Pd.new_empty(len(q_Pd)), q_Pd.new_empty(len(q_Pd))
    of_rows = (q_Pd, weight_PB, out_Pd, highest_P, weight_P)
    for part in products.parts(of_rows, (k_XHd, v_XHd)):
        (q, weight, out, highest, most), (key, value) = part
        score = torch.matmul(q, key.mT, out=products.room(score_PB, weight))
        torch.softmax(score, dim=-1, out=weight)
        torch.amax(score, dim=-1, out=highest)
        torch.amax(weight, dim=-1, out=most)
        torch.matmul(weight, value, out=out)
    # The highest weight of a row is 1 / sum(exp(score - highest score)).
    wide = torch.promote_types(score_PB.dtype, torch.float32)
    share_XHS = (highest_P.to(wide) - weight_P.to(wide).log())[rows.row_XHS].softmax(dim=2)
    out_XHd.copy_(rows.sums(out_Pd, share_XHS))
    return share_XHS


def _attend_backward(
    values: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    products: _Products,
    weights: tuple[Tensor, Tensor],
    score_PB: Tensor,
    into: Sequence[Tensor],
) -> None:
    """Write gradients of queries, keys and values to `into`.

    Args:
        values: scaled queries, keys, values, outputs, gradients of outputs.
        products: of the rows.
        weights: of rows, and shares of a query's rows.
        score_PB: room for gradients of scores.
        into: room for the three.
    """
    q_XHd, k_XHd, v_XHd, out_XHd, gradient_XHd = values
    weight_PB, share_XHS = weights
    rows = products.rows
    share_P1 = rows.of_pairs(share_XHS).to(weight_PB.dtype)
    gradient_Pd = rows.of_queries(gradient_XHd).mul_(share_P1)
    # What the softmax takes from every score of a query.
    mean_XH1 = (gradient_XHd * out_XHd).sum(dim=2, keepdim=True)
    mean_P1 = rows.of_queries(mean_XH1).mul_(share_P1)
    q_Pd = rows.of_queries(q_XHd)
    of_q_Pd = torch.empty_like(q_Pd)
    of_rows = (q_Pd, gradient_Pd, mean_P1, weight_PB, of_q_Pd)
    sums = products.room_for_sums(into[1:])
    for part in products.parts(of_rows, (k_XHd, v_XHd), sums):
        (q, gradient, mean, weight, of_q), (key, value, of_key, of_value) = part
        torch.matmul(weight.mT, gradient, out=of_value)
        score = torch.matmul(gradient, value.mT, out=products.room(score_PB, weight))
        score.sub_(mean).mul_(weight)
        torch.matmul(score, key, out=of_q)
        torch.matmul(score.mT, q, out=of_key)
    products.add_up(sums, into[1:])
    torch.mul(rows.sums(of_q_Pd), q_XHd.shape[2] ** -0.5, out=into[0])


def _take(x_NK: Tensor, at_P: Tensor) -> Tensor:
    """Some rows; on CPUs several times as fast as `index_select`."""
    return x_NK.gather(0, at_P[:, None].expand(-1, x_NK.shape[1]))


def _chunk(x_XHd: Tensor, weights: int) -> int:
    """Attentions of so many weights each that are computed at a time: all, but on CPUs few."""
    if x_XHd.device.type != "cpu":
        return max(1, x_XHd.shape[0])
    return max(1, _CHUNK_BYTES * torch.get_num_threads() // (weights * x_XHd.element_size()))


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
