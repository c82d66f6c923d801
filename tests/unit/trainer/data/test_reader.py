from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch

from trainer.batch import Batch
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.hashing import hash_buckets
from trainer.data.item_features import item_id_features
from trainer.data.parts import ParquetPart
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange

ROWS = RowRange(7, 391)


def reader(dataset: Dataset, **changes: Any) -> InteractionReader:
    settings: dict[str, Any] = {
        "rows": ROWS,
        "item_features": item_id_features(dataset, cardinality=1000, hashed=False),
        "batch_size": 16,
        "rank": 0,
        "world_size": 1,
        "shuffle_rows": 80,
        "seed": 5,
        "drop_last": True,
    }
    return InteractionReader(dataset, **{**settings, **changes})


def rows_of(batches: Any) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return list(chain.from_iterable(rows_of(batches)))


def assert_equal_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in (
            "dense_BF",
            "candidate_B",
            "history_T",
            "history_kind_T",
            "history_offsets",
            "labels_BN",
        ):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.row_B.tolist() == b.row_B.tolist()
        for name in ("pooled", "items"):
            assert getattr(a, name).keys() == getattr(b, name).keys()
            assert torch.equal(getattr(a, name).values(), getattr(b, name).values())
            assert torch.equal(getattr(a, name).lengths(), getattr(b, name).lengths())


def per_row(batch: Batch) -> dict[int, dict[str, Any]]:
    """Take a batch apart, row by row, in plain Python."""
    pooled = {key: batch.pooled[key].to_dense() for key in batch.pooled.keys()}  # noqa: SIM118
    item_ids = [ids.tolist() for ids in batch.items["item_id"].to_dense()]
    offsets = batch.history_offsets.tolist()
    return {
        row: {
            "pooled": {key: ids[i].tolist() for key, ids in pooled.items()},
            "dense": batch.dense_BF[i].tolist(),
            "labels": batch.labels_BN[i].tolist(),
            "item": item_ids[batch.candidate_B[i]],
            "history": [
                (item_ids[at], kind)
                for at, kind in zip(
                    batch.history_T[offsets[i] : offsets[i + 1]],
                    batch.history_kind_T[offsets[i] : offsets[i + 1]].tolist(),
                    strict=True,
                )
            ],
        }
        for i, row in enumerate(batch.row_B.tolist())
    }


@pytest.mark.parametrize("shuffle_rows", [None, 80])
def test_batches_hold_what_plain_python_finds(
    small_log: Any, dataset: Dataset, shuffle_rows: int | None
) -> None:
    log = small_log.interactions.to_pylist()
    items = {item["item_id"]: item for item in small_log.items.to_pylist()}
    users = {user["user_id"]: user for user in small_log.users.to_pylist()}
    seen = 0
    for batch in reader(dataset, shuffle_rows=shuffle_rows, drop_last=False):
        assert batch.pooled.keys() == ["user_id", "tags", "genre", "genres", "gender", "device"]
        assert len(set(batch.items.values().tolist())) == len(batch.items.values())
        for number, found in per_row(batch).items():
            row = log[number]
            item, user = items[row["item_id"]], users[row["user_id"]]
            assert found["pooled"] == {
                "user_id": [row["user_id"]],
                "tags": row["tags"],
                "genre": [item["genre"]],
                "genres": item["genres"],
                "gender": [user["gender"]],
                "device": hash_buckets(np.array([row["device"]]), 5).tolist(),
            }
            assert found["dense"] == pytest.approx([np.log1p(row["item_count"]), item["price"]])
            assert found["labels"] == [row["like"], row["love"]]
            assert found["item"] == [row["item_id"]]
            assert found["history"] == [
                ([item_id], kind)
                for kind, name in enumerate(("history", "skipped"))
                for item_id in row[name]
            ]
            seen += 1
    assert seen == len(ROWS)


