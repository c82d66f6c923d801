"""OneTrans: one causal transformer over tokens of the history and tokens of everything else.

Legend: B impressions, F features side by side, S history tokens, N other tokens, T = S + N, K
history tokens that are kept, D token dim, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from trainer.modules.mlp import mlp
from trainer.modules.per_token import PerTokenLinear
from trainer.modules.transformer_block import check_heads


@dataclass(frozen=True, kw_only=True)
class OneTransConfig:
    """Size of a OneTrans tower.

    Args:
        num_tokens: N, tokens of the features that are not of the history.
        dim: D, dim of a token; a multiple of `num_heads`.
        num_layers: number of blocks.
        num_heads: of attention.
        expansion: hidden dim of the feed-forward networks over D.
        sequence_features: features that are summaries of the history, one token each.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    num_heads: int = 4
    expansion: float = 4.0
    sequence_features: tuple[str, ...] = ("history", "candidate_x_history", "feedback_sum")

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: when tokens can't be cut into heads, or there are none.
        """
        check_heads("OneTrans", self.dim, self.num_heads)
        if min(self.num_tokens, self.num_layers, len(self.sequence_features)) < 1:
            raise ValueError(
                f"OneTrans: num_tokens is {self.num_tokens}, num_layers {self.num_layers} and "
                f"sequence_features {self.sequence_features}, expected at least one of each"
            )

    def build(self, feature_dims: dict[str, int]) -> OneTrans:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when a sequence feature is none of them, or no other is left.
        """
        return OneTrans(self, feature_dims)


class MixedLinear(nn.Module):
    """A linear layer that history tokens share, and one for each other token (section 3.3.1).

    Args:
        num_history: history tokens of the input; without any there is no shared layer.
        num_others: N.
        in_dim, out_dim: of the layers.
    """

    def __init__(self, num_history: int, num_others: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.num_history = num_history
        self.shared = nn.Linear(in_dim, out_dim) if num_history else None
        self.own = PerTokenLinear(num_others, in_dim, out_dim)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """(B, T, in_dim) -> (B, T, out_dim), history tokens first."""
        own_BNO: Tensor = self.own(x_BTI[:, self.num_history :])
        if self.shared is None:
            return own_BNO
        return torch.cat([self.shared(x_BTI[:, : self.num_history]), own_BNO], dim=1)


class OneTransBlock(nn.Module):
    """Pre-norm causal attention and feed-forward network, weights mixed (Eq. 7 to 11).

    Queries come from the last `num_kept` history tokens and all others; keys and values from all
    tokens. What has no query leaves the stack, which so becomes a pyramid (section 3.4).
    """

    def __init__(
        self, config: OneTransConfig, *, num_history: int, num_kept: int, hidden_dim: int
    ) -> None:
        super().__init__()
        dim, others = config.dim, config.num_tokens
        self.num_heads = config.num_heads
        self.num_dropped = num_history - num_kept
        self.attention_norm = nn.RMSNorm(dim)
        self.query = MixedLinear(num_kept, others, dim, dim)
        self.key_value = MixedLinear(num_history, others, dim, 2 * dim)
        self.attention_out = MixedLinear(num_kept, others, dim, dim)
        self.ffn_norm = nn.RMSNorm(dim)
        self.ffn_in = MixedLinear(num_kept, others, dim, hidden_dim)
        self.ffn_out = MixedLinear(num_kept, others, hidden_dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, S + N, D) -> (B, K + N, D)."""
        normed_BTD = self.attention_norm(x_BTD)
        key_BTD, value_BTD = self.key_value(normed_BTD).chunk(2, dim=2)
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query(normed_BTD[:, self.num_dropped :]), key_BTD, value_BTD)
        )
        attended = scaled_dot_product_attention(q, k, v, attn_mask=self._sees(x_BTD))
        kept_BTD = x_BTD[:, self.num_dropped :]
        kept_BTD = kept_BTD + self.attention_out(attended.transpose(1, 2).flatten(2))
        out_BTD: Tensor = kept_BTD + self.ffn_out(gelu(self.ffn_in(self.ffn_norm(kept_BTD))))
        return out_BTD

    def _sees(self, x_BTD: Tensor) -> Tensor:
        """Which tokens each query may see: itself and those before."""
        num_tokens = x_BTD.shape[1]
        ones = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x_BTD.device)
        return ones.tril()[self.num_dropped :]


class OneTrans(nn.Module):
    """OneTrans (Zhang et al., 2025) as a tower.

    Tokens of the history come first, each through a layer of its own; an MLP makes the N others
    of all other features side by side (the paper's auto-split tokenizer). The history tokens that
    go on shrink linearly to none in the last block; the others' output is what task heads read.

    What is left out: a tower gets summaries of the history, not its items, so S is the number of
    `sequence_features` and there are no tokens between behaviours and no cache of a user's keys;
    the pyramid saves little at such an S.

    Shape:
        x_BF -> (B, N * D).
    """

    def __init__(self, config: OneTransConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.widths = list(feature_dims.values())
        names = list(feature_dims)
        self.history = [names.index(name) for name in _known(config, feature_dims)]
        self.others = [at for at in range(len(names)) if at not in self.history]
        self.out_dim = config.num_tokens * config.dim
        num_history = len(self.history)
        self.history_tokens = nn.ModuleList(
            nn.Linear(self.widths[at], config.dim) for at in self.history
        )
        self.other_tokens = mlp(
            sum(self.widths[at] for at in self.others), (config.dim,), self.out_dim
        )
        kept = [
            round(num_history * (1 - at / config.num_layers)) for at in range(config.num_layers + 1)
        ]
        self.blocks = nn.ModuleList(
            OneTransBlock(
                config,
                num_history=before,
                num_kept=after,
                hidden_dim=int(config.dim * config.expansion),
            )
            for before, after in pairwise(kept)
        )
        self.norm = nn.RMSNorm(config.dim)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, N * D)."""
        fields = x_BF.split(self.widths, dim=1)
        tokens = [
            project(fields[at])
            for project, at in zip(self.history_tokens, self.history, strict=True)
        ]
        others_BF = torch.cat([fields[at] for at in self.others], dim=1)
        others_BND = self.other_tokens(others_BF).unflatten(1, (-1, self.config.dim))
        x_BTD = torch.cat([torch.stack(tokens, dim=1), others_BND], dim=1)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        out_BND: Tensor = self.norm(x_BTD)
        return out_BND.flatten(1)


def _known(config: OneTransConfig, feature_dims: Mapping[str, int]) -> tuple[str, ...]:
    names = config.sequence_features
    unknown = [name for name in names if name not in feature_dims]
    if unknown or set(names) == set(feature_dims):
        raise ValueError(
            f"OneTrans: sequence_features is {', '.join(names)}, expected some of the features "
            f"{', '.join(feature_dims)}, but not all"
        )
    return names
