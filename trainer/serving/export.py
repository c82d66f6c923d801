"""From a run's checkpoint to a folder that `Predictor` loads; needs no rank and no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from sharding.tables import TableSpec
from tokenization.artifact import TokenArtifact
from trainer.checkpoint import Checkpoints
from trainer.checkpoint_choice import AUTO, choose
from trainer.data.dataset import Dataset
from trainer.data.item_features import most_exposed_items
from trainer.data.parts import ParquetPart, required_columns
from trainer.data.schema import DatasetSchema, Split
from trainer.data.static_features import read_static_features
from trainer.distributed import runs_bf16_natively
from trainer.models.ranking_network import Precision, RankingModelConfig
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.modules.parallel_tokens import TokenItemConfig
from trainer.residual_ids import check_residual_ids
from trainer.run_folder import RunFolder, package_versions
from trainer.run_inputs import check_embeddings_made, embeddings_made
from trainer.serving.description import ModelDescription, known_classes, restored
from trainer.serving.encoded_items import encoded_items, ranking_weights
from trainer.serving.folder import (
    EXPERIMENT,
    IDENTITY,
    ITEMS,
    MODEL,
    NETWORK,
    TABLES,
    TOKENS,
    USERS,
    ServingError,
    seal,
    write_document,
    written_whole,
)
from trainer.serving.identity import ENCODED_ITEMS
from trainer.serving.managed_map import managed_map
from trainer.serving.predictor import Predictor
from trainer.serving.tables import RowKind, quantize, stored_shapes
from trainer.stored_state import StoredState, TensorFile

_VALUE = "/value"
_NEXT_TOKEN = "next_token."


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A checkpoint of a run and what its experiment says, without building the experiment.

    Args:
        folder: of the run.
        source: the checkpoint.
        trained: `Experiment.to_dict` of what was trained.
        schema, split: of the log.
        model, tables: of the network and the tables.
        classes: config classes by name.
    """

    folder: RunFolder
    source: StoredState
    trained: Mapping[str, Any]
    schema: DatasetSchema
    split: Split
    model: RankingModelConfig
    tables: tuple[TableSpec, ...]
    classes: Mapping[str, type]

    @classmethod
    def open(
        cls, folder: Path, *, checkpoint: str = AUTO, classes: Iterable[type] = ()
    ) -> TrainedRun:
        """Choose a checkpoint and read what it was made by.

        Args:
            folder: of the run.
            checkpoint: `newest`; `best` by the run's `train.keep_best`; `auto` for the best where
                the run has such, else the newest; or a step.
            classes: config classes of towers of your own.

        Raises:
            CheckpointError: when there is no such checkpoint.
            ServingError: when its experiment can't be read.
        """
        run = RunFolder(folder)
        source = StoredState(choose(Checkpoints(run.checkpoints), checkpoint).path)
        trained = source.config
        known = known_classes(classes)
        at = f"{source.path / 'config.json'}: "
        data = _mapping(trained, "data", at)
        tables = trained.get("tables")
        return cls(
            folder=run,
            source=source,
            trained=trained,
            schema=restored(data.get("schema"), DatasetSchema, known, at=at + "data.schema"),
            split=restored(data.get("split"), Split, known, at=at + "data.split"),
            model=restored(trained.get("model"), RankingModelConfig, known, at=at + "model"),
            tables=tuple(
                restored(table, TableSpec, known, at=f"{at}tables[{n}]")
                for n, table in enumerate(tables if isinstance(tables, list) else [])
            ),
            classes=known,
        )

    def dataset(self) -> Dataset:
        """The log that it was trained on.

        Raises:
            DataError: when it is not where it was.
        """
        return Dataset.open(Path(self.trained["data"]["folder"]), self.schema)

    def tokens(self) -> TokenArtifact | None:
        """The tokens that it was trained with.

        Raises:
            TokenArtifactError: when they are gone, or are of another vocabulary by now.
        """
        if not isinstance(self.model.item, TokenItemConfig):
            return None
        tokens = TokenArtifact.load(Path(self.trained["tokenizer"]["folder"]))
        tokens.check_vocabulary(str(self.source.state.get("vocabulary")), of=str(self.source.path))
        return tokens

    @property
    def ranking_tables(self) -> tuple[TableSpec, ...]:
        """Those that ranking reads: not the SID embeddings of a DIG model."""
        if not isinstance(self.model.item, LearnedTokensConfig):
            return self.tables
        return tuple(table for table in self.tables if table.pooling != "none")

    @property
    def precision(self) -> Precision:
        """In which the run computed, or would on this machine."""
        if self.folder.result.exists():
            told = json.loads(self.folder.result.read_text()).get("precision")
        else:
            told = self.trained["train"]["precision"]
        if told == "auto":
            return "bf16" if runs_bf16_natively(torch.device("cpu")) else "fp32"
        return "bf16" if told == "bf16" else "fp32"


