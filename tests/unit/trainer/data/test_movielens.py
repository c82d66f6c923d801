from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.dataset import Dataset
from trainer.data.last_click import PART, SPLIT_AT_LAST_CLICKS, of_last_clicks
from trainer.data.movielens import (
    COLLM_ROWS,
    COLLM_SPLIT,
    COLLM_WINDOWS,
    MOVIELENS_1M,
    MOVIELENS_1M_COLLM,
    MOVIELENS_100K,
    write_movielens,
)
from trainer.data.movielens_files import GENRES, MovieLensFiles
from trainer.data.pypi_source import wheel_members
from trainer.data.schema import RowRange
from trainer.retrieval_task import RetrievalTask

FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    "b\tHeat (1995)\t5\t200\r\n"
    "a\tHeat (1995)\t3\t100\r\n"
    'a\t"Crossroads" (0)\t4\t200\r\n',
    "item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    "Never Seen (1950)\tNever Seen\t1950\tDrama\r\n"
    '"Crossroads" (0)\t"Crossroads"\t\tDrama\r\n'
    "Heat (1995)\tHeat\t1995\tAction Film-Noir\r\n",
    "user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n"
    "a\t17\tF\t4\t48067\r\n"
    "b\t56\tM\t10\tV3N4P\r\n",
}


@pytest.fixture
def folder(tmp_path):
    for kind, text in FILES.items():
        (tmp_path / f"toy.{kind}").write_bytes(text.encode())
    return tmp_path


def test_small_files_are_read_with_dense_ids_in_time_order(folder):
    files = MovieLensFiles.read(folder, "toy")
    assert files.users.tolist() == [0, 1, 0]
    assert files.items.tolist() == [1, 1, 0]
    assert files.timestamps.tolist() == [100, 200, 200]
    assert files.stars.tolist() == [3, 5, 4]
    assert files.item_table.to_pylist() == [
        {
            "item_id": 0,
            "created_at": 200,
            "year": 0,
            "genres": [GENRES.index("Drama")],
            "title": '"Crossroads"',
            "text": '"Crossroads" (year unknown). Genres: Drama',
            "source_id": '"Crossroads" (0)',
        },
        {
            "item_id": 1,
            "created_at": 100,
            "year": 1995 - 1919 + 1,
            "genres": [GENRES.index("Action"), GENRES.index("Film-Noir")],
            "title": "Heat",
            "text": "Heat (1995). Genres: Action, Film-Noir",
            "source_id": "Heat (1995)",
        },
    ]
    assert files.user_table.to_pylist() == [
        {
            "user_id": 0,
            "gender": 0,
            "age": 0,
            "occupation": 1,
            "zip_region": 481,
            "source_id": "a",
        },
        {
            "user_id": 1,
            "gender": 1,
            "age": 6,
            "occupation": 0,
            "zip_region": 0,
            "source_id": "b",
        },
    ]


def test_a_window_leaves_no_trace_of_ratings_outside(folder):
    files = MovieLensFiles.read(folder, "toy").within([(150, 250)])
    assert files.users.tolist() == [1, 0]
    assert files.items.tolist() == [1, 0]
    assert files.timestamps.tolist() == [200, 200]
    assert files.stars.tolist() == [5, 4]
    assert files.item_table["created_at"].to_pylist() == [200, 200]
    files = MovieLensFiles.read(folder, "toy").within([(0, 100), (300, 400)])
    assert files.items.tolist() == files.users.tolist() == [0]
    assert files.item_table.to_pylist()[0]["source_id"] == "Heat (1995)"
    assert files.item_table.to_pylist()[0]["item_id"] == 0
    assert files.user_table.to_pylist()[0]["source_id"] == "a"
    assert files.genres.values.tolist() == [GENRES.index("Action"), GENRES.index("Film-Noir")]


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("item", "Heat (1995)\tHeat", "Hot (1995)\tHeat", r"toy\.item: no row for 'Heat \(1995\)'"),
        ("user", "b\t56", "c\t56", r"toy\.user: no row for 'b'"),
        ("item", "Film-Noir", "Noir", r"genres \['Noir'\] are not among Action"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, kind, old, new, message):
    path = folder / f"toy.{kind}"
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(ValueError, match=message):
        MovieLensFiles.read(folder, "toy")


def test_a_damaged_cache_is_named(folder):
    (folder / "toy.item").unlink()
    with pytest.raises(ValueError, match=r"toy\.item: missing"):
        MovieLensFiles.read(folder, "toy")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """MovieLens-100K as written, from the cache or the package index."""
    target = tmp_path_factory.mktemp("data") / "movielens100k"
    return target, write_movielens(MOVIELENS_100K, target)


def test_movielens100k_fits_its_schema_and_keeps_every_rating(small):
    folder, manifest = small
    assert (manifest.num_rows, manifest.num_users, manifest.num_items) == (100_000, 943, 1_682)
    Dataset.open(folder, MOVIELENS_100K.schema).validate()

    log = pq.read_table(folder / "interactions").to_pydict()
    items = pq.read_table(folder / "items.parquet").to_pydict()
    users = pq.read_table(folder / "users.parquet").to_pydict()
    written = sorted(
        (users["source_id"][user], items["source_id"][item], rating, time)
        for user, item, rating, time in zip(
            log["user_id"], log["item_id"], log["rating"], log["timestamp"], strict=True
        )
    )
    source = wheel_members(MOVIELENS_100K.wheel) / "ml-100k.inter"
    lines = [line.split("\t") for line in source.read_text().splitlines()[1:]]
    assert written == sorted((u, i, int(float(r)), int(float(t))) for u, i, r, t in lines)
    assert log["like"] == [int(rating >= 4) for rating in log["rating"]]
    assert log["love"] == [int(rating == 5) for rating in log["rating"]]


