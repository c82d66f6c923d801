"""An experiment is a value: everything that decides what a run does, checked before it starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sharding.folder_names import check_folder_name
from sharding.tables import TableSpec, check_tables
from tokenization.alignment import Alignment
from tokenization.collisions import Collisions
from tokenization.combinations import AnyMem
from tokenization.tokenizers import AnyTokenizer
from trainer.data.context_roles import context_roles
from trainer.data.schema import DatasetSchema, GlobalTimeSplit, Split
from trainer.models.ranking_model import RankingModelConfig, check_item_features
from trainer.modules.hybrid_tokens import (
    GEN_TOKEN,
    ITEM_ID,
    MEM_TOKEN,
    ItemIdConfig,
)
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.parallel_tokens import TokenItemConfig
from trainer.optim import OptimConfig
from trainer.parallelize import ShardingConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which log, and how it is read.

    Args:
        folder: data folder (see docs/bring_your_own_logs.md).
        schema: roles of its columns.
        split: train, validation and test by time.
        shuffle_rows: rows of all ranks that are shuffled together during training.
    """

    folder: Path
    schema: Annotated[DatasetSchema, tyro.conf.Fixed]
    split: Split = field(default_factory=GlobalTimeSplit)
    shuffle_rows: int = 262_144


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Where an experiment's tokens are, and how they are made when they are not there yet.

    Args:
        folder: of the token artifact.
        embeddings: parquet of item embeddings that tokens are fitted on.
        text_column: column of items.parquet that is encoded when `embeddings` is missing.
        embedding_column: list column of items.parquet that is taken instead of encoding texts.
        tokenizer: gen-tokens.
        mem: mem-tokens, or n-grams in their place; `MemTokens(num_merges=0)` makes none.
        collisions: what becomes of items with equal codes; `extra_code` adds a level.
        alignment: align the embeddings with co-clicks before tokens are fitted: those of the
            training rows alone, by the first label; None takes the embeddings as they are.
        feature_columns: of items.parquet, which the alignment reads beside the embeddings.

    Raises:
        ValueError: feature columns without an alignment that reads them.
    """

    folder: Path
    embeddings: Path
    text_column: str = "text"
    embedding_column: str | None = None
    tokenizer: AnyTokenizer
    mem: AnyMem
    collisions: Collisions = "keep"
    alignment: Alignment | None = None
    feature_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse columns that nothing would read."""
        if self.feature_columns and self.alignment is None:
            raise ValueError(
                f"tokenizer.feature_columns is {self.feature_columns} but tokenizer.alignment is "
                "None, so they would have no effect; name an alignment, or no columns"
            )

    @property
    def aligned_embeddings(self) -> Path:
        """Where the aligned embeddings go: beside `embeddings`, a file for each setting."""
        settings = repr((self.alignment, self.feature_columns))
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return self.embeddings.with_name(f"{self.embeddings.stem}_aligned_{digest}.parquet")

    @property
    def num_levels(self) -> int:
        """Gen-tokens of an item."""
        return self.tokenizer.num_levels + (self.collisions == "extra_code")

    @property
    def gen_rows(self) -> int:
        """Gen-tokens there are: one for each (level, code)."""
        return self.num_levels * self.tokenizer.num_codes

    @property
    def mem_rows(self) -> int:
        """Mem-tokens there are at most."""
        return self.mem.max_tokens(num_levels=self.num_levels, num_codes=self.tokenizer.num_codes)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch, precision and rhythm of a run.

    Args:
        batch_size: impressions of all ranks in a step.
        num_epochs: passes over the training rows.
        max_steps: stop after so many steps; None for all of `num_epochs`.
        precision: of the network; `auto` takes bf16 where the processor multiplies it natively.
        compile: compile the tower (its blocks, where the network is sharded or activations are
            computed twice) for training; the first step takes longer.
        activation_checkpointing: keep the input of each of the tower's blocks alone and compute
            the rest of its activations twice: a third more work for less memory.
        gradient_accumulation: parts in which each rank's share of a batch goes through the
            network, one after the other, so that activations of one part alone are in memory.
            A step still learns from `batch_size` impressions, and tables are looked up and updated
            once.
        seed: of initial weights, dropout and the order of rows.
        log_every: steps between two lines of metrics.
        eval_every: steps between two evaluations on the validation part; None for once an epoch.
        checkpoint_every: steps between two checkpoints; None for one at the end.
        keep_checkpoints: newest checkpoints that are kept.
        keep_best: metric of the validation part, for instance `valid/click_auc`, whose best
            checkpoint is kept beside the newest (the least `..._logloss`, else the greatest); each
            evaluation is followed by a checkpoint then. None for no such.
        checkpoint_memory_bytes: most host memory of a rank for the copy that is written while
            training goes on; what is above is written while training waits. None for a quarter of
            the rank's share of the host.
        eval_batch_size: impressions of all ranks in a step of evaluation.
    """

    batch_size: int = 4096
    num_epochs: int = 1
    max_steps: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    gradient_accumulation: int = 1
    seed: int = 0
    log_every: int = 20
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_best: str | None = None
    checkpoint_memory_bytes: int | None = None
    eval_batch_size: int = 8192

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        for name in (
            "batch_size",
            "num_epochs",
            "gradient_accumulation",
            "log_every",
            "keep_checkpoints",
            "eval_batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("max_steps", "eval_every", "checkpoint_every", "checkpoint_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} is {value}, expected at least 1, or None")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Data, tables, tokens, model, sharding, optimizers and length of one training run.

    Variants are made with `dataclasses.replace`; every field can be set from the command line.

    Args:
        name: of the run folder and of rows in reports.
        data: which log.
        tables: every embedding table.
        tokenizer: tokens, for models without item IDs.
        model: item encoder, tower, heads.
        sharding: how it is spread over ranks.
        optim: optimizers.
        train: length, batch, rhythm.
    """

    name: str
    data: DataConfig
    tables: tuple[TableSpec, ...]
    tokenizer: TokensConfig | None = None
    model: RankingModelConfig
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Cross-check the parts.

        Raises:
            ValueError: naming the two fields that disagree and both values.
        """
        check_folder_name(self.name, of="experiment")
        check_tables(self.tables)
        check_item_features(self.model, self.tables)
        self._check_pooled_features()
        self._check_managed()
        self._check_tokens()
        self._check_keep_best()
        if self.model.next_token is not None:
            assert isinstance(self.model.item, TokenItemConfig)
            num_codes = self.item_tables[GEN_TOKEN].rows // self.model.item.num_levels
            self.model.next_token.check(self.context_roles, num_codes=num_codes)

    @property
    def context_roles(self) -> ContextRoles:
        """Which features are query and user, for the generative objective."""
        return context_roles(self.data.schema)

    @property
    def item_tables(self) -> dict[str, TableSpec]:
        """Feature -> table that holds an item's identity."""
        return {
            feature: table
            for table in self.tables
            if table.pooling == "none"
            for feature in table.features
        }

    def check_ranks(self, world_size: int) -> None:
        """Check that batches divide by the number of ranks, and a rank's batch into its parts.

        Raises:
            ValueError: naming the batch size and the number of ranks or parts.
        """
        for name in ("batch_size", "eval_batch_size"):
            value = getattr(self.train, name)
            if value % world_size:
                raise ValueError(
                    f"train.{name} is {value}, which {world_size} ranks can't share evenly; "
                    f"try {value - value % world_size or world_size}"
                )
        rows, parts = self.train.batch_size // world_size, self.train.gradient_accumulation
        if rows % parts:
            raise ValueError(
                f"train.gradient_accumulation is {parts}, but the {rows} impressions of a rank "
                f"(train.batch_size {self.train.batch_size} on {world_size} ranks) can't be cut "
                "into so many equal parts"
            )

    def _check_pooled_features(self) -> None:
        tables = {
            feature: table
            for table in self.tables
            if table.pooling != "none"
            for feature in table.features
        }
        features = {feature.name: feature for feature in self.data.schema.pooled_features}
        if set(tables) != set(features):
            raise ValueError(
                f"tables and schema {self.data.schema.name!r} disagree: features without table: "
                f"{sorted(set(features) - set(tables)) or 'none'}; tables of unknown features: "
                f"{sorted(set(tables) - set(features)) or 'none'}"
            )
        for name, feature in features.items():
            if tables[name].rows < feature.cardinality:
                raise ValueError(
                    f"table {tables[name].name!r}: rows is {tables[name].rows}, but feature "
                    f"{name!r} has {feature.cardinality} ids (schema {self.data.schema.name!r}); "
                    "give the table more rows, or hash the feature into fewer"
                )

    def _check_managed(self) -> None:
        for feature, table in self.item_tables.items():
            if table.managed is not None and feature != ITEM_ID:
                raise ValueError(
                    f"table {table.name!r}: managed is set, but feature {feature!r} has a row for "
                    "each of its tokens; only tables of item IDs are managed"
                )
        if not isinstance(self.model.item, ItemIdConfig):
            return
        table, rows = self.item_tables[ITEM_ID], self.model.item.rows
        if (rows == "managed") != (table.managed is not None):
            raise ValueError(
                f"model.item.rows is {rows!r}, but table {table.name!r} has managed="
                f"{table.managed}; give the table managed=ManagedIds(...) exactly when rows is "
                "'managed'"
            )

    def _check_tokens(self) -> None:
        item = self.model.item
        if not isinstance(item, TokenItemConfig):
            if self.tokenizer is not None:
                raise ValueError(
                    "tokenizer is set but model.item reads item IDs, so it would have no effect; "
                    "set tokenizer=None or use HybridTokensConfig or ParallelTokensConfig"
                )
            return
        if self.tokenizer is None:
            raise ValueError("model.item reads tokens but tokenizer is None; name the tokens")
        tokens = self.tokenizer
        if item.num_levels != tokens.num_levels:
            extra = " (one is the extra code of collisions)"
            raise ValueError(
                f"model.item.num_levels is {item.num_levels} but the tokenizer has "
                f"{tokens.num_levels} levels{extra if tokens.collisions == 'extra_code' else ''}"
            )
        if item.gen_tokens and self.item_tables[GEN_TOKEN].rows != tokens.gen_rows:
            raise ValueError(
                f"table {self.item_tables[GEN_TOKEN].name!r}: rows is "
                f"{self.item_tables[GEN_TOKEN].rows}, but the tokenizer has "
                f"{tokens.num_levels} x {tokens.tokenizer.num_codes} = {tokens.gen_rows} "
                "gen-tokens"
            )
        if item.mem_tokens and self.item_tables[MEM_TOKEN].rows > tokens.mem_rows:
            raise ValueError(
                f"table {self.item_tables[MEM_TOKEN].name!r}: rows is "
                f"{self.item_tables[MEM_TOKEN].rows}, but at most {tokens.mem_rows} mem-tokens are "
                "made; rows above that would never be trained"
            )

    def _check_keep_best(self) -> None:
        metric = self.train.keep_best
        known = [
            f"valid/{task}_{measure}"
            for task in self.data.schema.labels
            for measure in ("auc", "logloss")
        ]
        if metric is not None and metric not in known:
            raise ValueError(
                f"train.keep_best is {metric!r}, but the validation part is measured by "
                f"{', '.join(known)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The resolved experiment as JSON values, with the class of every part."""
        described = _describe(self)
        assert isinstance(described, dict)
        return described

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all values but the name, which decides nothing that a run computes."""
        text = json.dumps({**self.to_dict(), "name": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _describe(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "class": type(value).__name__,
            **{f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)},
        }
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
