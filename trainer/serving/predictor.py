"""Scores impressions with an exported model; nothing of training is needed, or imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenization.artifact import TokenArtifact
from trainer.batch import Batch
from trainer.data.context_roles import context_roles
from trainer.data.entity_table import EntityTable
from trainer.data.errors import DataError
from trainer.initialize import parameters_on_meta
from trainer.models.dig import DigNetwork
from trainer.models.ranking_network import Precision, RankingNetwork
from trainer.serving.description import ModelDescription, known_classes
from trainer.serving.encoded_items import E_ND, keep_ranking_path
from trainer.serving.folder import (
    IDENTITY,
    ITEMS,
    MODEL,
    NETWORK,
    TABLES,
    TOKENS,
    USERS,
    ServingError,
    read_document,
    verify,
)
from trainer.serving.identity import ENCODED_ITEMS, rows_of_items
from trainer.serving.request import REQUEST, RequestReader
from trainer.serving.tables import ServingTables, StoredRows

BATCH_ROWS = 8192
"""Rows of a file that are scored at a time."""


class Predictor:
    """An exported model, ready to score; build it with `load`.

    Attributes:
        description: what was exported.

    Example::

        predictor = Predictor.load(Path("serving/trm"))
        predictor.score({"item_id": 7, "user_id": 3, ...})           # {"click": 0.041}
        predictor.score({"item_id": [7, 8, 9], "user_id": 3, ...})   # three candidates of a user
        predictor.score_parquet(Path("impressions.parquet"))["click"]
    """

    def __init__(
        self,
        description: ModelDescription,
        tables: ServingTables,
        network: RankingNetwork,
        reader: RequestReader,
    ) -> None:
        self.description = description
        self._tables = tables.eval()
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._reader = reader

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the scores."""
        return self.description.schema.labels

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tokens: Path | None = None,
        precision: Precision | None = None,
        classes: Iterable[type] = (),
    ) -> Predictor:
        """Open what `farewell export` wrote; every byte is compared with the manifest first.

        Args:
            folder: of the export.
            tokens: token artifact to read instead of the exported one: a later one of the same
                vocabulary, which knows new items.
            precision: of the network's matrix products; as in training by default.
            classes: config classes of towers of your own.

        Raises:
            ServingError: when something is missing, damaged, or does not fit.
            TokenArtifactError: when tokens are of another vocabulary.
        """
        files = verify(folder)
        description = ModelDescription.from_dict(
            read_document(folder / MODEL), known_classes(classes)
        )
        artifact = _tokens(folder, description, tokens)
        item_tables = {
            feature: table
            for table in description.tables
            if table.pooling == "none"
            for feature in table.features
        }
        arrays = _tensors(folder / IDENTITY) if IDENTITY in files else {}
        schema = description.schema
        for source, name in (("items", ITEMS), ("users", USERS)):
            if name not in files and any(f.source == source for f in schema.features):
                raise ServingError(f"{folder}: holds no {name}, whose features the model reads")
        reader = RequestReader(
            schema,
            rows_of_items(
                description.model.item,
                item_tables,
                artifact,
                {name: value.numpy() for name, value in arrays.items()},
            ),
            EntityTable(folder / ITEMS, schema, source="items") if ITEMS in files else None,
            EntityTable(folder / USERS, schema, source="users") if USERS in files else None,
        )
        return cls(
            description,
            ServingTables(description.tables, description.rows, _stored_rows(folder, description)),
            _network(folder, description, precision or description.precision, arrays),
            reader,
        )

    def score(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Probabilities of one impression, or of several.

        Args:
            request: column -> value. With a single item every column holds one value (a list for
                bags and histories); with a list of B items each holds B values (B lists), or one
                value (one flat list) that stands for all.

        Returns:
            Task -> float, or float64 (B,).

        Raises:
            DataError: naming the column that is missing, unknown or wrong, and what to do.
        """
        columns, single = self._reader.from_dict(request)
        scores = self._score(self._reader.batch(columns, REQUEST))
        if single:
            return {task: float(values[0]) for task, values in scores.items()}
        return scores

    def score_parquet(
        self, path: Path, *, batch_rows: int = BATCH_ROWS
    ) -> dict[str, NDArray[np.float64]]:
        """Probabilities of every row of a parquet file, or of a folder of parts in order.

        Static features of items and users are joined from the export, unless the file has them.

        Args:
            path: file or folder.
            batch_rows: rows that are scored at a time.

        Raises:
            DataError: naming file, column, row, what was expected and found.
        """
        found = [
            self.score_table(table, part, first_row)
            for part, first_row, table in self._batches(path, batch_rows)
        ]
        return {
            task: np.concatenate([scores[task] for scores in found]) if found else np.zeros(0)
            for task in self.tasks
        }

    def score_table(
        self, table: pa.Table, path: Path = REQUEST, first_row: int = 0
    ) -> dict[str, NDArray[np.float64]]:
        """Probabilities of rows that are in memory already.

        Args:
            table: columns as in interactions.
            path: where they are from, for messages.
            first_row: row of the file at which they begin, for messages.
        """
        columns = self._reader.from_table(table, path, first_row)
        return self._score(self._reader.batch(columns, path, first_row))

    def columns(self, available: Iterable[str]) -> list[str]:
        """Those of some columns that scoring reads."""
        return self._reader.wanted(available)

    def _score(self, batch: Batch) -> dict[str, NDArray[np.float64]]:
        if not batch.batch_size:
            return {task: np.zeros(0) for task in self.tasks}
        with torch.inference_mode():
            pooled, items = self._tables(batch.pooled, batch.items)
            logits_BN = self._network(batch, pooled, items).logits_BN
            scores_BN = torch.sigmoid(logits_BN.double()).numpy()
        return {task: scores_BN[:, at].copy() for at, task in enumerate(self.tasks)}

    def _batches(self, path: Path, batch_rows: int) -> Iterator[tuple[Path, int, pa.Table]]:
        paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not paths:
            raise DataError(f"{path}: expected parquet files, found none")
        for part in paths:
            first_row = 0
            try:
                with pq.ParquetFile(part) as file:
                    columns = self.columns(file.schema_arrow.names)
                    for batch in file.iter_batches(batch_rows, columns=columns):
                        yield part, first_row, pa.Table.from_batches([batch])
                        first_row += batch.num_rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{part}: expected a parquet file, found one that is missing, truncated or "
                    f"not parquet ({str(error).splitlines()[0]})"
                ) from error


def _tokens(
    folder: Path, description: ModelDescription, given: Path | None
) -> TokenArtifact | None:
    if description.vocabulary is None:
        if given is not None:
            raise ServingError(
                f"{folder}: the model reads item IDs, so tokens={given} would have no effect"
            )
        return None
    artifact = TokenArtifact.load(given or folder / TOKENS)
    artifact.check_vocabulary(description.vocabulary, of=str(folder))
    return artifact


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ServingError(f"{path}: can't be read ({error})") from error


def _stored_rows(folder: Path, description: ModelDescription) -> dict[str, StoredRows]:
    tensors = _tensors(folder / TABLES)
    names = {table.name for table in description.tables}
    if missing := sorted(name for name in names if f"{name}/rows" not in tensors):
        raise ServingError(f"{folder / TABLES}: holds no rows of table {', '.join(missing)}")
    return {name: (tensors[f"{name}/rows"], tensors.get(f"{name}/scales")) for name in names}


def _network(
    folder: Path,
    description: ModelDescription,
    precision: Precision,
    identity: Mapping[str, Tensor],
) -> RankingNetwork:
    """The network with the exported weights; never more memory than these take."""
    schema = description.schema
    with parameters_on_meta():
        network = description.model.build_network(
            tables=description.tables,
            num_dense=len(schema.dense_features),
            num_tasks=len(schema.labels),
            num_histories=len(schema.histories),
            roles=context_roles(schema),
            precision=precision,
        )
    tensors = _tensors(folder / NETWORK)
    if isinstance(network, DigNetwork):
        keep_ranking_path(network, tensors.get(E_ND), num_ids=len(identity[ENCODED_ITEMS]))
    expected = {
        name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()
    }
    found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    if differing := sorted(dict(expected.items() ^ found.items())):
        first = differing[0]
        raise ServingError(
            f"{folder / NETWORK}: {first!r} is {found.get(first, 'missing')}, the network that "
            f"{MODEL} describes has {expected.get(first, 'none')} ({len(differing)} differ)"
        )
    network.load_state_dict(tensors, assign=True)
    return network