def test_movielens100k_histories_hold_the_past_alone(small):
    folder, _ = small
    log = pq.read_table(
        folder / "interactions", columns=["user_id", "item_id", "timestamp", "like", "history"]
    ).to_pydict()
    liked = defaultdict(list)
    for user, item, time, like in zip(
        log["user_id"], log["item_id"], log["timestamp"], log["like"], strict=True
    ):
        if like:
            liked[user].append((time, item))
    for row in np.random.default_rng(0).integers(0, 100_000, 300):
        past = [item for time, item in liked[log["user_id"][row]] if time < log["timestamp"][row]]
        assert log["history"][row] == past[-50:]


def test_movielens100k_sessions_are_cut_at_half_an_hour(small):
    folder, _ = small
    log = pq.read_table(folder / "interactions").to_pydict()
    by_user = defaultdict(list)
    for user, time, session in zip(
        log["user_id"], log["timestamp"], log["session_id"], strict=True
    ):
        by_user[user].append((time, session))
    owners = {session: user for user, rows in by_user.items() for _, session in rows}
    for user, rows in by_user.items():
        for (earlier, before), (later, after) in pairwise(rows):
            assert (before == after) == (later - earlier <= 1_800)
        assert all(owners[session] == user for _, session in rows)


def test_last_likes_cut_the_log_without_changing_a_row(small, tmp_path):
    source = replace(MOVIELENS_100K, schema=of_last_clicks(MOVIELENS_100K.schema), last_click=True)
    write_movielens(source, tmp_path / "cut")
    dataset = Dataset.open(tmp_path / "cut", source.schema)
    dataset.validate()
    in_time = pq.read_table(small[0] / "interactions")
    rows = in_time.select(["user_id", "item_id", "timestamp", "like"]).to_pylist()

    # A user's part changes with the row after his last like but two, and his last but one.
    likes = defaultdict(list)
    for at, row in enumerate(rows):
        if row["like"]:
            likes[row["user_id"]].append(at)
    parts = []
    for at, row in enumerate(rows):
        later = sum(other >= at for other in likes.get(row["user_id"], [])[-3:])
        parts.append(3 - max(later, 1) if row["user_id"] in likes else 0)
    in_order = in_time.append_column(PART, pa.array(parts)).take(np.argsort(parts, kind="stable"))
    assert pq.read_table(tmp_path / "cut" / "interactions").equals(in_order)

    splits = dataset.split(SPLIT_AT_LAST_CLICKS)
    task = RetrievalTask.of_log(dataset, splits)
    ids = dataset.item_ids
    liked = {user: [rows[at] for at in of_user] for user, of_user in likes.items()}
    assert len(task.test) == len(liked) == 942
    for number, user in enumerate(task.test.user.tolist()):
        last = liked[user][-1]
        past = [row["item_id"] for row in liked[user] if row["timestamp"] < last["timestamp"]]
        history = task.test.history.gather(np.array([number])).values
        assert ids[task.test.target[number]] == last["item_id"]
        assert ids[history].tolist() == past[-50:]
    trained = dict(zip(task.users.tolist(), task.train.lengths.tolist(), strict=True))
    assert trained == {user: len(own) - 2 for user, own in liked.items() if len(own) > 2}


@pytest.mark.slow
def test_movielens1m_is_complete(tmp_path):
    manifest = write_movielens(MOVIELENS_1M, tmp_path / "movielens1m")
    assert (manifest.num_rows, manifest.num_users, manifest.num_items) == (1_000_209, 6_040, 3_706)
    assert manifest.positives["like"] / manifest.num_rows == pytest.approx(0.575, abs=1e-3)
    Dataset.open(tmp_path / "movielens1m", MOVIELENS_1M.schema).validate()


@pytest.mark.slow
def test_collms_split_has_its_published_rows_and_nothing_from_before(tmp_path):
    folder = tmp_path / "collm"
    manifest = write_movielens(MOVIELENS_1M_COLLM, folder)
    assert (manifest.num_users, manifest.num_items) == (838, 3_255)
    dataset = Dataset.open(folder, MOVIELENS_1M_COLLM.schema)
    dataset.validate()
    parts = dataset.split(COLLM_SPLIT)
    assert tuple(map(len, (parts.train, parts.valid, parts.test))) == COLLM_ROWS
    assert COLLM_ROWS == (33_891, 10_401, 7_331)
    for part, (first, last) in zip(
        (parts.train, parts.valid, parts.test), COLLM_WINDOWS, strict=True
    ):
        found = dataset.read(part, ["timestamp", "rating", "like"])
        assert (found["timestamp"].min(), found["timestamp"].max()) == (first, last)
        assert np.array_equal(found["like"], found["rating"] > 3)
    start = dataset.read(RowRange(0, 1), ["user_count", "item_count"])
    assert start["user_count"] == start["item_count"] == 0
