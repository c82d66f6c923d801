"""DHEN: every layer is an ensemble of different interaction modules.

Legend: B impressions, T tokens (embeddings), D token dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.modules.interactions import (
    AttentionInteraction,
    CompressTokens,
    CrossInteraction,
    DotInteraction,
)
from trainer.modules.per_token import FeatureTokens
from trainer.modules.transformer_block import check_heads

Interaction = Literal["cross", "attention", "linear", "dot"]
Ensemble = Literal["sum", "concat"]
"""`sum`: every module makes T tokens, which are added; `concat`: each makes its share of them."""


@dataclass(frozen=True, kw_only=True)
class DHENConfig:
    """Size of a DHEN tower.

    Args:
        num_tokens: T, embeddings that enter and leave each layer.
        dim: D, of each.
        num_layers: of ensembles.
        interactions: modules of each layer's ensemble.
        ensemble: how their outputs are joined.
        num_heads: of the attention module.
        expansion: hidden dim of the attention module's network over D.
        dot_hidden_dim: hidden layer of the dot module.
        cross_rank: of the cross module's matrix; None for a full one.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    interactions: tuple[Interaction, ...] = ("cross", "attention", "linear", "dot")
    ensemble: Ensemble = "sum"
    num_heads: int = 4
    expansion: float = 4.0
    dot_hidden_dim: int = 256
    cross_rank: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        check_heads("DHEN", self.dim, self.num_heads)
        if not self.interactions or len(set(self.interactions)) < len(self.interactions):
            raise ValueError(
                f"DHEN: interactions is {self.interactions}, expected one or more, each once"
            )
        if self.ensemble == "concat" and self.num_tokens % len(self.interactions):
            raise ValueError(
                f"DHEN: num_tokens is {self.num_tokens}, which {len(self.interactions)} "
                "interactions can't share evenly; change it, or take ensemble='sum'"
            )

    def build(self, feature_dims: dict[str, int]) -> DHEN:
        """The tower over features of these dims, which it takes side by side in this order."""
        return DHEN(self, sum(feature_dims.values()))


class DHENLayer(nn.Module):
    """`LN(ensemble_i(interaction_i(X)) + X)` (DHEN section 3.2, Eq. 1).

    Of the paper's modules: AdvancedDLRM (`dot`), self-attention, linear and deep cross net; not
    convolution. As many tokens leave as enter, so the shortcut needs no projection.
    """

    def __init__(self, config: DHENConfig) -> None:
        super().__init__()
        num_tokens, dim = config.num_tokens, config.dim
        num_out = num_tokens
        if config.ensemble == "concat":
            num_out = num_tokens // len(config.interactions)
        build: dict[Interaction, Callable[[], nn.Module]] = {
            "cross": lambda: CrossInteraction(num_tokens, num_out, dim=dim, rank=config.cross_rank),
            "attention": lambda: AttentionInteraction(
                num_tokens,
                num_out,
                dim=dim,
                num_heads=config.num_heads,
                hidden_dim=int(dim * config.expansion),
            ),
            "linear": lambda: CompressTokens(num_tokens, num_out),
            "dot": lambda: DotInteraction(
                num_tokens, num_out, dim=dim, hidden_dim=config.dot_hidden_dim
            ),
        }
        self.ensemble = config.ensemble
        self.interactions = nn.ModuleDict({name: build[name]() for name in config.interactions})
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        made = [interaction(x_BTD) for interaction in self.interactions.values()]
        joined_BTD = torch.cat(made, dim=1) if self.ensemble == "concat" else sum(made)
        out_BTD: Tensor = self.norm(joined_BTD + x_BTD)
        return out_BTD


class DHEN(nn.Module):
    """Features -> T tokens -> layers -> all tokens side by side (Zhang et al., 2022).

    Shape:
        x_BF -> (B, T * D).
    """

    def __init__(self, config: DHENConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.num_tokens * config.dim
        self.tokenize = FeatureTokens(in_dim, num_tokens=config.num_tokens, dim=config.dim)
        self.blocks = nn.ModuleList(DHENLayer(config) for _ in range(config.num_layers))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, T * D)."""
        x_BTD: Tensor = self.tokenize(x_BF)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD.flatten(1)
