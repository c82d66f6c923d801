import logging
import math

import pyarrow.parquet as pq
import pytest

from tests.unit.trainer.data.naive_causal import assert_same, naive_rows
from tests.unit.trainer.data.naive_parts import in_parts
from tests.unit.trainer.data.taobao_ad_made import FIRST, NUM_ADS, NUM_ROWS, NUM_USERS, made
from trainer.data.causal import CausalConfig
from trainer.data.dataset import Dataset
from trainer.data.last_click import SPLIT_AT_LAST_CLICKS, of_last_clicks
from trainer.data.schema import GlobalTimeSplit
from trainer.data.static_features import static_dense, static_fields, without_static
from trainer.data.taobao_ad import GROUPS, KEPT, SCHEMA_TAOBAO_AD, write_taobao_ad
from trainer.data.taobao_ad_files import PROFILE_IDS


@pytest.fixture(scope="module")
def files():
    return made()


@pytest.fixture(scope="module")
def source(files, tmp_path_factory):
    return files.write(tmp_path_factory.mktemp("taobao") / "data")


@pytest.fixture(scope="module")
def by_time(source, small_pieces):
    folder = source.parent / "by_time"
    write_taobao_ad(source, folder, parts_by="time")
    return folder


@pytest.fixture(scope="module")
def rows(by_time):
    return pq.read_table(by_time / "interactions").to_pylist()


@pytest.fixture(scope="module")
def shown(files):
    """Impressions in order of time; those of one second as in the file."""
    return sorted(files.impressions, key=lambda row: int(row["time_stamp"]))


def test_the_log_keeps_its_contract(by_time):
    dataset = Dataset.open(by_time, SCHEMA_TAOBAO_AD)
    dataset.validate()
    dataset.split(GlobalTimeSplit())
    assert (dataset.num_rows, dataset.num_items) == (NUM_ROWS, NUM_ADS)