def export_run(
    run: TrainedRun, out: Path, *, rows: RowKind = "int8", precision: Precision | None = None
) -> Predictor:
    """Write a checkpoint for serving; an older export at `out` is replaced as a whole.

    The result is loaded once before it takes its name, so what is there can be served.

    Args:
        run: what to export.
        out: folder to write.
        rows: how table rows are stored.
        precision: of the network; as in training by default.

    Returns:
        The loaded export.

    Raises:
        ValueError: for whatever is wrong with checkpoint, tokens or log.
    """
    source = run.source
    source.verify()
    tokens = run.tokens()
    description = ModelDescription(
        name=str(run.trained.get("name")),
        step=source.state["step"],
        rows=rows,
        precision=precision or run.precision,
        schema=run.schema,
        model=_without_unused_parts(run.model),
        tables=run.ranking_tables,
        vocabulary=None if tokens is None else tokens.vocabulary_fingerprint,
    )
    share = getattr(run.model, "cross_share", 1.0)
    if 0 < share < 1:
        raise ServingError(
            f"model.cross_share is {share}: cross features are taken from impressions by their "
            "place in the log, which a request does not have; export a model with all or none"
        )
    with written_whole(out) as folder:
        write_document(folder / MODEL, description.to_dict())
        state = {
            name: source.state.get(name)
            for name in ("step", "experiment", "vocabulary", "schedule", "validation")
        }
        write_document(
            folder / EXPERIMENT,
            {"experiment": run.trained, "checkpoint": state, "versions": package_versions()},
        )
        _write_tables(folder / TABLES, run, rows)
        _write_network(folder / NETWORK, run, description)
        identity = _identity(run)
        if identity:
            save_file(identity, folder / IDENTITY)
        _write_static_features(folder, run)
        if tokens is not None:
            tokens.save(folder / TOKENS)
        seal(folder)
        predictor = Predictor.load(folder, classes=run.classes.values())
    return predictor


def _mapping(values: Mapping[str, Any], name: str, at: str) -> Mapping[str, Any]:
    value = values.get(name)
    if not isinstance(value, dict):
        raise ServingError(f"{at}{name} is no JSON object")
    return value


def _without_unused_parts(model: RankingModelConfig) -> RankingModelConfig:
    """Without a next-token module that does not feed the tower: scores do not depend on it."""
    if model.next_token is None or model.next_token.feeds_tower:
        return model
    return replace(model, next_token=None)


def _write_tables(path: Path, run: TrainedRun, kind: RowKind) -> None:
    """One table at a time in memory."""
    entries = []
    for table in run.ranking_tables:
        values, scales = stored_shapes(table, kind)
        entries.append((f"{table.name}/rows", torch.uint8, values))
        if scales is not None:
            entries.append((f"{table.name}/scales", torch.uint8, scales))
    file = TensorFile(path, entries)
    try:
        for table in run.ranking_tables:
            weight_RD = run.source.whole(f"table/{table.name}/weight")
            if tuple(weight_RD.shape) != (table.rows, table.dim):
                raise ServingError(
                    f"{run.source.path}: table {table.name!r} is {tuple(weight_RD.shape)}, its "
                    f"spec says {(table.rows, table.dim)}"
                )
            for part in quantize(weight_RD, kind):
                if part is not None:
                    file.write(part)
        file.close()
    except BaseException:
        file.abandon()
        raise


def _write_network(path: Path, run: TrainedRun, description: ModelDescription) -> None:
    tensors: dict[str, Tensor] = {}
    source = run.source
    for name in source.tensors:
        if name.startswith("network/") and name.endswith(_VALUE):
            parameter = name.removeprefix("network/").removesuffix(_VALUE)
            if description.model.next_token is not None or not parameter.startswith(_NEXT_TOKEN):
                tensors[parameter] = source.whole(name)
    if isinstance(run.model.item, LearnedTokensConfig):
        tensors = ranking_weights(tensors, _encoded(run, run.model.item, tensors))
    save_file(tensors, path)


def _encoded(run: TrainedRun, config: LearnedTokensConfig, weights: Mapping[str, Tensor]) -> Tensor:
    """e_v of every item of the log."""
    if config.embeddings is not None:  # a checkpoint has it as text
        config = replace(config, embeddings=Path(config.embeddings))
        check_embeddings_made(embeddings_made(config), run.source)
    return encoded_items(config, weights, read_static_features(run.dataset(), config))


def _identity(run: TrainedRun) -> dict[str, Tensor]:
    """Maps from ids to rows that neither ids nor tokens tell."""
    found: dict[str, NDArray[np.int64]] = {}
    if isinstance(run.model.item, LearnedTokensConfig):
        found[ENCODED_ITEMS] = run.dataset().item_ids
    for table in run.ranking_tables:
        if table.managed is not None:
            found |= managed_map(run.source, table)
        elif isinstance(run.model.item, TokenItemConfig) and "item_id" in table.features:
            if table.pooling != "none":
                continue
            dataset = run.dataset()
            train = dataset.split(run.split).train
            kept = most_exposed_items(dataset, rows=train, num_rows=table.rows)
            ids = dataset.item_ids[kept.lengths > 0]
            check_residual_ids(ids, run.source)
            found[f"{table.name}/item_ids"] = ids
    return {name: torch.from_numpy(np.ascontiguousarray(ids)) for name, ids in found.items()}


def _write_static_features(folder: Path, run: TrainedRun) -> None:
    """Static features of items and users, as the log has them."""
    for source, name in (("items", ITEMS), ("users", USERS)):
        if not any(feature.source == source for feature in run.schema.features):
            continue
        part = ParquetPart.open(Path(run.trained["data"]["folder"]) / name)
        source_name: Any = source
        columns = sorted({column for column, _ in required_columns(run.schema, source_name)})
        pq.write_table(part.read(columns), folder / name)
