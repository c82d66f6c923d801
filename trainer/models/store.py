"""STORE: parallel semantic IDs, rotated static features, attention to a part of the tokens.

Legend: B impressions, K semantic IDs of an item (and tokens, H in the paper), d dim of a semantic
ID, C width of the block of static features, D = d + C token dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from trainer.modules.moba import EfficientAttention, check_sparsity
from trainer.modules.rotation import FeatureGroups, Rotations
from trainer.modules.transformer_block import check_heads

Rotation = Literal["orthogonal", "none"]
"""`none` gives every token the same block of static features."""

FeatureNames = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Sizes of a STORE tower, and which features are what.

    Args:
        num_tokens: K, semantic IDs of an item; each is a token.
        groups: semantic groups of static features: every feature that is no semantic ID, each in
            one group.
        semantic_ids: what stands for high-cardinality IDs. Each is a tuple of features whose
            embeddings side by side are cut into K equal parts: `("candidate",)` for items, and for
            another ID that is tokenized K features of a code each.
        group_dim: c, width of a fused group.
        group_hidden_dim: hidden width of a group's network (Eq. 6).
        num_layers: of attention and feed-forward network.
        num_heads: of attention; divides D.
        ffn_dim: hidden width of the feed-forward network.
        sparsity: share of tokens that a token does not attend to; 0 is vanilla attention.
        block_size: tokens that are selected together; None with sparsity 0.
        rotation: of the block of static features, one a token (Eq. 7).
        diversity: lambda, weight of the distance between rotations (Eq. 8).
        network_steps: steps of the rest of the network for one step of the rotations, which are
            trained in turn; tables learn in every step.
    """

    num_tokens: int
    groups: tuple[FeatureNames, ...]
    semantic_ids: tuple[FeatureNames, ...] = (("candidate",),)
    group_dim: int = 24
    group_hidden_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    sparsity: float = 0.5
    block_size: int | None = 1
    rotation: Rotation = "orthogonal"
    diversity: float = 0.1
    network_steps: int = 9

    def __post_init__(self) -> None:
        """Check what can be checked without features.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        for name in (
            "num_tokens",
            "group_dim",
            "group_hidden_dim",
            "num_layers",
            "ffn_dim",
            "network_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"STORE: {name} is {getattr(self, name)}, expected at least 1")
        if self.diversity < 0:
            raise ValueError(f"STORE: diversity is {self.diversity}, expected at least 0")
        if self.rotation not in ("orthogonal", "none"):
            raise ValueError(
                f"STORE: rotation is {self.rotation!r}, expected 'orthogonal' or 'none'"
            )
        if not self.groups or not self.semantic_ids:
            raise ValueError(
                f"STORE: groups is {self.groups} and semantic_ids {self.semantic_ids}, expected at "
                "least one of each"
            )
        if self.rotation == "orthogonal" and self.block_dim < 2:
            raise ValueError(
                "STORE: one group of group_dim 1 can't be rotated; give more, or rotation='none'"
            )
        check_sparsity(self.num_tokens, self.block_size, self.sparsity)

    @property
    def block_dim(self) -> int:
        """C."""
        return len(self.groups) * self.group_dim

    def build(self, feature_dims: dict[str, int]) -> Store:
        """The tower over features of these dims, which it takes side by side in this order."""
        return Store(self, feature_dims)


class Store(nn.Module):
    """K tokens `[s_i, O_i]` -> layers of attention and network -> mean over tokens (section 2.3).

    s_i is the embedding of the i-th semantic ID, O_i the block of static features by the i-th
    rotation. Which token is which, only these tell: weights are shared by tokens.

    The paper does not say how the last layer's tokens become a prediction; here task heads read
    their mean. Its Eq. 10 is attention alone; each layer has a feed-forward network besides, as
    blocks of transformers do.

    Shape:
        x_BF -> (B, D).

    Raises:
        ValueError: features that stand nowhere or twice, or widths that do not divide.
    """

    def __init__(self, config: StoreConfig, feature_dims: Mapping[str, int]) -> None:
        super().__init__()
        _check_features(config, feature_dims)
        self.config = config
        self.feature_dims = dict(feature_dims)
        self.out_dim = config.block_dim + sum(
            sum(feature_dims[name] for name in names) // config.num_tokens
            for names in config.semantic_ids
        )
        check_heads("STORE", self.out_dim, config.num_heads)
        self.groups = FeatureGroups(
            [sum(feature_dims[name] for name in group) for group in config.groups],
            hidden_dim=config.group_hidden_dim,
            dim=config.group_dim,
        )
        self.rotations = (
            Rotations(config.num_tokens, config.block_dim)
            if config.rotation == "orthogonal"
            else None
        )
        self.blocks = nn.ModuleList(
            StoreLayer(self.out_dim, config) for _ in range(config.num_layers)
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        parts = x_BF.split(list(self.feature_dims.values()), dim=1)
        by_name = dict(zip(self.feature_dims, parts, strict=True))

        def joined(names: FeatureNames) -> Tensor:
            return torch.cat([by_name[name] for name in names], dim=1)

        num_tokens = self.config.num_tokens
        block_BC = self.groups([joined(group) for group in self.config.groups])
        turned_BKC = (
            block_BC.unsqueeze(1).expand(-1, num_tokens, -1)
            if self.rotations is None
            else self.rotations(block_BC)
        )
        ids = [joined(names).unflatten(1, (num_tokens, -1)) for names in self.config.semantic_ids]
        x_BKD = torch.cat([*(one.to(turned_BKC.dtype) for one in ids), turned_BKC], dim=2)
        for layer in self.blocks:
            x_BKD = layer(x_BKD)
        return x_BKD.mean(dim=1)

    def auxiliary_loss(self) -> Tensor:
        """Eq. 8: what keeps the rotations of the last training forward pass apart, weighted."""
        if self.rotations is None:
            return next(self.parameters()).new_zeros(())
        return -self.config.diversity * self.rotations.diversity()

    def measures(self) -> dict[str, float]:
        """Orthogonality and distance of the rotations in the last training forward pass."""
        return {} if self.rotations is None else self.rotations.measures()

    def parameters_with_turns(self) -> list[nn.Parameter]:
        """The rotations': they and the rest of the network are trained in turn (section 2.2)."""
        return [] if self.rotations is None else list(self.rotations.parameters())

    def is_their_turn(self, step: int) -> bool:
        """Whether the rotations learn in this step (counted from 0), and the rest waits."""
        every = self.config.network_steps + 1
        return self.rotations is not None and step % every == every - 1


