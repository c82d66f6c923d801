"""Settings of a DIG model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trainer.models.dig import DigNetwork
from trainer.models.ranking_network import RankingModelConfig, RankingNetwork
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.modules.recall_samples import ImpressionU2T
from trainer.modules.token_cross import (
    NoTokenCross,
    RetrievalU2T,
    TokenCross,
    TokenMeans,
    TokenPredictor,
)
from trainer.modules.user_to_token import Scope

_OF_RETRIEVAL = (
    *("u2t_scope", "impression_u2t", "retrieval_u2t"),
    *("unclicked_negatives", "last_level_only"),
)


@dataclass(frozen=True, kw_only=True)
class DigModelConfig(RankingModelConfig):
    """A ranking model with DIG's tokenizer and losses (section 3.3); defaults of section 4.1.

    Args:
        item: static features, encoder and codebooks.
        recall_weight: of L_recall; 0 is the paper's rank-only model, without the retrieval path.
        commit_weight, sem_weight, u2t_weight: lambda_1 to lambda_3 of Eq. 8.
        u2t_scope: whose impressions the buckets of Eq. 13 are over.
        u2t_hidden_dim: of MLP_u2t.
        num_negatives: items of the whole catalogue drawn for each impression as negatives of the
            retrieval samples, whose positives are impressions with a positive first label. 0 leaves
            retrieval samples out.
        unclicked_negatives: impressions whose first label is not positive are negatives of the
            retrieval samples too, beside the random ones; the paper has random ones alone.
        impression_u2t: what impressions are given for u2t in L_recall (Eq. 7).
        retrieval_u2t: what stands for u2t in retrieval, and in the samples that it learns from;
            `u2t_weight` has no effect without MLP_u2t.
        cross_share: share of the impressions whose cross features are given; those of the others
            are zeros, in training and afterwards (Table 7).
        last_level_only: supervise full SIDs alone in place of every prefix (Ablation 4).
        history_heads: vectors that the history is summed up in for e_u.
        track_every: training steps between two looks at the SIDs of the whole catalogue, for the
            collisions, dead codes and drift in the metrics.
        user_feature: pooled feature that tells users apart.

    Raises:
        ValueError: naming the field, what was found and what is expected.
    """

    item: LearnedTokensConfig  # type: ignore[assignment]  # not what the base class reads
    recall_weight: float = 1.0
    commit_weight: float = 0.25
    sem_weight: float = 0.1
    u2t_weight: float = 0.1
    u2t_scope: Scope = "batch"
    u2t_hidden_dim: int = 64
    num_negatives: int = 2
    unclicked_negatives: bool = False
    impression_u2t: ImpressionU2T = "statistic"
    retrieval_u2t: RetrievalU2T = "mlp"
    cross_share: float = 1.0
    last_level_only: bool = False
    history_heads: int = 2
    track_every: int = 50
    user_feature: str = "user_id"

    def __post_init__(self) -> None:
        """Check what the base class leaves open."""
        if self.next_token is not None:
            raise ValueError(
                "model.next_token is set, but a DIG model generates with its ranker; set it to None"
            )
        for name in ("recall_weight", "commit_weight", "sem_weight", "u2t_weight", "num_negatives"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}, expected at least 0")
        for name in ("history_heads", "track_every", "u2t_hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.cross_share <= 1:
            raise ValueError(f"model.cross_share is {self.cross_share}, expected 0 to 1")
        of_retrieval = [one for one in fields(self) if one.name in _OF_RETRIEVAL]
        changed = [one.name for one in of_retrieval if getattr(self, one.name) != one.default]
        if changed and not self.recall_weight:
            raise ValueError(
                f"model.{changed[0]} is {getattr(self, changed[0])}, but recall_weight is 0, so "
                f"there is no retrieval path for it; leave {', '.join(changed)} out"
            )
        if self.unclicked_negatives and not self.num_negatives:
            raise ValueError(
                "model.unclicked_negatives is set, but num_negatives is 0, so there are no "
                "retrieval samples; set num_negatives to at least 1"
            )
        if self.retrieval_u2t == "mean" and self.u2t_scope == "user":
            raise ValueError(
                "model.retrieval_u2t is 'mean', which keeps one mean a code, but u2t_scope is "
                "'user'; set u2t_scope='batch', or retrieval_u2t='mlp'"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of Eq. 8 by name of the loss."""
        return {
            "recall": self.recall_weight,
            "commit": 0.0 if self.item.fixed else self.commit_weight,
            "sem": 0.0 if self.item.fixed else self.sem_weight,
            "u2t": self.u2t_weight,
        }

    def token_cross(self, *, user_dim: int, cross_dim: int) -> TokenCross:
        """What stands for u2t in retrieval."""
        levels = self.item.num_levels
        if self.retrieval_u2t == "mlp":
            return TokenPredictor(
                user_dim=user_dim,
                sid_dim=self.item.dim,
                cross_dim=cross_dim,
                num_levels=levels,
                hidden_dim=self.u2t_hidden_dim,
            )
        if self.retrieval_u2t == "none":
            return NoTokenCross(num_levels=levels, cross_dim=cross_dim)
        return TokenMeans(
            num_levels=levels,
            num_codes=self.item.num_codes,
            cross_dim=cross_dim,
            decay=self.item.decay,
        )

    @property
    def network_class(self) -> type[RankingNetwork]:
        """What `build_network` makes."""
        return DigNetwork
