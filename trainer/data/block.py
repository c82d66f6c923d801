"""Checked columns of consecutive or chosen rows, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data import decode
from trainer.data.errors import Place
from trainer.data.ragged import Ragged
from trainer.data.schema import Bag, Categorical, Dense


@dataclass(frozen=True)
class FeatureColumns:
    """Features of n rows, by name.

    Attributes:
        ids: int64 (n,) for each categorical feature.
        bags: n lists of int64 for each bag feature.
        dense: float32 (n,) for each dense feature, transformed.
    """

    ids: dict[str, NDArray[np.int64]]
    bags: dict[str, Ragged]
    dense: dict[str, NDArray[np.float32]]

    @classmethod
    def decode(
        cls,
        table: pa.Table,
        features: Sequence[Categorical | Bag | Dense],
        *,
        path: Path,
        first_row: int = 0,
    ) -> FeatureColumns:
        """Check and convert the columns of `features`.

        Args:
            table: has one column a feature.
            features: to convert.
            path: file that the table is from, for messages.
            first_row: row of the file at which the table begins, for messages.

        Raises:
            DataError: on a null, a NaN or an id out of range.
        """
        columns = cls({}, {}, {})
        for feature in features:
            place = Place(path, feature.name, first_row)
            column = table.column(feature.name)
            if isinstance(feature, Dense):
                columns.dense[feature.name] = decode.dense_values(
                    decode.scalars(column, place), place, transform=feature.transform
                )
            elif isinstance(feature, Categorical):
                columns.ids[feature.name] = decode.feature_ids(
                    decode.scalars(column, place),
                    place,
                    cardinality=feature.cardinality,
                    hashed=feature.hashed,
                )
            else:
                raw = decode.lists(column, place)
                values = decode.feature_ids(
                    raw.values,
                    place,
                    cardinality=feature.cardinality,
                    hashed=feature.hashed,
                    offsets=raw.offsets,
                )
                columns.bags[feature.name] = Ragged(values, raw.offsets)
        return columns

    def take(self, rows: NDArray[np.integer]) -> FeatureColumns:
        """Return the features of `rows`, in that order."""
        return FeatureColumns(
            ids={name: column.take(rows) for name, column in self.ids.items()},
            bags={name: column.gather(rows) for name, column in self.bags.items()},
            dense={name: column.take(rows) for name, column in self.dense.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[FeatureColumns]) -> FeatureColumns:
        """Put rows of several records one after the other."""
        first = parts[0]
        return cls(
            ids={name: np.concatenate([p.ids[name] for p in parts]) for name in first.ids},
            bags={name: Ragged.concatenate([p.bags[name] for p in parts]) for name in first.bags},
            dense={name: np.concatenate([p.dense[name] for p in parts]) for name in first.dense},
        )


@dataclass(frozen=True)
class RowBlock:
    """Impressions, columns of interactions only; items and users are joined by their rows.

    Attributes:
        row: int64 (n,) position in the log.
        item: int32 (n,) item row.
        user: int32 (n,) user row, None when no feature comes from users.parquet.
        features: with source interactions.
        history: n lists of `item row * number of histories + number of the history`, None
            without a history.
        labels: float32 (n, num_labels).
    """

    row: NDArray[np.int64]
    item: NDArray[np.int32]
    user: NDArray[np.int32] | None
    features: FeatureColumns
    history: Ragged | None
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of impressions n."""
        return len(self.row)

    def take(self, rows: NDArray[np.integer]) -> RowBlock:
        """Return the impressions `rows`, in that order."""
        return RowBlock(
            row=self.row.take(rows),
            item=self.item.take(rows),
            user=None if self.user is None else self.user.take(rows),
            features=self.features.take(rows),
            history=None if self.history is None else self.history.gather(rows),
            labels=self.labels.take(rows, axis=0),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RowBlock]) -> RowBlock:
        """Put impressions of several blocks one after the other."""
        if len(parts) == 1:
            return parts[0]
        users: list[NDArray[Any]] = [part.user for part in parts if part.user is not None]
        histories = [part.history for part in parts if part.history is not None]
        return cls(
            row=np.concatenate([part.row for part in parts]),
            item=np.concatenate([part.item for part in parts]),
            user=np.concatenate(users) if users else None,
            features=FeatureColumns.concatenate([part.features for part in parts]),
            history=Ragged.concatenate(histories) if histories else None,
            labels=np.concatenate([part.labels for part in parts]),
        )
