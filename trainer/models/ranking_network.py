"""The dense side of a ranking model: item encoder, history, tower, heads, next-token module.

Legend: B impressions, P positives among them, U distinct items, N tasks, D item dim, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.tower import RegularizedTower, Tower, TowerConfig, TowerWithTurns
from trainer.modules.dense_encoding import PiecewiseLinearEncoding
from trainer.modules.hybrid_tokens import GEN_TOKEN, HybridTokensConfig, ItemIdConfig
from trainer.modules.mlp import mlp
from trainer.modules.next_token import EncodedContext, NextToken
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.modules.parallel_tokens import ParallelTokensConfig, TokenItemConfig
from trainer.modules.target_attention import FeedbackSum, TargetAttention

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RankingModelConfig:
    """Everything dense about a ranking model; its tables are named beside it.

    Args:
        item: what stands for an item: its ID or its tokens.
        tower: the interaction architecture. It never knows what stands for an item.
        dense_bins: quantile bins per dense feature.
        dense_dim: width to which the binned dense features are projected.
        head_dims: hidden layers of each task head.
        id_dropout: share of training rows whose residual-ID embeddings (users, queries) are
            zeroed, so that the network learns to do without them where an ID is new.
        next_token: the generative objective beside the discriminative one (TRM Eq. 7), for items
            that are gen-tokens; None for the discriminative one alone.
    """

    item: ItemIdConfig | HybridTokensConfig | ParallelTokensConfig
    tower: TowerConfig
    dense_bins: int = 16
    dense_dim: int = 64
    head_dims: tuple[int, ...] = ()
    id_dropout: float = 0.0
    next_token: NextTokenConfig | None = None

    def __post_init__(self) -> None:
        """Check that there is something to generate.

        Raises:
            ValueError: naming `next_token` and `item`.
        """
        if self.next_token is not None and GEN_TOKEN not in self.item.features:
            raise ValueError(
                f"model.next_token predicts an item's gen-tokens, but model.item "
                f"({type(self.item).__name__}) reads {', '.join(self.item.features)}; set "
                "model.next_token=None, or a model.item with gen-tokens (HybridTokensConfig)"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the losses beside the discriminative one, by name (TRM Eq. 7)."""
        return {"next_token": self.next_token.weight if self.next_token else 0.0, "tower": 1.0}

    @property
    def network_class(self) -> type[RankingNetwork]:
        """What `build_network` makes."""
        return RankingNetwork

    def build_network(
        self,
        *,
        tables: Sequence[TableSpec],
        num_dense: int,
        num_tasks: int,
        num_histories: int,
        roles: ContextRoles | None = None,
        precision: Precision = "fp32",
    ) -> RankingNetwork:
        """The dense side of the model; arguments as of `RankingNetwork`."""
        return self.network_class(
            self,
            tables=tables,
            num_dense=num_dense,
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
            precision=precision,
        )


class NetworkOutputs(NamedTuple):
    """What the network computes of a batch.

    Attributes:
        logits_BN: float32, one column a task.
        losses: scalars beside the discriminative loss, `next_token` and `tower`, in training.
    """

    logits_BN: Tensor
    losses: dict[str, Tensor]


