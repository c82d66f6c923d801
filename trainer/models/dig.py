"""DIG: a ranker whose item tokenizer learns inside it, and which retrieves with its own layers.

Legend: B impressions, U distinct items of a batch, X items that are encoded, N negatives an
impression, S targets of an impression, L levels, K codes, D item dim, E width of e_u, C width of
cross features (d_c), T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import embedding
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.ranking_network import (
    NetworkOutputs,
    Precision,
    RankingModelConfig,
    RankingNetwork,
)
from trainer.modules.catalogue_draws import drawn_items
from trainer.modules.dense_encoding import PiecewiseLinearEncoding
from trainer.modules.learned_tokens import ITEM_ROW, LearnedTokensConfig
from trainer.modules.mlp import mlp
from trainer.modules.next_token import ContextRoles
from trainer.modules.rank_batch_norm import RankBatchNorm
from trainer.modules.recent_history import RecentHistory
from trainer.modules.residual_quantizer import Quantized, ResidualQuantizer
from trainer.modules.sid_tracker import SidTracker
from trainer.modules.target_attention import Past, TargetAttention
from trainer.modules.user_to_token import (
    Scope,
    TokenPredictor,
    bucket_means,
    distillation_loss,
    prefix_means,
)
from trainer.modules.vq_encoder import VQEncoder

_ENCODED = 8192  # items that the encoder sees at a time, outside of training


@dataclass(frozen=True, kw_only=True)
class DigModelConfig(RankingModelConfig):
    """A ranking model with DIG's tokenizer and losses (section 3.3); defaults of section 4.1.

    Args:
        item: static features, encoder and codebooks.
        recall_weight: of L_recall; 0 is the paper's rank-only model, without the retrieval path.
        commit_weight, sem_weight, u2t_weight: lambda_1 to lambda_3 of Eq. 8.
        u2t_scope: whose impressions the buckets of Eq. 13 are over.
        u2t_hidden_dim: of MLP_u2t.
        num_negatives: items of the whole catalogue drawn for each impression; they count where
            the impression's first label is positive. 0 leaves retrieval samples out.
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
    num_negatives: int = 1
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

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of Eq. 8 by name of the loss."""
        return {
            "recall": self.recall_weight,
            "commit": 0.0 if self.item.fixed else self.commit_weight,
            "sem": 0.0 if self.item.fixed else self.sem_weight,
            "u2t": self.u2t_weight,
        }

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
        """The dense side; see `RankingNetwork`."""
        return DigNetwork(
            self,
            tables=tables,
            num_dense=num_dense,
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
            precision=precision,
        )


class Request(NamedTuple):
    """Type II of Table 1: what is known of impressions before there is an item.

    Attributes:
        user_BE: e_u, normalized by BN_u.
        past: keys and values of the histories.
    """

    user_BE: Tensor
    past: Past

    def take(self, rows: Tensor) -> Request:
        """Some of the rows, in this order."""
        past = Past(*(part.index_select(0, rows) for part in self.past))
        return Request(self.user_BE.index_select(0, rows), past)


class Encoded(NamedTuple):
    """The items that a batch needs, each encoded once.

    Attributes:
        row_X: int64 rows of items.parquet.
        e_XD: their e_v.
        place_U: where each distinct item of the batch stands among them.
        place_BN: where each impression's negatives stand; (B, 0) outside of training.
    """

    row_X: Tensor
    e_XD: Tensor
    place_U: Tensor
    place_BN: Tensor


class Samples(NamedTuple):
    """Prefixes that the retrieval path is trained on, level after level.

    Attributes:
        prefix_BSD: of the impression's item with the statistic; then, with retrieval samples, of
            the same item and of the negatives with what MLP_u2t predicts, as in retrieval.
        u2t_BSC: u2t^(1:l) of each, without gradient.
        losses: L_u2t, and the size of the groups that the statistic is over.
    """

    prefix_BSD: Tensor
    u2t_BSC: Tensor
    losses: dict[str, Tensor]


class DigNetwork(RankingNetwork):
    """Encoder, codebooks, and the Mixer that ranking and retrieval share.

    Type I features (Table 1) go through the encoder; Type II are the features of request and user;
    Type III are all others: those of user and item together, and those of the item that change.

    Args:
        config: sizes.
        tables: to know names, dims and order of the pooled features, and the SID embeddings.
        num_dense: number of dense features.
        num_tasks: T.
        num_histories: kinds of feedback in the histories.
        roles: which features are of request and user.
        precision: of the matrix products; encoder and codebooks always compute in fp32.

    Raises:
        ValueError: when features that DIG builds on are missing, or a table of SID embeddings has
            other rows than there are (level, code).
    """

    config: DigModelConfig
    num_steps: Tensor

    def __init__(
        self,
        config: DigModelConfig,
        *,
        tables: Sequence[TableSpec],
        num_dense: int,
        num_tasks: int,
        num_histories: int,
        roles: ContextRoles | None = None,
        precision: Precision = "fp32",
    ) -> None:
        nn.Module.__init__(self)  # the base class's parts are others
        self.config = config
        self.precision = precision
        self.next_token = None
        item, num_bins, dim = config.item, config.dense_bins, config.item.dim
        dims = {f: t.dim for t in tables if t.pooling != "none" for f in t.features}
        self.pooled_features = list(dims)
        self.residual_ids = [
            f for t in tables if t.role == "residual_id" and t.pooling != "none" for f in t.features
        ]
        if roles is None:
            raise ValueError(
                "a DIG model divides features by whom they describe, but nothing says so; pass "
                "roles=experiment.context_roles"
            )
        self.request_features = [*roles.query_features, *roles.user_features]
        self.cross_features = [name for name in dims if name not in self.request_features]
        self.request_dense = sorted({*roles.query_dense, *roles.user_dense})
        self.cross_dense = [at for at in range(num_dense) if at not in self.request_dense]
        self.user_dim = sum(dims[name] for name in self.request_features)
        self.user_dim += config.dense_dim + config.history_heads * dim
        self.cross_dim = sum(dims[name] for name in self.cross_features)
        self.cross_dim += num_bins * len(self.cross_dense)
        _check_features(self, tables, num_histories)
        self.dense_encoding = PiecewiseLinearEncoding(num_features=num_dense, num_bins=num_bins)
        self.encoder = VQEncoder(item)
        if item.fixed:
            self.encoder.requires_grad_(False)
        self.quantizer = ResidualQuantizer(
            num_levels=item.num_levels,
            num_codes=item.num_codes,
            dim=dim,
            decay=item.decay,
            dead_after=item.dead_after,
        )
        self.dense_arch = mlp(num_bins * len(self.request_dense), (config.dense_dim,))
        self.history_value = nn.Linear(dim, num_histories * dim, bias=False)
        self.history_sums = RecentHistory(
            dim, num_kinds=num_histories, num_heads=config.history_heads
        )
        self.attention = TargetAttention(dim, num_kinds=num_histories)
        self.user_norm = RankBatchNorm(self.user_dim)
        self.item_norm = RankBatchNorm(dim)
        self.cross_norm = RankBatchNorm(self.cross_dim)
        self.sid_norm = RankBatchNorm(dim)
        self.u2t_norm = RankBatchNorm(self.cross_dim)
        self.predictor = TokenPredictor(
            user_dim=self.user_dim,
            sid_dim=dim,
            cross_dim=self.cross_dim,
            num_levels=item.num_levels,
            hidden_dim=config.u2t_hidden_dim,
        )
        self.tower = config.tower.build(
            {
                "user": self.user_dim,
                "target": dim,
                "cross": self.cross_dim,
                "history": dim,
                "target_x_history": dim,
            }
        )
        self.heads = nn.ModuleList(
            mlp(self.tower.out_dim, config.head_dims, 1) for _ in range(num_tasks)
        )
        self.register_buffer("num_steps", torch.zeros(1, dtype=torch.int64))
        self._tracker = SidTracker(item.num_codes)

    def fsdp_units(self) -> list[nn.Module]:
        """Modules that are sharded, checkpointed and compiled one by one; the rest is small."""
        return list(self.tower.blocks)

    @torch.no_grad()
    def encode_catalogue(self) -> Tensor:
        """e_v of every item (N, D)."""
        row_N = torch.arange(self.encoder.num_items, device=self.num_steps.device)
        with torch.autocast(row_N.device.type, enabled=False):
            return torch.cat([self.encoder(part) for part in row_N.split(_ENCODED)])

    @torch.no_grad()
    def catalogue_codes(self) -> Tensor:
        """SID of every item as Eq. 2 assigns it, int64 (N, L)."""
        parts = self.encode_catalogue().split(_ENCODED)
        return torch.cat([self.quantizer(part).codes_ML for part in parts])

    def sid_table(self, items: dict[str, JaggedTensor]) -> Tensor:
        """SID embeddings, a field beside the other (L, K, D)."""
        item = self.config.item
        fields = [items[feature].values() for feature in item.features]
        return torch.cat(fields, dim=1).float().unflatten(0, (item.num_levels, item.num_codes))

    def encode_items(self, batch: Batch) -> Encoded:
        """Encode the batch's items and, in training, its negatives."""
        row_U = batch.items[ITEM_ROW].values()
        number = self.config.num_negatives if self.training and self.config.recall_weight else 0
        drawn_BN = drawn_items(
            batch.row_B, step=self.num_steps, number=number, num_items=self.encoder.num_items
        )
        row_X, place = torch.unique(torch.cat([row_U, drawn_BN.flatten()]), return_inverse=True)
        with torch.autocast(row_U.device.type, enabled=False):
            e_XD = self.encoder(row_X)
        return Encoded(row_X, e_XD, place[: len(row_U)], place[len(row_U) :].view_as(drawn_BN))

    def request(self, batch: Batch, pooled: KeyedTensor, encoded: Encoded) -> Request:
        """e_u through BN_u, and the histories, of every impression."""
        # e_v has length 1; layers want values near 1.
        item_UD = encoded.e_XD.index_select(0, encoded.place_U) * self.config.item.dim**0.5
        by_feature = self._without_some_ids(pooled.to_dict())
        dense_BFQ = self._by_dense_feature(self.dense_encoding(batch.dense_BF))
        past = (batch.history_T, batch.history_kind_T, batch.history_offsets)
        value_ND = self.history_value(item_UD).view(-1, self.config.item.dim)
        user_BE = torch.cat(
            [
                *(by_feature[name] for name in self.request_features),
                self.dense_arch(dense_BFQ[:, self.request_dense].flatten(1)),
                self.history_sums(item_UD, value_ND, *past),
            ],
            dim=1,
        )
        return Request(self.user_norm(user_BE), self.attention.remember(item_UD, *past))

    def cross(self, batch: Batch, pooled: KeyedTensor) -> Tensor:
        """Type III: c_{u,v} of each impression (B, C)."""
        by_feature = pooled.to_dict()
        dense_BFQ = self._by_dense_feature(self.dense_encoding(batch.dense_BF))
        parts = [by_feature[name] for name in self.cross_features]
        return torch.cat([*parts, dense_BFQ[:, self.cross_dense].flatten(1)], dim=1)

    def mix(self, request: Request, target_BSD: Tensor, cross_BSC: Tensor) -> Tensor:
        """The Mixer of Eq. 6, 7, 16 and 17: logits (B, S, T) of several targets of each row.

        Args:
            request: of the rows.
            target_BSD: items or prefixes, normalized by the batch normalization of their path.
            cross_BSC: cross features or what stands for them, normalized likewise.
        """
        history_BSD = self.attention.recall(target_BSD, request.past)
        user_BSE = request.user_BE.unsqueeze(1).expand(-1, target_BSD.shape[1], -1)
        x_BSF = torch.cat(
            [user_BSE, target_BSD, cross_BSC, history_BSD, target_BSD * history_BSD], dim=2
        )
        out_MH = self.tower(x_BSF.flatten(0, 1))
        logits_MT = torch.cat([head(out_MH) for head in self.heads], dim=1).float()
        return logits_MT.unflatten(0, target_BSD.shape[:2])

    def rank(self, request: Request, e_BSD: Tensor, cross_BSC: Tensor) -> Tensor:
        """Logits of items with full cross features (Eq. 6 and 17), (B, S, T)."""
        return self.mix(request, self.item_norm(e_BSD), self.cross_norm(cross_BSC))

    def recall(self, request: Request, prefix_BSD: Tensor, u2t_BSC: Tensor) -> Tensor:
        """Logits of prefixes (Eq. 7 and 16), (B, S, T)."""
        return self.mix(request, self.sid_norm(prefix_BSD), self.u2t_norm(u2t_BSC))

    def prefixes(self, sid_LKD: Tensor, codes: Tensor) -> Tensor:
        """e_sid^(1:l) of Eq. 5 at every level, (..., L) -> (..., L, D)."""
        level_L = torch.arange(codes.shape[-1], device=codes.device)
        at = level_L * sid_LKD.shape[1] + codes
        # An embedding's gradient sums over its uses in one pass; that of an index does not.
        return embedding(at, sid_LKD.flatten(0, 1)).cumsum(dim=-2)

    def forward(
        self,
        batch: Batch,
        pooled: KeyedTensor,
        items: dict[str, JaggedTensor],
        positive_P: Tensor | None = None,
    ) -> NetworkOutputs:
        """Logits of the ranking path and, in training, the other losses of Eq. 8.

        Args:
            batch: without its ids.
            pooled: embeddings of the pooled features.
            items: every row of the SID embeddings, by feature.
            positive_P: not used; the retrieval samples follow from the labels.
        """
        self._start()
        with self.autocast(batch.dense_BF.device):
            encoded = self.encode_items(batch)
            request = self.request(batch, pooled, encoded)
            cross_BC = self.cross(batch, pooled)
            place_B = encoded.place_U.index_select(0, batch.candidate_B)
            e_BD = encoded.e_XD.index_select(0, place_B)
            target_B1D = self.item_norm(e_BD.unsqueeze(1))
            cross_B1C = self.cross_norm(cross_BC.unsqueeze(1))
            if not self.training:
                return NetworkOutputs(self.mix(request, target_B1D, cross_B1C)[:, 0], {})
            found = self.quantizer(encoded.e_XD)
            place_BS = torch.cat([place_B.unsqueeze(1), encoded.place_BN], dim=1)
            losses = {
                "commit": found.commitment()[place_BS].mean(),
                "sem": found.reconstruction()[place_BS].mean(),
            }
            if self.config.recall_weight:
                samples = self._samples(batch, items, request, cross_BC, found.codes_ML[place_BS])
                # One pass through the shared Mixer for both paths.
                logits_BST = self.mix(
                    request,
                    torch.cat([target_B1D, self.sid_norm(samples.prefix_BSD)], dim=1),
                    torch.cat([cross_B1C, self.u2t_norm(samples.u2t_BSC)], dim=1),
                )
                losses |= samples.losses
                losses["recall"] = self._recall_loss(logits_BST[:, 1:], batch.labels_BN)
            else:
                logits_BST = self.mix(request, target_B1D, cross_B1C)
        self._after_step(found, place_BS, encoded.row_X)
        return NetworkOutputs(logits_BST[:, 0], losses | self._tracker.last)

    def _samples(
        self,
        batch: Batch,
        items: dict[str, JaggedTensor],
        request: Request,
        cross_BC: Tensor,
        codes_BSL: Tensor,
    ) -> Samples:
        """What the retrieval path learns from; `codes_BSL` are the item's, then the negatives'."""
        prefix_BSLD = self.prefixes(self.sid_table(items), codes_BSL)
        users_B = batch.pooled[self.config.user_feature].values()
        means = bucket_means(
            cross_BC,
            codes_BSL[:, 0],
            users_B,
            num_codes=self.config.item.num_codes,
            scope=self.config.u2t_scope,
        )
        own_BLD = prefix_BSLD[:, 0]
        predicted_BLC = self.predictor(request.user_BE, own_BLD)
        losses = {"u2t": distillation_loss(predicted_BLC, means.u2t_BLC)} | {
            f"u2t_group_{level + 1}": size for level, size in enumerate(means.group_size_L)
        }
        prefixes, u2t = [own_BLD], [prefix_means(means.u2t_BLC)]
        if self.config.num_negatives:
            with torch.no_grad():
                others_BNLC = self.predictor(request.user_BE.unsqueeze(1), prefix_BSLD[:, 1:])
            prefixes += [own_BLD, prefix_BSLD[:, 1:].flatten(1, 2)]
            u2t += [
                prefix_means(predicted_BLC.detach()),
                prefix_means(others_BNLC).flatten(1, 2),
            ]
        return Samples(torch.cat(prefixes, dim=1), torch.cat(u2t, dim=1), losses)

    def _recall_loss(self, logits_BST: Tensor, labels_BT: Tensor) -> Tensor:
        """L_recall: Eq. 10 over the impressions, and the same over the retrieval samples.

        The second is an expectation over all impressions of which the positive ones count, as
        ranks have equally many impressions and not equally many positives.
        """
        num_levels = self.config.item.num_levels
        first = num_levels - 1 if self.config.last_level_only else 0
        logits_BGLT = logits_BST.unflatten(1, (-1, num_levels))[:, :, first:]
        log_BLT = logits_BGLT[:, 0]
        loss = bce(log_BLT, labels_BT.unsqueeze(1).expand_as(log_BLT))
        if not self.config.num_negatives:
            return loss
        main_BGL = logits_BGLT[:, 1:, :, 0]
        wanted_BGL = torch.zeros_like(main_BGL)
        wanted_BGL[:, 0] = 1.0
        each_B = bce(main_BGL, wanted_BGL, reduction="none").mean(dim=2).sum(dim=1)
        return loss + (each_B * (labels_BT[:, 0] > 0.5)).mean()

    def _start(self) -> None:
        """Fit the codebooks before the first step, to the encoder as it is drawn."""
        if self.encoder.num_items == 0:
            raise ValueError(
                "the network knows no items; give it the static features of the catalogue with "
                "encoder.take_catalogue(...)"
            )
        if self.training and not bool(self.quantizer.is_started):
            self.quantizer.start(self.encode_catalogue())

    @torch.no_grad()
    def _after_step(self, found: Quantized, place_BS: Tensor, row_X: Tensor) -> None:
        if int(self.num_steps) % self.config.track_every == 0:
            self._tracker.look(self.catalogue_codes())
        if not self.config.item.fixed:
            place_M = place_BS.flatten()
            self.quantizer.follow(found, place_M, row_X.index_select(0, place_M))
        self.num_steps += 1


def _check_features(network: DigNetwork, tables: Sequence[TableSpec], num_histories: int) -> None:
    """Check what the network is built over."""
    config = network.config
    if not network.cross_dim:
        raise ValueError(
            "DIG needs user-item cross features (Type III), but the schema has features of request "
            "and user alone; declare a feature with entity='cross'"
        )
    if not network.request_dense or not num_histories:
        raise ValueError(
            f"DIG needs a dense feature of request or user and a history, found "
            f"{len(network.request_dense)} and {num_histories}; declare them in the schema"
        )
    if config.recall_weight and config.user_feature not in network.pooled_features:
        raise ValueError(
            f"model.user_feature is {config.user_feature!r}, but the pooled features are "
            f"{', '.join(network.pooled_features)}; name the one with the user's id"
        )
    for table in tables:
        rows = config.item.table_rows
        if table.pooling == "none" and table.rows != rows:
            raise ValueError(
                f"table {table.name!r}: rows is {table.rows}, but model.item has "
                f"{config.item.num_levels} levels x {config.item.num_codes} codes = {rows}"
            )
