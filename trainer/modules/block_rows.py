"""Rows of queries that are sorted by the block of keys they meet, and products of both.

Block attention (`trainer.modules.moba`) makes a row of each pair of a query and a block that it
selects. Rows of a block stand together, and two ways multiply them with it:

| way | where | how |
|---|---|---|
| `segments` | CPUs, not bf16, large blocks | one product a block, of as many rows as chose it |
| `tiles` | elsewhere | one batched product of tiles of equally many rows, each of one block |

How many tiles there are depends on sizes alone (the most that any routing needs), so that no GPU
waits for the routing; rows that fill the last tile of a block are zeros.

Legend: X attentions side by side, H tokens, d head dim, N blocks, B keys of a block, S blocks that
a query selects, T tiles of R rows each, P rows in all, U units (tiles, or blocks without tiles).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Way = Literal["segments", "tiles"]

_TILE_ROWS = (1, 2, 4, 8, 16, 32, 64)
_ROWS_OF_A_COPY = 8.0
"""Bringing a block to its tile costs about as much time as so many rows of products."""
_SEGMENT_FLOPS = 250_000
"""A product of its own pays for the call from so many FLOPs on; in bf16 it never did (a call takes
10 us, in which batched products do 4 MFLOP)."""


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


def way_of(dim: int, *, block_size: int, num_selected: int, dtype: torch.dtype, device: str) -> Way:
    """How products are made; shapes on the meta device stand for a CPU."""
    rows_of_a_block = num_selected * block_size
    large = 2 * rows_of_a_block * block_size * dim >= _SEGMENT_FLOPS
    wide = dtype.itemsize >= 4
    return "segments" if large and wide and device in ("cpu", "meta") else "tiles"


class BlockRows(NamedTuple):
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

    def of_queries(self, x_XHd: Tensor, weight_P: Tensor | None = None) -> Tensor:
        """Each row's query, times the row's weight where there are weights: (X, H, d) -> (P, d)."""
        x_Qd = x_XHd.flatten(0, 1)
        if weight_P is None:
            return x_Qd.index_select(0, self.query_P)
        weight_P1 = weight_P.to(x_Qd.dtype).unsqueeze(1)
        return embedding_bag(
            self.query_P.unsqueeze(1), x_Qd, mode="sum", per_sample_weights=weight_P1
        )

    def of_pairs(self, value_XHS: Tensor) -> Tensor:
        """Each row's value (P,); zero in rows that fill a tile."""
        value_P = value_XHS.new_zeros(self.query_P.shape)
        return value_P.scatter_(0, self.row_XHS.flatten(), value_XHS.flatten())

    def sums(self, x_Pd: Tensor, share_XHS: Tensor | None = None) -> Tensor:
        """Sums of each query's rows, weighted where there are weights: (P, d) -> (X, H, d)."""
        row_QS = self.row_XHS.flatten(0, 1)
        weight_QS = None if share_XHS is None else share_XHS.to(x_Pd.dtype).flatten(0, 1)
        summed = embedding_bag(row_QS, x_Pd, mode="sum", per_sample_weights=weight_QS)
        return summed.view(*self.row_XHS.shape[:2], x_Pd.shape[1])


def sorted_by_block(selected_XHS: Tensor, block_size: int, *, like_XHd: Tensor) -> BlockRows:
    """Rows of all pairs of a query and a block that it selects.

    Args:
        selected_XHS: blocks of each query.
        block_size: B.
        like_XHd: queries, whose width and dtype help to decide how products are made.
    """
    num, num_tokens, num_selected = selected_XHS.shape
    num_blocks, device = num_tokens // block_size, selected_XHS.device
    way = way_of(
        like_XHd.shape[2],
        block_size=block_size,
        num_selected=num_selected,
        dtype=like_XHd.dtype,
        device=device.type,
    )
    tile = tile_rows(num_tokens, num_blocks, num_selected) if way == "tiles" else 0
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
    return BlockRows(row_XHS, query_XP.flatten(), block_T.flatten(), tile)


