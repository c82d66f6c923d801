"""DCN-v2 with a mixture of experts behind the crosses: the ranker that DIG's paper builds on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trainer.modules.cross import CrossLayer
from trainer.modules.mlp import mlp
from trainer.modules.moe import PerTokenMoE


@dataclass(frozen=True, kw_only=True)
class DCNMoEConfig:
    """Size of the tower.

    Args:
        num_layers: cross layers.
        rank: of each cross layer's matrix; None for full ones.
        dim: width at which experts work.
        num_experts: experts, each open to the rows that its gate lets in.
        expert_dim: hidden width of an expert.
        hidden_dims: layers behind the experts.
    """

    num_layers: int = 2
    rank: int | None = 32
    dim: int = 64
    num_experts: int = 4
    expert_dim: int = 64
    hidden_dims: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field and what was found.
        """
        for name in ("num_layers", "dim", "num_experts", "expert_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"DCN-MoE: {name} is {getattr(self, name)}, expected at least 1")

    def build(self, feature_dims: dict[str, int]) -> DCNMoE:
        """The tower over features of these dims, which it takes side by side in this order."""
        return DCNMoE(self, sum(feature_dims.values()))


class DCNMoE(nn.Module):
    """`deep(x' + experts(x'))` with `x' = W cross(x)` (DIG section 4.1: DCNv2, then MoE).

    Shape:
        x_BF -> (B, last hidden dim, or `dim` without hidden layers).
    """

    def __init__(self, config: DCNMoEConfig, in_dim: int) -> None:
        super().__init__()
        crosses = [CrossLayer(in_dim, rank=config.rank) for _ in range(config.num_layers)]
        self.num_crosses = len(crosses)
        self.is_low_rank = config.rank is not None
        experts = PerTokenMoE(
            num_tokens=1,
            dim=config.dim,
            hidden_dim=config.expert_dim,
            num_experts=config.num_experts,
            training_mode="sparse",
        )
        self.blocks = nn.ModuleList(
            [*crosses, mlp(in_dim, (config.dim,)), experts, mlp(config.dim, config.hidden_dims)]
        )
        self.out_dim = config.hidden_dims[-1] if config.hidden_dims else config.dim

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, out_dim)."""
        crossed_BF = x_BF
        for cross in self.blocks[: self.num_crosses]:
            crossed_BF = cross(x_BF, crossed_BF)
        project, experts, deep = self.blocks[self.num_crosses :]
        x_BD = project(crossed_BF)
        x_BD = x_BD + experts(x_BD.unsqueeze(1)).squeeze(1)
        if self.training:  # no penalty on gates here: what they were is let go of
            assert isinstance(experts, PerTokenMoE)
            experts.pop_penalty()
        out_BD: Tensor = deep(x_BD)
        return out_BD
