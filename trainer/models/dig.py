"""DIG: a ranker whose item tokenizer learns inside it, and which retrieves with its own layers.

Legend: B impressions, U distinct items of a batch, X items that are encoded, N negatives an
impression, S targets of an impression, L levels, K codes, D item dim, E width of e_u, C width of
cross features (d_c), T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.ranking_network import NetworkOutputs, Precision, RankingNetwork
from trainer.models.tower import RegularizedTower, TowerWithTurns
from trainer.modules.catalogue_draws import drawn_items, drawn_rows
from trainer.modules.dense_encoding import PiecewiseLinearEncoding
from trainer.modules.feature_types import FeatureTypes
from trainer.modules.learned_tokens import ITEM_ROW
from trainer.modules.mlp import mlp
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.rank_batch_norm import RankBatchNorm
from trainer.modules.recall_samples import RecallSamples, recall_loss, recall_samples
from trainer.modules.request_encoder import Request, RequestEncoder
from trainer.modules.residual_quantizer import Quantized, ResidualQuantizer
from trainer.modules.resting_catalogue import RestingCatalogue
from trainer.modules.sid_tracker import SidTracker, collision_rate
from trainer.modules.target_attention import TargetAttention
from trainer.modules.user_to_token import bucket_means
from trainer.modules.vq_encoder import VQEncoder

if TYPE_CHECKING:
    from trainer.models.dig_config import DigModelConfig

ENCODED = 8192  # items that the encoder sees at a time, outside of training


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
        ValueError: when features that DIG builds on are missing, a table of SID embeddings has
            other rows than there are (level, code), or the tower has a loss or turns of its own.
    """

    config: DigModelConfig
    num_steps: Tensor
    initial_collision_rate: Tensor

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
        pooled = [table for table in tables if table.pooling != "none"]
        self.pooled_features = [f for table in pooled for f in table.features]
        self.residual_ids = [f for t in pooled if t.role == "residual_id" for f in t.features]
        self.types = FeatureTypes.divide(tables, num_dense=num_dense, roles=roles)
        self.cross_dim = self.types.cross_dim(num_bins)
        _check(self, tables, num_histories)
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
        self.request_encoder = RequestEncoder(
            self.types,
            num_bins=num_bins,
            dense_dim=config.dense_dim,
            item_dim=dim,
            num_histories=num_histories,
            num_heads=config.history_heads,
        )
        self.user_dim = self.request_encoder.out_dim
        self.attention = TargetAttention(dim, num_kinds=num_histories)
        self.item_norm = RankBatchNorm(dim)
        self.cross_norm = RankBatchNorm(self.cross_dim)
        self.sid_norm = RankBatchNorm(dim)
        self.u2t_norm = RankBatchNorm(self.cross_dim)
        self.token_cross = config.token_cross(user_dim=self.user_dim, cross_dim=self.cross_dim)
        self.tower = config.tower.build(
            {
                "user": self.user_dim,
                "target": dim,
                "cross": self.cross_dim,
                "history": dim,
                "target_x_history": dim,
            }
        )
        if isinstance(self.tower, RegularizedTower | TowerWithTurns):
            raise ValueError(
                f"model.tower: {type(config.tower).__name__} adds a loss of its own or learns in "
                "turns, which DIG's losses (Eq. 8) have no place for; take another tower"
            )
        self.heads = nn.ModuleList(
            mlp(self.tower.out_dim, config.head_dims, 1) for _ in range(num_tasks)
        )
        self.register_buffer("num_steps", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("initial_collision_rate", torch.zeros(1))
        self._tracker = SidTracker(item.num_codes)
        self._resting = RestingCatalogue(self._encode_all)

    def fsdp_units(self) -> list[nn.Module]:
        """Modules that are sharded, checkpointed and compiled one by one; the rest is small."""
        return list(self.tower.blocks)

    @property
    def encoder_rests(self) -> bool:
        """Whether the encoder learns no more, so that each item's e_v stays."""
        return not self.config.item.encoder_learns_at(int(self.num_steps))

    def waiting_parameters(self, step: int) -> list[nn.Parameter]:
        """The encoder's, from the step on after which it stays.

        The network's own count of steps decides, not the optimizer's: one that began with another
        run's weights has made more.
        """
        learned = self.config.item.encoder_learns_at(int(self.num_steps) - 1)
        return [] if learned else list(self.encoder.parameters())

    def encode_catalogue(self) -> Tensor:
        """e_v of every item (N, D), without gradient."""
        return self._resting.vectors(self.encoder) if self.encoder_rests else self._encode_all()

    @torch.no_grad()
    def _encode_all(self) -> Tensor:
        row_N = torch.arange(self.encoder.num_items, device=self.num_steps.device)
        with torch.autocast(row_N.device.type, enabled=False):
            return torch.cat([self.encoder(part) for part in row_N.split(ENCODED)])

    @torch.no_grad()
    def catalogue_codes(self) -> Tensor:
        """SID of every item as Eq. 2 assigns it, int64 (N, L)."""
        parts = self.encode_catalogue().split(ENCODED)
        return torch.cat([self.quantizer(part).codes_ML for part in parts])

    def sids(self) -> dict[str, float | None]:
        """What has become of the catalogue's SIDs; call it when training is over.

        Returns:
            `initial_collision_rate`, before the first step; see `SidTracker.outcome` for the rest.
        """
        initial = float(self.initial_collision_rate)
        return {
            "initial_collision_rate": initial,
            **self._tracker.outcome(self.catalogue_codes()),
        }

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
        if self.encoder_rests:
            e_XD = self.encode_catalogue().index_select(0, row_X)
        else:
            with torch.autocast(row_U.device.type, enabled=False):
                e_XD = self.encoder(row_X)
        return Encoded(row_X, e_XD, place[: len(row_U)], place[len(row_U) :].view_as(drawn_BN))

    def request(self, batch: Batch, pooled: KeyedTensor, encoded: Encoded) -> Request:
        """e_u through BN_u, and the histories, of every impression."""
        # e_v has length 1; layers want values near 1.
        item_UD = encoded.e_XD.index_select(0, encoded.place_U) * self.config.item.dim**0.5
        by_feature = self._without_some_ids(pooled.to_dict())
        dense_BFQ = self._by_dense_feature(self.dense_encoding(batch.dense_BF))
        return Request(
            self.request_encoder(batch, by_feature, dense_BFQ, item_UD),
            self.attention.remember(
                item_UD, batch.history_T, batch.history_kind_T, batch.history_offsets
            ),
        )

    def cross(self, batch: Batch, pooled: KeyedTensor) -> Tensor:
        """Type III: c_{u,v} of each impression (B, C); zeros where it is not given."""
        by_feature = pooled.to_dict()
        dense_BFQ = self._by_dense_feature(self.dense_encoding(batch.dense_BF))
        parts = [by_feature[name] for name in self.types.cross]
        cross_BC = torch.cat([*parts, dense_BFQ[:, self.types.cross_dense].flatten(1)], dim=1)
        if self.config.cross_share == 1:
            return cross_BC
        return cross_BC * drawn_rows(batch.row_B, share=self.config.cross_share).unsqueeze(1)

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
            batch: with the rows of its items and the users' ids.
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
                "commit": found.commitment()[place_BS].mean() + _zero_of(self.encoder),
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
                losses["recall"] = recall_loss(
                    logits_BST[:, 1:],
                    batch.labels_BN,
                    num_levels=self.config.item.num_levels,
                    last_level_only=self.config.last_level_only,
                    unclicked_negatives=self.config.unclicked_negatives,
                )
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
    ) -> RecallSamples:
        """What the retrieval path learns from; `codes_BSL` are the item's, then the negatives'."""
        means = bucket_means(
            cross_BC,
            codes_BSL[:, 0],
            batch.pooled[self.config.user_feature].values(),
            num_codes=self.config.item.num_codes,
            scope=self.config.u2t_scope,
        )
        self.token_cross.follow(cross_BC, codes_BSL[:, 0])
        return recall_samples(
            self.prefixes(self.sid_table(items), codes_BSL),
            codes_BSL,
            request.user_BE,
            means,
            self.token_cross,
            self.config.impression_u2t,
        )

    def _start(self) -> None:
        """Fit the codebooks before the first step, to the encoder as it is drawn."""
        if self.encoder.num_items == 0:
            raise ValueError(
                "the network knows no items; give it the static features of the catalogue with "
                "encoder.take_catalogue(...)"
            )
        if self.training and not bool(self.quantizer.is_started):
            self.quantizer.start(self.encode_catalogue())
            self.initial_collision_rate.fill_(collision_rate(self.catalogue_codes()))

    @torch.no_grad()
    def _after_step(self, found: Quantized, place_BS: Tensor, row_X: Tensor) -> None:
        step = int(self.num_steps)
        if step % self.config.track_every == 0:
            self._tracker.look(self.catalogue_codes())
        if self.config.item.codebooks_follow_at(step):
            place_M = place_BS.flatten()
            self.quantizer.follow(found, place_M, row_X.index_select(0, place_M))
        self.num_steps += 1


def _zero_of(module: nn.Module) -> Tensor:
    """Zero, by which all parameters get gradients, of zeros where nothing else moves them.

    With several ranks the same parameters must get gradients in every step.
    """
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    return sum((0 * weight.sum() for weight in learning), torch.zeros(()))


def _check(network: DigNetwork, tables: Sequence[TableSpec], num_histories: int) -> None:
    """Check what the network is built over."""
    config = network.config
    if not num_histories:
        raise ValueError("DIG needs a history, found none; declare one in the schema")
    if config.recall_weight and config.user_feature not in network.pooled_features:
        raise ValueError(
            f"model.user_feature is {config.user_feature!r}, but the pooled features are "
            f"{', '.join(network.pooled_features)}; name the one with the user's id"
        )
    config.item.check_tables(tables)
