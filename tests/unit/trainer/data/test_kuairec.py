import ast
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.trainer.data.kuairec_made import FIRST, NUM_VIDEOS, made
from tests.unit.trainer.data.naive_causal import assert_same, naive_rows
from tests.unit.trainer.data.naive_parts import in_parts
from trainer.data.dataset import Dataset
from trainer.data.kuairec import KEPT, SCHEMAS_KUAIREC, write_kuairec
from trainer.data.kuairec_files import USER_IDS, USER_NUMBERS
from trainer.data.last_click import SPLIT_AT_LAST_CLICKS, of_last_clicks
from trainer.data.schema import GlobalTimeSplit
from trainer.data.static_features import static_dense, static_fields, without_static


@pytest.fixture(scope="module")
def files():
    return made()


@pytest.fixture(scope="module")
def source(files, tmp_path_factory):
    return files.write(tmp_path_factory.mktemp("kuairec") / "data")


@pytest.fixture(scope="module")
def by_time(source, small_pieces):
    folder = source.parent / "by_time"
    seen = []
    write_kuairec(source, folder, parts_by="time", progress=lambda *at: seen.append(at))
    assert len(seen) > 5
    assert seen[-1][0] == seen[-1][1]
    return folder


@pytest.fixture(scope="module")
def rows(by_time):
    return pq.read_table(by_time / "interactions").to_pylist()


@pytest.fixture(scope="module")
def views(files):
    """Views with a time, in order of time; those of one second as in the file."""
    kept = [row for row in files.matrix if row["timestamp"]]
    return sorted(kept, key=lambda row: int(float(row["timestamp"])))


def test_the_log_keeps_its_contract(by_time, files, views):
    schema = SCHEMAS_KUAIREC["big"]
    dataset = Dataset.open(by_time, schema)
    dataset.validate()
    dataset.split(GlobalTimeSplit())
    assert dataset.num_rows == len(views) < len(files.matrix)
    assert dataset.num_items == NUM_VIDEOS


