"""RankMixer whose per-token networks are sparse mixtures of experts."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from trainer.modules.moe import MoETraining, PerTokenMoE
from trainer.modules.per_token import FeatureTokens
from trainer.modules.token_mixing import RankMixerBlock

logger = logging.getLogger(__name__)

_REPORT_EVERY = 100
"""Training steps between two looks for dead experts."""
_LEAST_PENALTY = 1e-12
"""The weight never falls so far that it could not come back."""


@dataclass(frozen=True, kw_only=True)
class RankMixerMoEConfig:
    """Size and routing of a RankMixer with experts.

    Args:
        num_tokens: T; also the number of heads of token mixing.
        dim: D, dim of a token; a multiple of `num_tokens`.
        num_layers: number of blocks.
        expansion: hidden dim of an expert over D.
        num_experts: of each token and layer.
        training: `dense` trains every expert and serves the open ones (DTSI); `sparse` trains the
            open ones alone.
        open_share: experts that should be open, as a share; the penalty adapts until they are.
        penalty: first weight of the l1 penalty.
        penalty_step: factor by which a step raises the weight while too many experts are open, and
            lowers it while too few are.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    expansion: float = 4.0
    num_experts: int = 4
    training: MoETraining = "dense"
    open_share: float = 0.25
    penalty: float = 1e-6
    penalty_step: float = 1.2

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.dim % self.num_tokens:
            raise ValueError(
                f"RankMixer: dim ({self.dim}) must be a multiple of num_tokens "
                f"({self.num_tokens}), since each token is cut into num_tokens heads"
            )
        if self.num_experts < 2:
            raise ValueError(f"num_experts is {self.num_experts}, expected at least 2")
        if not 0 < self.open_share <= 1:
            raise ValueError(f"open_share is {self.open_share}, expected above 0 and at most 1")
        if self.penalty <= 0 or self.penalty_step <= 1:
            raise ValueError(
                f"penalty is {self.penalty} and penalty_step {self.penalty_step}, expected above 0 "
                "and above 1"
            )

    def build(self, feature_dims: dict[str, int]) -> RankMixerMoE:
        """The tower over features of these dims, which it takes side by side in this order."""
        return RankMixerMoE(self, sum(feature_dims.values()))


class RankMixerMoE(nn.Module):
    """RankMixer with a mixture of experts for each token's network (RankMixer section 3.4).

    The l1 penalty has one weight for the whole tower. It follows the share of open experts: too
    many open, and it grows by a constant factor a step; too few, and it shrinks.

    Shape:
        x_BF -> (B, D).
    """

    penalty_weight: Tensor

    def __init__(self, config: RankMixerMoEConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.dim
        self.tokenize = FeatureTokens(in_dim, num_tokens=config.num_tokens, dim=config.dim)
        self.blocks = nn.ModuleList(
            RankMixerBlock(
                config.dim,
                PerTokenMoE(
                    num_tokens=config.num_tokens,
                    dim=config.dim,
                    hidden_dim=int(config.dim * config.expansion),
                    num_experts=config.num_experts,
                    training_mode=config.training,
                ),
            )
            for _ in range(config.num_layers)
        )
        self.register_buffer("penalty_weight", torch.tensor(config.penalty))
        self._num_steps = 0

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        x_BTD = self.tokenize(x_BF)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD.mean(dim=1)

    @property
    def mixtures(self) -> list[PerTokenMoE]:
        """The mixture of every block."""
        return [module for module in self.blocks.modules() if isinstance(module, PerTokenMoE)]

    @property
    def num_dead(self) -> int:
        """Experts of all blocks that hardly any row reached lately."""
        return sum(mixture.num_dead for mixture in self.mixtures)

    def auxiliary_loss(self) -> Tensor:
        """The weighted l1 penalty of the last training forward pass; then adapts its weight.

        Called once a training step, on every rank: the share of open experts is that of all ranks'
        rows, so that the weight is the same everywhere.
        """
        found = [mixture.pop_penalty() for mixture in self.mixtures]
        loss = self.penalty_weight.clone() * torch.stack([penalty for penalty, _ in found]).sum()
        open_LTE = torch.stack([open_TE for _, open_TE in found])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(open_LTE)
            open_LTE /= distributed.get_world_size()
        for mixture, open_TE in zip(self.mixtures, open_LTE, strict=True):
            mixture.remember(open_TE)
        step = torch.sign(open_LTE.mean() - self.config.open_share)
        self.penalty_weight.mul_(self.config.penalty_step**step).clamp_(min=_LEAST_PENALTY)
        self._report_dead_experts()
        return loss

    def _report_dead_experts(self) -> None:
        self._num_steps += 1
        if self._num_steps % _REPORT_EVERY:
            return
        total = sum(mixture.open_share_TE.numel() for mixture in self.mixtures)
        logger.info(
            "%d of %d experts are dead; %.1f %% are open, penalty weight %.2g",
            self.num_dead,
            total,
            100 * torch.stack([mixture.open_share_TE.mean() for mixture in self.mixtures]).mean(),
            self.penalty_weight,
        )