def test_types_of_a_batch(dataset: Dataset) -> None:
    batch = next(iter(reader(dataset)))
    assert batch.batch_size == 16
    assert {batch.dense_BF.dtype, batch.labels_BN.dtype} == {torch.float32}
    integers = [batch.candidate_B, batch.history_T, batch.history_offsets, batch.row_B]
    integers.append(batch.history_kind_T)
    integers += [kjt.values() for kjt in (batch.pooled, batch.items)]
    integers += [kjt.lengths() for kjt in (batch.pooled, batch.items)]
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert (batch.pooled.stride(), batch.items.stride()) == (16, len(batch.items.values()))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shuffle_rows", [None, 33, 80, 10_000])
def test_training_ranks_share_rows_without_overlap(
    dataset: Dataset, shuffle_rows: int | None, world_size: int
) -> None:
    shares = [
        reader(dataset, rank=rank, world_size=world_size, shuffle_rows=shuffle_rows, batch_size=9)
        for rank in range(world_size)
    ]
    batches = [rows_of(share) for share in shares]
    assert {len(rows) for rows in batches} == {len(shares[0])} == {len(ROWS) // world_size // 9}
    assert {len(batch) for rows in batches for batch in rows} == {9}
    seen = list(chain.from_iterable(chain.from_iterable(batches)))
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(ROWS.start, ROWS.stop))
    assert len(ROWS) - len(seen) <= world_size * 9


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 9, 1000])
def test_evaluation_covers_every_row_once_with_as_many_batches_everywhere(
    dataset: Dataset, batch_size: int, world_size: int
) -> None:
    shares = [
        reader(
            dataset,
            rank=rank,
            world_size=world_size,
            shuffle_rows=None,
            batch_size=batch_size,
            drop_last=False,
        )
        for rank in range(world_size)
    ]
    batches = [rows_of(share) for share in shares]
    assert {len(rows) for rows in batches} == {len(shares[0])}
    assert min(len(batch) for rows in batches for batch in rows) >= 1
    in_rank_order = list(chain.from_iterable(chain.from_iterable(batches)))
    assert in_rank_order == list(range(ROWS.start, ROWS.stop))
    assert rows_of(shares[0]) == batches[0]  # a second pass is the same


def test_shuffling_follows_seed_and_epoch(dataset: Dataset) -> None:
    two = flat(reader(dataset, num_epochs=2, batch_size=len(ROWS)))
    first, second = two[: len(ROWS)], two[len(ROWS) :]
    assert sorted(first) == sorted(second) == list(range(ROWS.start, ROWS.stop))
    assert first != second
    assert first != sorted(first)
    assert first == flat(reader(dataset, batch_size=len(ROWS)))
    assert first != flat(reader(dataset, batch_size=len(ROWS), seed=6))


