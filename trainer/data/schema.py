"""Which column of a log plays which role.

A :class:`DatasetSchema` is declared once per data set and checked when the folder is opened
(:meth:`trainer.data.dataset.Dataset.open`); models, readers and reports read roles from it and
never name a column of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Entity = Literal["user", "item", "request", "cross"]
"""Whom a feature describes: X_U, X_I, X_Q of TRM section 3.3, and user-item cross features."""

Source = Literal["interactions", "items", "users"]
"""The file that holds a column; `items` and `users` columns are joined by id at read time."""


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One integer id a row.

    Args:
        name: column and feature name.
        entity: whom it describes.
        cardinality: number of ids; ids are in `[0, cardinality)` unless `hashed`.
        source: file that holds the column.
        hashed: ids of any size are hashed into `cardinality` buckets.
    """

    name: str
    entity: Entity
    cardinality: int
    source: Source = "interactions"
    hashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Bag:
    """A list of integer ids a row, pooled into one vector. Arguments as in `Categorical`."""

    name: str
    entity: Entity
    cardinality: int
    source: Source = "interactions"
    hashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Dense:
    """One number a row.

    Args:
        name: column and feature name.
        entity: whom it describes.
        source: file that holds the column.
        transform: `log1p` for counts and durations.
    """

    name: str
    entity: Entity
    source: Source = "interactions"
    transform: Literal["none", "log1p"] = "none"


@dataclass(frozen=True, kw_only=True)
class ItemSequence:
    """A list of item ids a row, oldest first: what the user did before the impression.

    A log has one a kind of feedback, for instance items that the user liked and items that the
    user saw and did not like; models tell the kinds apart.

    Args:
        name: column name.
        max_length: longest list; longer ones are an error of the data, not cut silently.
    """

    name: str
    max_length: int


@dataclass(frozen=True, kw_only=True)
class DatasetSchema:
    """Roles of the columns of one data set.

    Args:
        name: of the data set, as it stands in reports.
        features: categorical, bag and dense features, in the order in which models see them.
        labels: label columns (0 or 1), one task each; the first is the main task.
        histories: sequences of item ids, one a kind of feedback.
        user, item, time: columns of user id, item id and time (integer seconds).
        user_group: column whose groups GAUC is computed in (usually the user).
        query_group: column whose groups QAUC is computed in (query, request or session).
        created_at: column of items.parquet with the time of an item's birth, or None.
    """

    name: str
    features: tuple[Categorical | Bag | Dense, ...]
    labels: tuple[str, ...]
    histories: tuple[ItemSequence, ...] = ()
    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    user_group: str = "user_id"
    query_group: str = "session_id"
    created_at: str | None = "created_at"

    def __post_init__(self) -> None:
        """Check the schema on its own.

        Raises:
            ValueError: on a repeated feature, no label, or a cardinality below 1.
        """
        names = [feature.name for feature in self.features]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"schema {self.name!r}: features named twice: {', '.join(repeated)}")
        if not self.labels:
            raise ValueError(f"schema {self.name!r}: labels is empty; name at least one column")
        for feature in self.pooled_features:
            if feature.cardinality < 1:
                raise ValueError(
                    f"schema {self.name!r}: cardinality of {feature.name!r} is "
                    f"{feature.cardinality}, expected at least 1"
                )

    @property
    def pooled_features(self) -> tuple[Categorical | Bag, ...]:
        """Features that go through pooled embedding tables, in schema order."""
        return tuple(f for f in self.features if isinstance(f, Categorical | Bag))

    @property
    def dense_features(self) -> tuple[Dense, ...]:
        """Features that are numbers, in schema order."""
        return tuple(f for f in self.features if isinstance(f, Dense))


@dataclass(frozen=True, kw_only=True)
class GlobalTimeSplit:
    """Parts by time: the first `train` of the rows, the next `valid`, then the test.

    A boundary moves forward until the timestamp changes, so equal times never straddle it.
    """

    train: float = 0.8
    valid: float = 0.1

    def __post_init__(self) -> None:
        """Check the fractions.

        Raises:
            ValueError: when a part would be empty.
        """
        if not (0 < self.train < 1 and 0 < self.valid < 1 and self.train + self.valid < 1):
            raise ValueError(
                f"split: train={self.train} and valid={self.valid} must be positive "
                "and leave something for the test"
            )


@dataclass(frozen=True, kw_only=True)
class TimesSplit:
    """Parts by two values of the time column: dates, or numbers that stand in their place.

    Args:
        valid_from: first time of the validation part; what is before is for training.
        test_from: first time of the test part.
    """

    valid_from: int
    test_from: int

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            ValueError: when the validation part would be empty.
        """
        if self.valid_from >= self.test_from:
            raise ValueError(
                f"split: valid_from={self.valid_from} must be before test_from={self.test_from}"
            )


Split = GlobalTimeSplit | TimesSplit
"""How a log is cut into train, validation and test."""


@dataclass(frozen=True)
class RowRange:
    """Rows `start` (included) to `stop` (excluded) of the time-ordered log."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set."""

    train: RowRange
    valid: RowRange
    test: RowRange