class StoreLayer(nn.Module):
    """Attention, then a network of each token, each with residual and LayerNorm (Eq. 10).

    Args:
        dim: D.
        config: of the tower.

    Shape:
        (B, K, D) -> (B, K, D).
    """

    def __init__(self, dim: int, config: StoreConfig) -> None:
        super().__init__()
        self.attention = EfficientAttention(
            dim,
            num_heads=config.num_heads,
            num_tokens=config.num_tokens,
            sparsity=config.sparsity,
            block_size=config.block_size,
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(self, x_BKD: Tensor) -> Tensor:
        """Mix tokens, then each on its own."""
        x_BKD = self.attention_norm(self.attention(x_BKD) + x_BKD)
        out_BKD: Tensor = self.ffn_norm(self.ffn_out(gelu(self.ffn_in(x_BKD))) + x_BKD)
        return out_BKD


def _check_features(config: StoreConfig, feature_dims: Mapping[str, int]) -> None:
    """Every feature stands in one place, and semantic IDs can be cut into tokens.

    Raises:
        ValueError: naming the features.
    """
    named = [name for names in (*config.semantic_ids, *config.groups) for name in names]
    missing = [name for name in feature_dims if name not in named]
    unknown = [name for name in named if name not in feature_dims]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if missing or unknown or repeated:
        raise ValueError(
            "STORE: groups and semantic_ids must name every feature once; features that stand "
            f"nowhere: {missing or 'none'}; that are not there: {unknown or 'none'}; that stand "
            f"twice: {repeated or 'none'}"
        )
    for names in config.semantic_ids:
        width = sum(feature_dims[name] for name in names)
        if width % config.num_tokens:
            raise ValueError(
                f"STORE: {' and '.join(names)} have {width} values, which {config.num_tokens} "
                "tokens (num_tokens) can't share evenly"
            )