def test_shuffling_stays_within_its_window(dataset: Dataset) -> None:
    for batch in rows_of(reader(dataset, rows=RowRange(0, 400), batch_size=80)):
        assert len({row // 80 for row in batch}) == 1


def test_without_end_when_num_epochs_is_none(dataset: Dataset) -> None:
    endless = reader(dataset, num_epochs=None)
    batches = iter(endless)
    assert len(rows_of(islice(batches, 3 * len(endless) + 1))) == 3 * len(endless) + 1
    assert endless.state_dict()["epoch"] == 3


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle_rows", [None, 50])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_resuming_anywhere_gives_the_remaining_batches(
    dataset: Dataset, rank: int, shuffle_rows: int | None, drop_last: bool
) -> None:
    settings: dict[str, Any] = {
        "rank": rank,
        "world_size": 3,
        "num_epochs": 2,
        "batch_size": 11,
        "shuffle_rows": shuffle_rows,
        "drop_last": drop_last,
    }
    whole = list(reader(dataset, **settings))
    assert len(whole) == 2 * len(reader(dataset, **settings))
    cuts = np.random.default_rng(rank).permutation(len(whole) + 1)[:6].tolist()
    for cut in {*cuts, 0, len(whole) // 2, len(whole)}:
        stopped = reader(dataset, **settings)
        begin = iter(stopped)
        assert_equal_batches(list(islice(begin, cut)), whole[:cut])
        state = stopped.state_dict()
        begin.close()
        resumed = reader(dataset, **settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert_equal_batches(list(resumed), whole[cut:])


def test_state_is_the_same_on_every_rank_and_plain_integers(dataset: Dataset) -> None:
    states = []
    for rank in range(3):
        share = reader(dataset, rank=rank, world_size=3, drop_last=False)
        list(islice(iter(share), 4))
        states.append(share.state_dict())
    assert states[0] == states[1] == states[2]
    assert {type(value) for value in states[0].values()} == {int}


@pytest.mark.parametrize(("old_ranks", "new_ranks"), [(2, 3), (3, 1), (1, 4)])
@pytest.mark.parametrize("cut", [1, 7])
def test_resuming_on_other_ranks_goes_on_at_a_window(
    dataset: Dataset,
    caplog: pytest.LogCaptureFixture,
    old_ranks: int,
    new_ranks: int,
    cut: int,
) -> None:
    old = [reader(dataset, rank=r, world_size=old_ranks, batch_size=8) for r in range(old_ranks)]
    seen = list(chain.from_iterable(flat(islice(iter(share), cut)) for share in old))
    new = [
        reader(dataset, rank=r, world_size=new_ranks, batch_size=2, num_epochs=2)
        for r in range(new_ranks)
    ]
    rest = []
    for share in new:
        share.load_state_dict(old[0].state_dict())
        rest.append(rows_of(share))
    assert len({len(batches) for batches in rest}) == 1
    all_rows = list(chain.from_iterable(chain.from_iterable(rest)))
    left = len(all_rows) - new_ranks * 2 * len(new[0])  # before the whole second epoch
    first_epoch = list(
        chain.from_iterable(
            chain.from_iterable(batches[: left // (new_ranks * 2)]) for batches in rest
        )
    )
    assert len(set(first_epoch)) == len(first_epoch)
    unseen = set(range(ROWS.start, ROWS.stop)) - set(seen)
    assert len(unseen - set(first_epoch)) < 2 * new_ranks  # what drop_last drops
    again = len(set(seen) & set(first_epoch))
    assert again < 80 * 2
    told = int(caplog.records[0].getMessage().split(" rows of it")[0].split()[-1])
    assert 0 <= told - again < 2 * new_ranks


def test_states_of_another_order_are_refused(dataset: Dataset) -> None:
    state = reader(dataset).state_dict()
    with pytest.raises(ValueError, match="the state has seed=5, this reader 6"):
        reader(dataset, seed=6).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has shuffle_rows=80, this reader 0"):
        reader(dataset, shuffle_rows=None).load_state_dict(state)


BAD_ARGUMENTS = [
    ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 to 1"),
    ({"shuffle_rows": 0}, "shuffle_rows is 0, expected at least 1"),
    ({"seed": -1}, "seed is -1, expected at least 0"),
    ({"rows": RowRange(0, 0)}, "0 rows on 1 ranks do not fill one batch of 16"),
    ({"batch_size": 500}, "384 rows on 1 ranks do not fill one batch of 500"),
    (
        {"rows": RowRange(0, 3), "world_size": 4, "drop_last": False},
        "3 rows on 4 ranks leave a rank without any",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(dataset: Dataset, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader(dataset, **changes)


def test_errors_of_the_data_reach_the_consumer(make_log: Callable[..., Any]) -> None:
    log = make_log()
    log.put("love", 380, float("nan"))
    batches = iter(reader(log.write().open(), shuffle_rows=None))
    assert len(rows_of(islice(batches, 20))) == 20
    with pytest.raises(DataError, match=r"part-00002.parquet: column 'love': .*nan in row 80"):
        list(batches)


def reader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(("background", "decode"))]


def test_closing_the_iterator_ends_the_threads(dataset: Dataset) -> None:
    batches = iter(reader(dataset, num_epochs=None, prefetch_batches=1))
    next(batches)
    assert reader_threads()
    batches.close()
    assert not reader_threads()


def test_running_out_ends_the_threads(dataset: Dataset) -> None:
    list(reader(dataset))
    assert not reader_threads()


def test_a_rank_reads_only_its_row_groups(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    original = ParquetPart.read

    def record(self: ParquetPart, columns: Any, row_groups: Any = None) -> Any:
        read.extend((self.path.name, group) for group in row_groups)
        return original(self, columns, row_groups)

    monkeypatch.setattr(ParquetPart, "read", record)
    whole = RowRange(
        0, 400
    )  # row groups of 40 in parts of 150: 40 40 40 30 | 40 40 40 30 | 40 40 20
    list(reader(dataset, rows=whole, rank=1, world_size=2, shuffle_rows=None, drop_last=False))
    assert read == [
        *(("part-00001.parquet", group) for group in (1, 2, 3)),
        *(("part-00002.parquet", group) for group in (0, 1, 2)),
    ]