def test_rows_are_the_file_s_in_order_of_time(rows, shown):
    for row, said in zip(rows, shown, strict=True):
        assert row["user_id"] == int(said["user"])
        assert row["item_id"] == int(said["adgroup_id"])
        assert row["timestamp"] == int(said["time_stamp"])
        assert row["place"] == ["430548_1007", "430539_1007"].index(said["pid"])
        assert row["click"] == int(said["clk"])
        # The log begins on a Friday at eleven in the evening.
        hours = 23 + (row["timestamp"] - FIRST) // 3600
        assert (row["hour"], row["weekday"]) == (hours % 24, (4 + hours // 24) % 7)


def test_cross_features_are_of_the_user_s_own_past_with_category_and_brand(rows, shown, files):
    ads = {row["adgroup_id"]: row for row in files.ads}
    some = 0
    for row, said in zip(rows, shown, strict=True):
        ad = ads[said["adgroup_id"]]

        def is_before(other, row=row, said=said):
            return other["user"] == said["user"] and int(other["time_stamp"]) < row["timestamp"]

        past = [other for other in shown if is_before(other)]
        bought = [one for one in files.behaviour if one["btag"] == "buy" and is_before(one)]
        for group, in_ads, in_log in zip(
            GROUPS, ("cate_id", "brand"), ("cate", "brand"), strict=True
        ):
            value = ad[in_ads]
            same = [one for one in past if ads[one["adgroup_id"]][in_ads] == value != "NULL"]
            clicks = sum(one["clk"] == "1" for one in same)
            assert row[f"user_{group}_impressions"] == len(same)
            assert row[f"user_{group}_ctr"] == pytest.approx(clicks / max(len(same), 1))
            purchases = sum(one[in_log] == value for one in bought)
            assert row[f"user_{group}_purchases"] == purchases
            some += purchases
        clicked = [int(one["adgroup_id"]) for one in past if one["clk"] == "1"]
        assert row["history"] == clicked[-20:]
    assert some > 50


def test_causal_features_are_those_of_the_impressions(rows, shown, files):
    log = {
        "users": [int(one["user"]) for one in shown],
        "items": [int(one["adgroup_id"]) for one in shown],
        "timestamps": [int(one["time_stamp"]) for one in shown],
        "positives": [one["clk"] == "1" for one in shown],
    }
    no_genres = {int(ad["adgroup_id"]): [] for ad in files.ads}
    expected = naive_rows(log, no_genres, CausalConfig(max_history=20))
    assert_same(rows, expected, KEPT)


def test_ads_and_users_have_what_the_small_files_say(by_time, files, shown):
    said = {int(row["adgroup_id"]): row for row in files.ads}
    for ad in pq.read_table(by_time / "items.parquet").to_pylist():
        own = said[ad["item_id"]]
        for name in ("cate_id", "campaign_id", "customer"):
            assert ad[name] == int(own[name])
        assert ad["brand"] == (-1 if own["brand"] == "NULL" else int(own["brand"]))
        assert ad["price"] == float(own["price"])
        assert ad["price_level"] == 1 + int(2 * math.log2(1 + ad["price"]))
        times = [int(one["time_stamp"]) for one in shown if one["adgroup_id"] == own["adgroup_id"]]
        assert ad["created_at"] == min(times)
    users = pq.read_table(by_time / "users.parquet").to_pylist()
    profiles = {int(row["userid"]): row for row in files.profiles}
    assert len(users) == NUM_USERS
    for user in users:
        own = profiles.get(user["user_id"])
        assert user["has_profile"] == (own is not None)
        assert user["pvalue_level"] == (0 if own is None or user["user_id"] % 2 else 3)
        for name in set(PROFILE_IDS) - {"pvalue_level"}:
            said_of = name + " " * (name == "new_user_class_level")  # as the file's header has it
            assert user[name] == (0 if own is None else int(own[said_of]) + 1)


def test_last_clicks_are_the_test_and_nothing_else_changes(source, rows, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_taobao_ad(source, tmp_path / "log")
    assert "400 rows, published are 26,557,961" in caplog.text
    dataset = Dataset.open(tmp_path / "log", of_last_clicks(SCHEMA_TAOBAO_AD))
    dataset.validate()
    test = dataset.split(SPLIT_AT_LAST_CLICKS).test
    found = pq.read_table(tmp_path / "log" / "interactions").to_pylist()
    assert found == in_parts(rows, "click")
    read = dataset.read(test, ["user_id", "click"])
    clickers = {row["user_id"] for row in rows if row["click"]}
    assert sorted(read["user_id"][read["click"] == 1].tolist()) == sorted(clickers)


def test_roles_are_those_of_dig_s_table_1():
    names = [field.name for field in static_fields(SCHEMA_TAOBAO_AD)]
    assert names == ["cate_id", "brand", "customer", "price_level"]
    assert static_dense(SCHEMA_TAOBAO_AD) == ()
    rest = without_static(SCHEMA_TAOBAO_AD).features
    assert len([feature for feature in rest if feature.entity == "cross"]) == 6


FILES = {"raw_sample": "clk", "ad_feature": "price", "user_profile": "age_level"}
FILES |= {"behavior_log": "btag"}


@pytest.mark.parametrize("name", FILES)
def test_missing_files_and_columns_are_named(name, files, tmp_path):
    source = files.write(tmp_path / "data")
    path = source / f"{name}.csv"
    header, *lines = path.read_text().splitlines()
    words = ["other" if word == FILES[name] else word for word in header.split(",")]
    path.write_text("\n".join([",".join(words), *lines]) + "\n")
    with pytest.raises(ValueError, match=rf"{name}\.csv.*missing: {FILES[name]}"):
        write_taobao_ad(source, tmp_path / "log")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}\.csv: no such file; expected Taobao's {name}"):
        write_taobao_ad(source, tmp_path / "log")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_named(name, files, tmp_path):
    source = files.write(tmp_path / "data")
    path = source / f"{name}.csv"
    text = path.read_text()
    path.write_text(text[: text.rindex(",")])
    with pytest.raises(ValueError, match=rf"{name}\.csv: expected Taobao's.*but: "):
        write_taobao_ad(source, tmp_path / "log")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("part", "column", "value", "message"),
    [
        ("impressions", "clk", "2", r"raw_sample.csv, column 'clk': expected 0 or 1, found '2'"),
        ("impressions", "pid", "7", r"column 'pid': expected 430548_1007 or .*, found '7'"),
        (
            "impressions",
            "adgroup_id",
            "5",
            r"'adgroup_id': expected ads of ad_feature.csv, found 5",
        ),
        ("impressions", "time_stamp", "May", r"raw_sample.csv, column 'time_stamp'.*May"),
        ("behaviour", "btag", "sell", r"'btag': expected pv, cart, fav, buy, found 'sell'"),
        ("ads", "price", "", r"ad_feature.csv, column 'price': expected a number in every row"),
        ("ads", "adgroup_id", "900", r"'adgroup_id': expected each id once, found 900 twice"),
        ("profiles", "age_level", "12", r"'age_level': expected 0 to 6 or nothing, found 1 to 12"),
    ],
)
def test_other_values_are_named(part, column, value, message, tmp_path):
    files = made()
    at = 5 if files.ads[5]["adgroup_id"] != "900" else 6
    getattr(files, part)[at][column] = value
    with pytest.raises(ValueError, match=message):
        write_taobao_ad(files.write(tmp_path / "data"), tmp_path / "log")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_the_first_rows_alone(source, tmp_path):
    manifest = write_taobao_ad(source, tmp_path / "log", parts_by="time", max_rows=60)
    assert (manifest.num_rows, manifest.source["rows"]) == (60, "first 60")
    Dataset.open(tmp_path / "log", SCHEMA_TAOBAO_AD).validate()