class RankingNetwork(nn.Module):
    """All dense parameters: replicated or sharded with FSDP, never by the planner.

    Args:
        config: sizes.
        tables: to know names, dims and order of the pooled features.
        num_dense: number of dense features.
        num_tasks: N.
        num_histories: kinds of feedback in the histories.
        roles: which features are query and user; needed with `config.next_token` alone.
        precision: of the matrix products; `bf16` runs them under autocast.

    Raises:
        ValueError: when `config.next_token` does not fit the features and codebooks.
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        tables: Sequence[TableSpec],
        num_dense: int,
        num_tasks: int,
        num_histories: int,
        roles: ContextRoles | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.config = config
        self.precision = precision
        pooled_dims = {
            feature: table.dim
            for table in tables
            if table.pooling != "none"
            for feature in table.features
        }
        self.pooled_features = list(pooled_dims)
        self.residual_ids = [
            feature
            for table in tables
            if table.role == "residual_id" and table.pooling != "none"
            for feature in table.features
        ]
        self.dense_encoding = PiecewiseLinearEncoding(
            num_features=num_dense, num_bins=config.dense_bins
        )
        self.dense_arch = mlp(self.dense_encoding.out_dim, (config.dense_dim,))
        self.item_encoder = config.item.build()
        self.history = TargetAttention(config.item.item_dim, num_kinds=num_histories)
        self.feedback_sum = FeedbackSum(config.item.item_dim, num_kinds=num_histories)
        item_dim = config.item.item_dim
        feature_dims = {
            **pooled_dims,
            "candidate": item_dim,
            "history": item_dim,
            "candidate_x_history": item_dim,
            "feedback_sum": 2 * item_dim,
            "dense": config.dense_dim,
        }
        next_token = config.next_token
        if next_token is not None and next_token.feeds_tower:
            feature_dims["context"] = next_token.dim
        self.tower: Tower = config.tower.build(feature_dims)
        self.heads = nn.ModuleList(
            mlp(self.tower.out_dim, config.head_dims, 1) for _ in range(num_tasks)
        )
        # Last, so that with the same seed the rest starts from the same weights without it.
        self.next_token = (
            None
            if next_token is None
            else _next_token(
                next_token,
                config,
                tables=tables,
                pooled_dims=pooled_dims,
                num_histories=num_histories,
                roles=roles,
            )
        )

    def fsdp_units(self) -> list[nn.Module]:
        """Modules that are sharded, checkpointed and compiled one by one; the rest is small."""
        return [*self.tower.blocks, *(self.next_token.blocks if self.next_token else ())]

    def waiting_parameters(self, step: int) -> list[nn.Parameter]:
        """Those that nothing moves in a training step, neither gradient nor moment.

        Args:
            step: of the optimizer, counted from 0; asked after the backward pass.
        """
        if not isinstance(self.tower, TowerWithTurns):
            return []
        own = {id(parameter) for parameter in self.tower.parameters_with_turns()}
        is_their_turn = self.tower.is_their_turn(step)
        return [one for one in self.parameters() if (id(one) in own) != is_their_turn]

    def forward(
        self,
        batch: Batch,
        pooled: KeyedTensor,
        items: dict[str, JaggedTensor],
        positive_P: Tensor | None = None,
    ) -> NetworkOutputs:
        """Logits and, in training, the losses beside the discriminative one.

        Args:
            batch: without its ids.
            pooled: embeddings of the pooled features.
            items: embeddings of the distinct items' ids.
            positive_P: rows to generate the items of, int64; by default those with a positive
                label.
        """
        losses: dict[str, Tensor] = {}
        with self.autocast(batch.dense_BF.device):
            item_UD = self.item_encoder(items)
            candidate_BD = item_UD.index_select(0, batch.candidate_B)
            past = (
                item_UD,
                batch.candidate_B,
                batch.history_T,
                batch.history_kind_T,
                batch.history_offsets,
            )
            history_BD = self.history(*past)
            by_feature = self._without_some_ids(pooled.to_dict())
            value_ND = self.feedback_sum.values(item_UD)
            feedback_BF = self.feedback_sum(*past, value_ND)
            dense_BF = self.dense_encoding(batch.dense_BF)
            features = [by_feature[feature] for feature in self.pooled_features] + [
                candidate_BD,
                history_BD,
                candidate_BD * history_BD,
                feedback_BF,
                self.dense_arch(dense_BF),
            ]
            if self.next_token is not None and (
                self.training or self.next_token.config.feeds_tower
            ):
                sources = (
                    by_feature,
                    self._by_dense_feature(dense_BF),
                    self._history_alone(batch, item_UD, value_ND, feedback_BF),
                )
                context, generative = self._generate(batch, items, sources, positive_P)
                features += [] if context is None else [context]
                losses |= {} if generative is None else {"next_token": generative}
            out_BD = self.tower(torch.cat(features, dim=1))
            logits_BN = torch.cat([head(out_BD) for head in self.heads], dim=1).float()
        if self.training and isinstance(self.tower, RegularizedTower):
            losses["tower"] = self.tower.auxiliary_loss()
        return NetworkOutputs(logits_BN, losses)

    def encode_context(
        self,
        batch: Batch,
        pooled: KeyedTensor,
        items: dict[str, JaggedTensor],
        rows: Tensor | None = None,
    ) -> EncodedContext:
        """What items are generated from: each row's query and user through the transformer.

        Nothing of it depends on the row's candidate or labels.

        Args:
            batch: without its ids.
            pooled: embeddings of the pooled features.
            items: embeddings of the distinct items' ids.
            rows: positions to encode, int64; None for all.
        """
        assert self.next_token is not None
        with self.autocast(batch.dense_BF.device):
            item_UD = self.item_encoder(items)
            value_ND = self.feedback_sum.values(item_UD)
            feedback_BF = self.feedback_sum(
                item_UD,
                batch.candidate_B,
                batch.history_T,
                batch.history_kind_T,
                batch.history_offsets,
                value_ND,
            )
            context_BCD = self.next_token.context(
                self._without_some_ids(pooled.to_dict()),
                self._by_dense_feature(self.dense_encoding(batch.dense_BF)),
                self._history_alone(batch, item_UD, value_ND, feedback_BF),
                rows,
            )
            return self.next_token.encode(context_BCD)

    def _generate(
        self,
        batch: Batch,
        items: dict[str, JaggedTensor],
        sources: tuple[dict[str, Tensor], Tensor, Tensor],
        positive_P: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The tower's feature and the generative loss (Eq. 6), each where there is one.

        The loss is an expectation over all impressions, of which the positive ones count: the sum
        over this rank's positives is divided by this rank's impressions. Ranks have equally many,
        so the mean of their gradients is the gradient over all rows, whatever the number of
        positives on each; a rank without any adds 0, through the same parameters.
        """
        module = self.next_token
        assert module is not None
        feature_BD = None
        if module.config.feeds_tower:
            encoded = module.encode(module.context(*sources))
            feature_BD = encoded.output_BCD.mean(dim=1)
        if not self.training or not module.config.weight:
            return feature_BD, None
        if positive_P is None:
            positive_P = module.positives(batch.labels_BN)
        if module.config.feeds_tower:
            encoded = encoded.take(positive_P)
        else:
            encoded = module.encode(module.context(*sources, positive_P))
        item_P = batch.candidate_B.index_select(0, positive_P)
        shape = (-1, module.num_levels)
        gen_PLd = items[GEN_TOKEN].values().unflatten(0, shape).index_select(0, item_P)
        rows_PL = batch.items[GEN_TOKEN].values().unflatten(0, shape).index_select(0, item_P)
        total = module(encoded, gen_PLd, rows_PL % module.num_codes)
        return feature_BD, total / batch.batch_size

    def _by_dense_feature(self, dense_BF: Tensor) -> Tensor:
        """Codes of dense features (B, F, Q)."""
        return dense_BF.unflatten(1, (-1, self.dense_encoding.num_bins))

    def _history_alone(
        self, batch: Batch, item_UD: Tensor, value_ND: Tensor, feedback_BF: Tensor
    ) -> Tensor:
        """The history as it is without the candidate: the first half of `FeedbackSum`, and more."""
        assert self.next_token is not None
        sum_BD = feedback_BF[:, : self.config.item.item_dim]
        if self.next_token.history is None:
            return sum_BD
        past = (batch.history_T, batch.history_kind_T, batch.history_offsets)
        return torch.cat([sum_BD, self.next_token.history(item_UD, value_ND, *past)], dim=1)

    def _without_some_ids(self, by_feature: dict[str, Tensor]) -> dict[str, Tensor]:
        """During training, zero residual-ID embeddings of a random share of the rows."""
        if not self.training or not self.config.id_dropout:
            return by_feature
        dropped = {}
        for feature in self.residual_ids:
            value_BD = by_feature[feature]
            keep_B1 = torch.rand(value_BD.shape[0], 1, device=value_BD.device)
            dropped[feature] = value_BD * (keep_B1 >= self.config.id_dropout)
        return {**by_feature, **dropped}

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which the network computes, by its precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def _next_token(
    config: NextTokenConfig,
    model: RankingModelConfig,
    *,
    tables: Sequence[TableSpec],
    pooled_dims: Mapping[str, int],
    num_histories: int,
    roles: ContextRoles | None,
) -> NextToken:
    """The generative module over the features of a model."""
    if roles is None:
        raise ValueError(
            "model.next_token is set, but nothing says which features are query and user; pass "
            "roles=experiment.context_roles"
        )
    assert isinstance(model.item, TokenItemConfig)
    gen_rows = next(table.rows for table in tables if GEN_TOKEN in table.features)
    return NextToken(
        config,
        roles=roles,
        pooled_dims=pooled_dims,
        num_bins=model.dense_bins,
        history_dim=model.item.item_dim,
        num_histories=num_histories,
        token_dim=model.item.table_dim,
        num_levels=model.item.num_levels,
        num_codes=gen_rows // model.item.num_levels,
    )
