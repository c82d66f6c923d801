"""Parameters and training FLOPs of models that are described, not trained: no memory, no data.

Legend: B impressions, U distinct items, T history positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.folder_names import check_folder_name
from sharding.tables import TableSpec, check_tables, parameters_by_role
from trainer.batch import Batch
from trainer.flops import next_token_flops, training_flops
from trainer.models.ranking_model import RankingModelConfig, check_item_features
from trainer.modules.hybrid_tokens import GEN_TOKEN
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.parallel_tokens import TokenItemConfig

Report = dict[str, Any]
COUNTED = """\
Dense parameters: everything of the network, the generative module included; tables apart. \
Training FLOPs: matrix products of one forward and backward pass, a multiply-add as two, counted \
by torch on the meta device; look-ups, element-wise work and the optimizer are not. Items of a \
batch are encoded once each, candidates and history items alike. `6 P B` is what a network \
costs whose every parameter meets every impression once: weights that many tokens or items share \
cost more, inputs without gradient less."""
_MEM_TOKENS_AN_ITEM = 2


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The batch that FLOPs are counted for.

    Args:
        batch_size: B.
        history_length: items in an impression's histories.
        num_distinct_items: U, candidates and history items of the batch, each encoded once.
        num_dense: dense features.
        num_tasks: labels.
        num_histories: kinds of feedback.
        positive_share: of the impressions, those that the generative objective learns from.
        roles: which features are query and user.
    """

    batch_size: int
    history_length: int
    num_distinct_items: int
    num_dense: int
    num_tasks: int
    num_histories: int
    positive_share: float
    roles: ContextRoles

    def batch(self, tables: Sequence[TableSpec], num_levels: int, *, items: bool = True) -> Batch:
        """A batch of this shape; ids are all 0, since only shapes count.

        Args:
            tables: that are looked up.
            num_levels: gen-tokens of an item.
            items: False for one distinct item and no history, to count what they cost.
        """
        pooled = [f for table in tables if table.pooling != "none" for f in table.features]
        keys = [f for table in tables if table.pooling == "none" for f in table.features]
        distinct = self.num_distinct_items if items else 1
        positions = self.batch_size * self.history_length if items else 0
        an_item = {key: _MEM_TOKENS_AN_ITEM if key.startswith("mem") else 1 for key in keys}
        if GEN_TOKEN in an_item:
            an_item[GEN_TOKEN] = num_levels
        rows = torch.arange(self.batch_size)
        labels_BN = torch.zeros(self.batch_size, self.num_tasks)
        labels_BN[: round(self.positive_share * self.batch_size)] = 1.0
        return Batch(
            dense_BF=torch.zeros(self.batch_size, self.num_dense),
            pooled=_zeros(dict.fromkeys(pooled, 1), self.batch_size),
            items=_zeros(an_item, distinct),
            candidate_B=rows % distinct,
            history_T=torch.arange(positions) % distinct,
            history_kind_T=torch.arange(positions) % self.num_histories,
            history_offsets=torch.arange(self.batch_size + 1) * (positions // self.batch_size),
            labels_BN=labels_BN,
            row_B=rows,
        )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper reports of a model; None where it does not.

    Args:
        dense_parameters: of the network.
        sparse_parameters: of the tables.
        training_flops: forward and backward, per batch.
    """

    dense_parameters: float | None = None
    sparse_parameters: float | None = None
    training_flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """One model: a network and its tables.

    Args:
        title: shown in the report.
        series: models that are sizes of one another, joined by a line in the figure.
        model: the network.
        tables: all of them, item tables with `pooling="none"`.
        published: what it is set beside.
        reason: why a published number is missed, where it is.
    """

    title: str
    series: str
    model: RankingModelConfig
    tables: tuple[TableSpec, ...]
    published: Published = Published()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class StructureComparison:
    """Models that read the same batch.

    Args:
        name: of the report and its folder.
        models: rows.
        batch: for which FLOPs are counted.
        assumption: what input and sizes rest on, in words; printed with the report.

    Raises:
        ValueError: when there is no model, a title stands twice, or a model's tables do not fit.
    """

    name: str
    models: tuple[DescribedModel, ...]
    batch: BatchShape
    assumption: str = ""

    def __post_init__(self) -> None:
        """Check the parts."""
        check_folder_name(self.name, of="comparison")
        titles = [model.title for model in self.models]
        if not titles or len(set(titles)) < len(titles):
            raise ValueError(
                f"comparison {self.name!r}: expected models with titles of their own, found "
                f"{titles}"
            )
        for model in self.models:
            check_tables(model.tables)
            check_item_features(model.model, model.tables)


def compare_structure(
    comparison: StructureComparison, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Build every network on the meta device and count.

    Args:
        comparison: what is compared.
        progress: told what is counted next.
    """
    entries = []
    for model in comparison.models:
        progress(model.title)
        entries.append(_entry(model, comparison.batch))
    return {
        "name": comparison.name,
        "assumption": comparison.assumption,
        "batch": asdict(comparison.batch),
        "counted": COUNTED,
        "models": entries,
    }


def _entry(model: DescribedModel, shape: BatchShape) -> Report:
    item = model.model.item
    num_levels = item.num_levels if isinstance(item, TokenItemConfig) else 0
    with torch.device("meta"):
        network = model.model.build_network(
            tables=model.tables,
            num_dense=shape.num_dense,
            num_tasks=shape.num_tasks,
            num_histories=shape.num_histories,
            roles=shape.roles,
        )
    parameters = {
        name: sum(weight.numel() for weight in child.parameters())
        for name, child in network.named_children()
    }
    total, without_items = (
        training_flops(
            model.model,
            tables=model.tables,
            num_tasks=shape.num_tasks,
            num_histories=shape.num_histories,
            batch=shape.batch(model.tables, num_levels, items=items),
            roles=shape.roles,
        )
        for items in (True, False)
    )
    generative = 0
    if model.model.next_token is not None:
        generative = next_token_flops(
            model.model,
            tables=model.tables,
            num_tasks=shape.num_tasks,
            num_histories=shape.num_histories,
            batch=shape.batch(model.tables, num_levels),
            roles=shape.roles,
        )
    dense = sum(parameters.values())
    return {
        "title": model.title,
        "series": model.series,
        "tower": type(model.model.tower).__name__.removesuffix("Config"),
        "dense_parameters": dense,
        "dense_parameters_by_part": {name: n for name, n in parameters.items() if n},
        "sparse_parameters": sum(table.num_parameters for table in model.tables),
        "sparse_parameters_by_role": parameters_by_role(model.tables),
        "training_flops": total,
        "training_flops_of_items": total - without_items,
        "training_flops_of_next_token": generative,
        "flops_over_6pb": total / (6 * dense * shape.batch_size),
        "published": asdict(model.published),
        "reason": model.reason,
    }


def _zeros(ids_a_row: dict[str, int], num_rows: int) -> KeyedJaggedTensor:
    lengths = torch.tensor(list(ids_a_row.values()), dtype=torch.int64).repeat_interleave(num_rows)
    return KeyedJaggedTensor.from_lengths_sync(
        keys=list(ids_a_row),
        values=torch.zeros(int(lengths.sum()), dtype=torch.int64),
        lengths=lengths,
    )
