from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import csv_chunks, time_order
from trainer.data.dataset import Dataset
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, ItemSequence

NUM_ITEMS, NUM_USERS, NUM_ROWS = 30, 8, 400

SCHEMA = DatasetSchema(
    name="small",
    features=(
        Categorical(name="user_id", entity="user", cardinality=NUM_USERS),
        Bag(name="tags", entity="request", cardinality=12),
        Dense(name="item_count", entity="item", transform="log1p"),
        Categorical(name="genre", entity="item", cardinality=4, source="items"),
        Bag(name="genres", entity="item", cardinality=6, source="items"),
        Dense(name="price", entity="item", source="items"),
        Categorical(name="gender", entity="user", cardinality=2, source="users"),
        Categorical(name="device", entity="request", cardinality=5, hashed=True),
    ),
    labels=("like", "love"),
    histories=(
        ItemSequence(name="history", max_length=5),
        ItemSequence(name="skipped", max_length=3),
    ),
)


def random_lists(
    rng: np.random.Generator, num_rows: int, longest: int, values: np.ndarray
) -> list[list[int]]:
    return [rng.choice(values, rng.integers(0, longest + 1)).tolist() for _ in range(num_rows)]


@dataclass
class SmallLog:
    """A log in memory that a test may spoil before it is written."""

    folder: Path
    schema: DatasetSchema = SCHEMA
    num_rows: int = NUM_ROWS
    part_rows: int = 150
    row_group_size: int = 40
    interactions: pa.Table = field(init=False)
    items: pa.Table = field(init=False)
    users: pa.Table = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        item_ids = 100 + rng.permutation(3 * NUM_ITEMS)[:NUM_ITEMS]
        n = self.num_rows
        self.items = pa.table(
            {
                "item_id": item_ids,
                "created_at": rng.integers(0, 50, NUM_ITEMS),
                "genre": rng.integers(0, 4, NUM_ITEMS).astype(np.int16),
                "genres": random_lists(rng, NUM_ITEMS, 3, np.arange(6)),
                "price": rng.random(NUM_ITEMS),
                "title": [f"item {i}" for i in item_ids],
            }
        )
        self.users = pa.table(
            {"user_id": rng.permutation(NUM_USERS), "gender": rng.integers(0, 2, NUM_USERS)}
        )
        self.interactions = pa.table(
            {
                "user_id": rng.integers(0, NUM_USERS, n).astype(np.int32),
                "item_id": rng.choice(item_ids, n),
                "timestamp": 1000 + np.arange(n) // 3,
                "session_id": np.arange(n) // 10,
                "tags": random_lists(rng, n, 4, np.arange(12)),
                "item_count": rng.integers(0, 9, n),
                "device": rng.integers(-(2**60), 2**60, n),
                "history": random_lists(rng, n, 5, item_ids),
                "skipped": random_lists(rng, n, 3, item_ids),
                "like": rng.integers(0, 2, n).astype(np.int8),
                "love": rng.integers(0, 2, n).astype(np.float32),
                "rating": rng.integers(1, 6, n),
            }
        )

    def put(self, column: str, row: int, value: object, table: str = "interactions") -> None:
        """Spoil one value."""
        old: pa.Table = getattr(self, table)
        at = old.schema.get_field_index(column)
        values = old.column(column).to_pylist()
        values[row] = value
        kind = old.schema.field(column).type
        setattr(self, table, old.set_column(at, column, pa.array(values, type=kind)))

    def cast(self, column: str, values: object, table: str = "interactions") -> None:
        """Replace a column by values of another type."""
        old: pa.Table = getattr(self, table)
        setattr(self, table, old.set_column(old.schema.get_field_index(column), column, values))

    def part(self, number: int) -> Path:
        return self.folder / "interactions" / f"part-{number:05d}.parquet"

    def write(self) -> SmallLog:
        (self.folder / "interactions").mkdir(parents=True, exist_ok=True)
        for number, start in enumerate(range(0, self.num_rows, self.part_rows)):
            table = self.interactions.slice(start, self.part_rows)
            pq.write_table(table, self.part(number), row_group_size=self.row_group_size)
        pq.write_table(self.items, self.folder / "items.parquet")
        pq.write_table(self.users, self.folder / "users.parquet")
        return self

    def open(self) -> Dataset:
        return Dataset.open(self.folder, self.schema)


@pytest.fixture
def small_log(tmp_path: Path) -> SmallLog:
    return SmallLog(tmp_path / "log")


@pytest.fixture
def make_log(tmp_path: Path) -> Callable[..., SmallLog]:
    return lambda **changes: SmallLog(tmp_path / "log", **changes)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return SmallLog(tmp_path_factory.mktemp("data") / "log").write().open()


@pytest.fixture(scope="module")
def small_pieces() -> Iterator[None]:
    """Files are read, and rows brought in order, in many small pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_chunks, "BLOCK_BYTES", 4096)
        patch.setattr(time_order, "BYTES_OF_USERS", 4096)
        patch.setattr(time_order, "ROWS_OF_TIME", 70)
        patch.setattr(time_order, "CHUNK_ROWS", 33)
        yield
