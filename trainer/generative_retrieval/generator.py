"""The next-token transformer that all generative baselines share: decoder-only, over item tokens.

TIGER and ETEGRec use an encoder-decoder (T5): it reads a history and generates one item, so that a
sequence of T items takes T passes to learn all of. A causal decoder learns every position of a
sequence in one pass, with the same factorization `P(c_l | history, c_<l)`; it is what a CPU can
train, and as DIG's comparison demands, all tokenizers are compared under the same one.

A sequence is a start token and then L tokens for each item, oldest first. The output at the start
token, and at the last token of an item, predicts the first code of the next item. Attention knows
how far tokens are apart (rotary positions; T5 has relative ones too), not where they stand: users
with long histories are few, and what follows what does not depend on how much went before.

Legend: B rows, T items of a row, L levels, K codes, D dim, H heads, h = D / H, S = 1 + T L tokens,
R rows of a search, W beams of a row, N tokens that a beam has generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of the transformer.

    Args:
        dim: D.
        num_layers: blocks.
        num_heads: H.
        expansion: hidden dim of a block's feed-forward network over D.
        dropout: of embeddings and of what blocks add.
        max_items: last items of a history that are read.
        rotary_base: the slowest pair of a head's features turns once in 2 pi times so many tokens,
            nearly.
    """

    dim: int = 128
    num_layers: int = 3
    num_heads: int = 4
    expansion: int = 4
    dropout: float = 0.1
    max_items: int = 50
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        for name in ("dim", "num_layers", "num_heads", "expansion", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name} is {getattr(self, name)}, expected 1 or more")
        if self.dim % (2 * self.num_heads):
            raise ValueError(
                f"generator.dim ({self.dim}) must be a multiple of twice num_heads "
                f"({self.num_heads}): features of a head are turned in pairs"
            )
        if self.rotary_base <= 1:
            raise ValueError(f"generator.rotary_base is {self.rotary_base}, expected above 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"generator.dropout is {self.dropout}, expected 0 to below 1")


class EncodedHistories(NamedTuple):
    """Histories after the transformer, ready to be continued.

    Attributes:
        last_RD: outputs at the last token of each.
        past: of each block, keys and values (R, H, S, h).
        seen_RS: bool; False for padding.
        length_R: int64, items of each.
    """

    last_RD: Tensor
    past: list[KeysValues]
    seen_RS: Tensor
    length_R: Tensor


class Generator(nn.Module):
    """Codes of items to logits of the next code.

    The heads are the token embeddings, transposed.

    Args:
        config: sizes.
        num_levels: L.
        num_codes: K.
    """

    def __init__(self, config: GeneratorConfig, *, num_levels: int, num_codes: int) -> None:
        super().__init__()
        self.config = config
        self.num_levels, self.num_codes = num_levels, num_codes
        self.token_LKD = nn.Parameter(torch.empty(num_levels, num_codes, config.dim))
        self.bias_LK = nn.Parameter(torch.zeros(num_levels, num_codes))
        self.start_D = nn.Parameter(torch.zeros(config.dim))
        nn.init.normal_(self.token_LKD, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, codes_BTL: Tensor) -> Tensor:
        """Outputs (B, T, L, D), each at the token before the one that it predicts.

        Args:
            codes_BTL: int64, any code behind the end of a row.
        """
        num_items = codes_BTL.shape[1]
        x_BSD = self.dropout(self._embed(codes_BTL)[:, :-1])
        for block in self.blocks:
            x_BSD, _ = block(x_BSD)
        outputs: Tensor = self.norm(x_BSD).unflatten(1, (num_items, self.num_levels))
        return outputs

    def logits(self, output_BD: Tensor, level: int) -> Tensor:
        """Logits (..., K) of the codes of a level."""
        return nn.functional.linear(output_BD, self.token_LKD[level], self.bias_LK[level])

    def loss(self, output_BTLD: Tensor, codes_BTL: Tensor, there_BT: Tensor) -> Tensor:
        """Cross-entropy of the right codes, summed over levels, mean over items; a scalar.

        Args:
            output_BTLD: of `forward`.
            codes_BTL: int64.
            there_BT: bool; False behind the end of a row.
        """
        output_PLD, codes_PL = output_BTLD[there_BT], codes_BTL[there_BT]
        losses = [
            cross_entropy(self.logits(output_PLD[:, level], level), codes_PL[:, level])
            for level in range(self.num_levels)
        ]
        return torch.stack(losses).sum()

    def encode(self, codes_RTL: Tensor, length_R: Tensor) -> EncodedHistories:
        """Pass histories through the blocks once, to be continued by `follow`.

        Args:
            codes_RTL: int64, any code behind the end of a row.
            length_R: int64 items of each row.
        """
        x_RSD, past = self._embed(codes_RTL), []
        for block in self.blocks:
            x_RSD, seen = block(x_RSD)
            past.append(seen)
        last_R = length_R * self.num_levels
        row_R, place_S = (torch.arange(size, device=x_RSD.device) for size in x_RSD.shape[:2])
        return EncodedHistories(
            self.norm(x_RSD[row_R, last_R]), past, place_S <= last_R.unsqueeze(1), length_R
        )

    def follow(
        self,
        histories: EncodedHistories,
        generated: list[KeysValues],
        code_RW: Tensor,
        *,
        level: int,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Append a code to each beam.

        Args:
            histories: of the rows.
            generated: of each block, keys and values (R, H, W, N, h) of the beams' own tokens;
                an empty list for the first.
            code_RW: int64.
            level: of these codes.

        Returns:
            outputs (R, W, D) that predict the next level, and `generated` with the new tokens.
        """
        x_RWD, longer = self.token_LKD[level, code_RW], []
        place_R = histories.length_R * self.num_levels + level + 1
        for index, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            own = generated[index] if generated else None
            past = histories.past[index]
            x_RWD, own = block.follow(x_RWD, place_R, past, histories.seen_RS, own)
            longer.append(own)
        return self.norm(x_RWD), longer

    def _embed(self, codes_BTL: Tensor) -> Tensor:
        """Start token and tokens of all items (B, S, D)."""
        level_L = torch.arange(self.num_levels, device=codes_BTL.device)
        x_BTLD = self.token_LKD[level_L, codes_BTL]
        start_B1D = self.start_D.expand(len(codes_BTL), 1, -1)
        return torch.cat([start_B1D, x_BTLD.flatten(1, 2)], dim=1)


class _Block(nn.Module):
    """Pre-norm causal attention and a feed-forward network, each with a residual."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.expansion * config.dim
        self.num_heads, self.rotary_base = config.num_heads, config.rotary_base
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.ffn_in, self.ffn_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, KeysValues]:
        """Every token sees itself and what stands before it."""
        place_S = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        query_BHSh, key_BHSh, value_BHSh = self._heads(x_BSD, place_S)
        seen_BHSh = scaled_dot_product_attention(query_BHSh, key_BHSh, value_BHSh, is_causal=True)
        return self._finish(x_BSD, seen_BHSh), (key_BHSh, value_BHSh)

    def follow(
        self,
        x_RWD: Tensor,
        place_R: Tensor,
        past: KeysValues,
        seen_RS: Tensor,
        own: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        """Every beam sees its row's history, its own tokens so far, and itself."""
        query_RHWh, *new = self._heads(x_RWD, place_R[:, None, None])
        own_RHWNh = [part_RHWh.unsqueeze(3) for part_RHWh in new]
        if own is not None:
            pairs = zip(own, own_RHWNh, strict=True)
            own_RHWNh = [torch.cat([before, after], dim=3) for before, after in pairs]
        key_RHWNh, value_RHWNh = own_RHWNh
        query_RHWh = query_RHWh * query_RHWh.shape[3] ** -0.5
        of_past_RHWS = (query_RHWh @ past[0].mT).masked_fill(
            ~seen_RS[:, None, None, :], float("-inf")
        )
        of_own_RHWN = (query_RHWh.unsqueeze(3) * key_RHWNh).sum(dim=4)
        share = torch.cat([of_past_RHWS, of_own_RHWN], dim=3).softmax(dim=3)
        past_RHWS, own_RHWN = share.split([seen_RS.shape[1], key_RHWNh.shape[3]], dim=3)
        seen_RHWh = past_RHWS @ past[1] + (own_RHWN.unsqueeze(4) * value_RHWNh).sum(dim=3)
        return self._finish(x_RWD, seen_RHWh), (key_RHWNh, value_RHWNh)

    def _heads(self, x_BSD: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, S, h) of tokens at places that broadcast to (B, H, S)."""
        parts_BS3Hh = self.query_key_value(self.attention_norm(x_BSD)).unflatten(
            2, (3, self.num_heads, -1)
        )
        query, key, value = parts_BS3Hh.permute(2, 0, 3, 1, 4).unbind(0)
        base = self.rotary_base
        return rotated(query, place, base=base), rotated(key, place, base=base), value

    def _finish(self, x_BSD: Tensor, seen_BHSh: Tensor) -> Tensor:
        x_BSD = x_BSD + self.dropout(self.attention_out(seen_BHSh.transpose(1, 2).flatten(2)))
        return x_BSD + self.dropout(self.ffn_out(gelu(self.ffn_in(self.ffn_norm(x_BSD)))))


def rotated(x: Tensor, place: Tensor, *, base: float) -> Tensor:
    """Turn pairs of features by angles that grow with the token's place (RoPE, Su et al.).

    The product of a query and a key then depends on how far they are apart, not on where they are.

    Args:
        x: (..., h), h even.
        place: int64, broadcasts to (...).
        base: pair `i` of `h / 2` turns by `base ** (-2 i / h)` a token.
    """
    half = x.shape[-1] // 2
    speed = base ** (-torch.arange(half, device=x.device) / half)
    angle = place.unsqueeze(-1) * speed
    cos, sin = angle.cos(), angle.sin()
    one, other = x.split(half, dim=-1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)