def test_rows_are_the_file_s_in_order_of_time(rows, views):
    for row, view in zip(rows, views, strict=True):
        ratio = float(view["watch_ratio"])
        assert row["user_id"] == int(view["user_id"])
        assert row["item_id"] == int(view["video_id"])
        assert row["timestamp"] == int(float(view["timestamp"]))
        assert row["watched"] == (ratio >= 0.7)
        assert row["watch_ratio"] == np.float32(ratio)
        # The first second of the log is midnight in Beijing, of a Sunday.
        hours = (row["timestamp"] - FIRST) // 3600
        assert (row["hour"], row["weekday"]) == (hours % 24, (6 + hours // 24) % 7)


def test_statistics_are_of_what_was_before(rows, views, files):
    tags = {row["video_id"]: set(ast.literal_eval(row["feat"])) for row in files.categories}
    for at, (row, view) in enumerate(zip(rows, views, strict=True)):
        past = [
            other
            for other, when in zip(views[:at], rows[:at], strict=True)
            if when["timestamp"] < row["timestamp"] and other["user_id"] == view["user_id"]
        ]
        ratios = [min(float(other["watch_ratio"]), 5) for other in past]
        mean = sum(ratios) / max(len(ratios), 1)
        assert row["user_watch_ratio"] == pytest.approx(mean, abs=1e-6)
        shared = [len(tags[other["video_id"]] & tags[view["video_id"]]) for other in past]
        weighed = sum(n * ratio for n, ratio in zip(shared, ratios, strict=True))
        assert row["user_category_count"] == sum(shared)
        expected = weighed / max(sum(shared), 1)
        assert row["user_category_watch_ratio"] == pytest.approx(expected, abs=1e-6)
        liked = [other for other in past if float(other["watch_ratio"]) >= 0.7]
        assert row["history"] == [int(other["video_id"]) for other in liked[-50:]]
        days = [
            day
            for day in files.daily
            if day["video_id"] == view["video_id"]
            and int(day["date"]) < 20200705 + (row["timestamp"] - FIRST) // 86_400
        ]
        plays = sum(int(day["play_cnt"]) for day in days)
        rate = sum(int(day["like_cnt"]) for day in days) / max(plays, 1)
        assert row["item_like_rate"] == pytest.approx(rate, abs=1e-6)


def test_causal_features_are_those_of_the_views(rows, views, files):
    log = {
        "users": [int(view["user_id"]) for view in views],
        "items": [int(view["video_id"]) for view in views],
        "timestamps": [int(float(view["timestamp"])) for view in views],
        "positives": [float(view["watch_ratio"]) >= 0.7 for view in views],
    }
    tags = {int(row["video_id"]): ast.literal_eval(row["feat"]) for row in files.categories}
    assert_same(
        [{**row, "user_genre_mean": row["user_category_mean"]} for row in rows],
        naive_rows(log, tags),
        (*KEPT, "user_genre_mean"),
    )


def test_videos_and_users_have_what_the_small_files_say(by_time, files):
    items = pq.read_table(by_time / "items.parquet").to_pylist()
    tags = {row["video_id"]: ast.literal_eval(row["feat"]) for row in files.categories}
    for item in items:
        video = item["item_id"]
        assert item["categories"] == tags[str(video)]
        assert item["created_at"] == 1_585_497_600  # 2020-03-30 in Beijing
        assert item["duration_level"] == (0 if video == 3 else 7)
        # Captions may have several lines; the last video has none.
        last = video == NUM_VIDEOS - 1
        assert item["text"] == ("" if last else f"a cat {video} and more x Animals {video % 3}")
    pairs = {(item["item_id"] // 2, item["author_id"]) for item in items}
    assert len(pairs) == len({author for _, author in pairs}) == NUM_VIDEOS // 2
    # Of the first day, on which all videos have the same music.
    assert len({item["music_id"] for item in items}) == 1
    levels = {(item["item_id"] % 3, item["first_level_category_id"]) for item in items[:-1]}
    assert len(levels) == len({level for _, level in levels}) == 3
    assert len({item["second_level_category_id"] for item in items[:-1]}) == 1
    for name in ("first_level_category_id", "second_level_category_id"):
        assert items[-1][name] not in {item[name] for item in items[:-1]}
    users = pq.read_table(by_time / "users.parquet").to_pylist()
    for user, said in zip(users, sorted(files.users, key=lambda row: row["user_id"]), strict=True):
        assert user["user_id"] == int(said["user_id"])
        for name in USER_NUMBERS:
            assert user[name] == int(said[name])
    for name in USER_IDS:
        said = {row["user_id"]: row[name] for row in files.users}
        pairs = {(user[name], said[str(user["user_id"])]) for user in users}
        assert len(pairs) == len({number for number, _ in pairs}) == len({t for _, t in pairs})


def test_last_clicks_are_the_test_and_nothing_else_changes(source, rows, small_pieces, tmp_path):
    manifest = write_kuairec(source, tmp_path / "log")
    assert manifest.source["parts"] == "last_click"
    dataset = Dataset.open(tmp_path / "log", of_last_clicks(SCHEMAS_KUAIREC["big"]))
    dataset.validate()
    splits = dataset.split(SPLIT_AT_LAST_CLICKS)
    found = pq.read_table(tmp_path / "log" / "interactions").to_pylist()
    assert found == in_parts(rows, "watched")
    for part in (splits.valid, splits.test):
        read = dataset.read(part, ["user_id", "watched"])
        clicked = read["user_id"][read["watched"] == 1]
        # One positive a user, and impressions that were not clicked beside them.
        assert sorted(clicked.tolist()) == sorted(set(read["user_id"].tolist()))
        assert (read["watched"] == 0).any()


def test_roles_are_those_of_dig_s_table_1():
    schema = SCHEMAS_KUAIREC["big"]
    names = {field.name for field in static_fields(schema)}
    assert names == {
        *("categories", "author_id", "music_id", "duration_level"),
        *("first_level_category_id", "second_level_category_id"),
    }
    assert static_dense(schema) == ()
    rest = {feature.name: feature.entity for feature in without_static(schema).features}
    # Type III: features of user and video, and those of the video that change.
    assert {name for name, entity in rest.items() if entity in ("cross", "item")} == {
        *("user_category_count", "user_category_mean", "user_category_watch_ratio"),
        *("item_count", "item_mean", "item_like_rate"),
    }


def test_the_small_matrix_has_a_schema_and_a_catalogue_of_its_own(files, tmp_path, caplog):
    few = made()
    few.matrix = [row for row in files.matrix if int(row["video_id"]) < 5]
    source = few.write(tmp_path / "data", matrix="small")
    with caplog.at_level(logging.WARNING):
        manifest = write_kuairec(source, tmp_path / "log", matrix="small", parts_by="time")
    assert (manifest.name, manifest.num_items) == ("kuairec_small", 5)
    left_out = sum(not row["timestamp"] for row in few.matrix)
    assert manifest.facts == {"rows_without_time": left_out}
    assert f"{len(few.matrix)} rows, published are 4,676,570" in caplog.text
    Dataset.open(tmp_path / "log", SCHEMAS_KUAIREC["small"]).validate()


FILES = ["big_matrix", "user_features", "item_categories", "item_daily_features"]
FILES += ["kuairec_caption_category"]


@pytest.mark.parametrize("name", FILES)
def test_missing_files_and_columns_are_named(name, files, tmp_path):
    source = files.write(tmp_path / "data")
    path = source / f"{name}.csv"
    header, *lines = path.read_text().splitlines()
    column = {"item_categories": "feat", "user_features": "register_days"}.get(name, "video_id")
    path.write_text("\n".join([header.replace(column, "other"), *lines]) + "\n")
    with pytest.raises(ValueError, match=rf"{name}\.csv.*{column}"):
        write_kuairec(source, tmp_path / "log")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}\.csv: no such file; expected KuaiRec's {name}"):
        write_kuairec(source, tmp_path / "log")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_broken_lines_of_captions_are_skipped_and_counted(files, tmp_path, caplog):
    source = files.write(tmp_path / "data")
    path = source / "kuairec_caption_category.csv"
    # A line too short, one whose id is text, and letters of no alphabet.
    path.write_bytes(path.read_bytes() + b"3,too short\n" + b"x" + b",\xff" * 9 + b"\n")
    write_kuairec(source, tmp_path / "log")
    assert "skipped 2 broken lines" in caplog.text
    texts = pq.read_table(tmp_path / "log" / "items.parquet")["text"].to_pylist()
    assert sum(map(bool, texts)) == NUM_VIDEOS - 1


@pytest.mark.parametrize("name", FILES[:-1])
def test_truncated_files_are_named(name, files, tmp_path):
    source = files.write(tmp_path / "data")
    path = source / f"{name}.csv"
    text = path.read_text()
    # In the middle of a line.
    path.write_text(text[: text.rindex(",")])
    broken = r": expected KuaiRec's.*but: |, column 'feat': expected lists like"
    with pytest.raises(ValueError, match=rf"{name}\.csv({broken})"):
        write_kuairec(source, tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("part", "column", "value", "message"),
    [
        ("matrix", "watch_ratio", "much", r"big_matrix.csv, column 'watch_ratio'.*much"),
        ("matrix", "watch_ratio", "-1", r"column 'watch_ratio': expected 0 or more, found -1"),
        ("matrix", "user_id", "77", r"'user_id': expected ids of user_features.csv, found 77"),
        ("matrix", "video_id", "99", r"'video_id': expected ids of item_categories.csv, found 99"),
        ("categories", "feat", "[31]", r"item_categories.csv, column 'feat'.*0 to 30, found"),
        ("categories", "feat", "[cat]", r"item_categories.csv, column 'feat'.*cat"),
        ("categories", "video_id", "0", r"'video_id': expected each id once, found 0 twice"),
        ("daily", "date", "July", r"item_daily_features.csv, column 'date': expected dates.*July"),
        ("users", "register_days", "?", r"user_features.csv, column 'register_days'.*\?"),
    ],
)
def test_other_values_are_named(part, column, value, message, tmp_path):
    files = made()
    getattr(files, part)[5][column] = value
    with pytest.raises(ValueError, match=message):
        write_kuairec(files.write(tmp_path / "data"), tmp_path / "log")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_the_first_rows_alone(source, tmp_path):
    manifest = write_kuairec(source, tmp_path / "log", parts_by="time", max_rows=60)
    assert manifest.source["rows"] == "first 60"
    assert manifest.num_rows + manifest.facts.get("rows_without_time", 0) == 60