class BlockProducts:
    """Products of rows with the blocks that they belong to, a part at a time.

    A part is the rows of a block; with tiles, all tiles of a chunk. A chunk is a few attentions,
    whose scores stay in caches.

    Args:
        rows: sorted by block.
        block_size: B.
        chunk: attentions of a chunk.
    """

    def __init__(self, rows: BlockRows, block_size: int, chunk: int) -> None:
        self.rows = rows
        self.block_size = block_size
        num, num_tokens, _ = rows.row_XHS.shape
        num_rows, num_units = len(rows.query_P), len(rows.block_T)
        each = [min(chunk, num - start) for start in range(0, num, chunk)]
        self._rows_of_chunks = [num_rows // num * count for count in each]
        if rows.tile:
            self._product = torch.bmm
            self._parts_of_chunk = 1
            self._rows_of_parts = self._rows_of_chunks
            self._units_of_parts = [num_units // num * count for count in each]
        else:
            self._product = torch.mm
            self._parts_of_chunk = num_tokens // block_size * chunk
            self._rows_of_parts = _sizes(rows.block_T, num_rows)
            self._units_of_parts = [1] * num_units

    def chunks(self, like_PB: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Parts of each chunk, its rows, and room for what is computed of each row, used again."""
        room_PB = like_PB.new_empty(max(self._rows_of_chunks, default=0), like_PB.shape[1])
        start = 0
        for number, count in enumerate(self._rows_of_chunks):
            parts = slice(number * self._parts_of_chunk, (number + 1) * self._parts_of_chunk)
            yield parts, slice(start, start + count), room_PB[:count]
            start += count

    def multiply(
        self, left: Sequence[Tensor], right: Sequence[Tensor], out: Sequence[Tensor]
    ) -> None:
        """Write each part's product to its place."""
        for one, other, product in zip(left, right, out, strict=True):
            self._product(one, other, out=product)

    def by_row(
        self, x_PK: Tensor, parts: slice = slice(None), *, transposed: bool = False
    ) -> Sequence[Tensor]:
        """Rows (those of all parts, or of some) cut into parts; each may be transposed."""
        sizes = self._rows_of_parts[parts]
        if self.rows.tile:
            tiles = [one.unflatten(0, (-1, self.rows.tile)) for one in x_PK.split(sizes)]
            return [one.mT for one in tiles] if transposed else tiles
        return x_PK.mT.split(sizes, dim=1) if transposed else x_PK.split(sizes)

    def by_block(self, x_XHd: Tensor, *, transposed: bool = False) -> Sequence[Tensor]:
        """The block of each part, or those of its tiles; each may be transposed."""
        x_UBd = x_XHd.view(-1, self.block_size, x_XHd.shape[2])
        if self.rows.tile:
            chosen = x_UBd.flatten(1).index_select(0, self.rows.block_T)
            x_UBd = chosen.unflatten(1, x_UBd.shape[1:])
        return self.by_unit(x_UBd.mT if transposed else x_UBd)

    def by_unit(self, x_UBd: Tensor) -> Sequence[Tensor]:
        """What there is of each block, or of each tile, cut into parts."""
        return x_UBd.split(self._units_of_parts) if self.rows.tile else x_UBd.unbind()

    def new_blocks(self, like_XHd: Tensor) -> Tensor:
        """Room for what is found of each block, or of each tile: (U, B, d)."""
        return like_XHd.new_empty(len(self.rows.block_T), self.block_size, like_XHd.shape[2])

    def summed(self, x_UBd: Tensor, like_XHd: Tensor) -> Tensor:
        """What was found of each block, summed over its tiles: (X, H, d)."""
        if not self.rows.tile:
            return x_UBd.view_as(like_XHd)
        blocks = torch.zeros_like(like_XHd).view(-1, self.block_size * like_XHd.shape[2])
        return blocks.index_add_(0, self.rows.block_T, x_UBd.flatten(1)).view_as(like_XHd)


def _sizes(count_XN: Tensor, num_rows: int) -> list[int]:
    """Rows of each block."""
    if count_XN.is_meta:  # how many rows each block has does not change the total
        even, rest = divmod(num_rows, len(count_XN))
        return [even + (block < rest) for block in range(len(count_XN))]
    sizes: list[int] = count_XN.tolist()
    return sizes
