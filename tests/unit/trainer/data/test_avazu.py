import gzip
from collections import Counter, defaultdict
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer.data import csv_chunks
from trainer.data.avazu import COLUMNS, NO_DEVICE, SCHEMA_AVAZU, write_avazu
from trainer.data.dataset import Dataset
from trainer.data.schema import GlobalTimeSplit

NUM_ROWS = 400
PLAIN = [name for name in COLUMNS if name[0] == "C"] + ["banner_pos"]


def made_rows():
    """Rows as the file has them: text, hours that never fall, most devices without an id."""
    rng = np.random.default_rng(0)
    none = f"{NO_DEVICE:08x}"
    rows = []
    for at in range(NUM_ROWS):
        row = {name: str(rng.integers(0, 5)) for name in COLUMNS}
        row |= {
            name: f"{rng.integers(0, size):08x}"
            for name, size in {
                "site_id": 12,
                "site_domain": 9,
                "site_category": 4,
                "app_id": 9,
                "app_domain": 5,
                "app_category": 4,
                "device_model": 3,
                "device_ip": 6,
            }.items()
        }
        row["device_id"] = none if rng.random() < 0.8 else f"{rng.integers(0, 4):08x}"
        row["id"] = str(10**18 + at)
        row["click"] = str(int(rng.random() < 0.3))
        row["hour"] = f"141021{at // 40:02d}"
        rows.append(row)
    return rows


def text_of(rows, names=COLUMNS):
    lines = [",".join(row[name] for name in names) for row in rows]
    return "\n".join([",".join(names), *lines]) + "\n"


@pytest.fixture(scope="module")
def rows():
    return made_rows()


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("avazu")
    (folder / "train.gz").write_bytes(gzip.compress(text_of(rows).encode()))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_chunks, "BLOCK_BYTES", 4096)
        manifest = write_avazu(
            folder / "train.gz", folder / "log", progress=lambda *at: seen.append(at)
        )
    assert len(seen) > 5
    assert seen[-1] == (NUM_ROWS, NUM_ROWS)
    return folder / "log", manifest


def test_the_log_keeps_its_contract(written, rows):
    folder, manifest = written
    assert manifest.num_rows == NUM_ROWS
    assert manifest.num_items == len({row["site_id"] for row in rows})
    assert manifest.positives["click"] == sum(row["click"] == "1" for row in rows)
    dataset = Dataset.open(folder, SCHEMA_AVAZU)
    dataset.validate()
    parts = dataset.split(GlobalTimeSplit())
    times = dataset.read(parts.test, ["timestamp"])["timestamp"]
    assert times.min() == datetime(2014, 10, 21, 8, tzinfo=UTC).timestamp() + 3600
    assert len(SCHEMA_AVAZU.features) + 1 == 23


def test_columns_hold_what_the_file_says(written, rows):
    folder, _ = written
    log = pq.read_table(folder / "interactions").to_pydict()
    sites = pq.read_table(folder / "items.parquet").to_pydict()
    by_count = Counter(row["site_id"] for row in rows)
    assert sites["source_id"] == sorted(by_count, key=lambda site: (-by_count[site], site))
    for at, row in enumerate(rows):
        assert sites["source_id"][log["item_id"][at]] == row["site_id"]
        time = datetime.fromtimestamp(log["timestamp"][at], tz=UTC)
        assert time.strftime("%y%m%d%H") == row["hour"]
        assert (log["hour"][at], log["weekday"][at]) == (time.hour, time.weekday())
        assert log["device_ip"][at] == int(row["device_ip"], 16)
        assert log["click"][at] == int(row["click"])
    for name in PLAIN:
        pairs = {(row[name], log[name][at]) for at, row in enumerate(rows)}
        assert len(pairs) == len({row[name] for row in rows}), name
        assert 0 not in log[name]
    first = {}
    for at, row in enumerate(rows):
        first.setdefault(row["site_id"], log["timestamp"][at])
    assert dict(zip(sites["source_id"], sites["created_at"], strict=True)) == first


def test_users_are_devices_or_address_and_model_and_histories_their_past(written, rows):
    folder, _ = written
    log = pq.read_table(folder / "interactions").to_pydict()
    sites = pq.read_table(folder / "items.parquet")["source_id"].to_pylist()
    keys = [
        (row["device_id"],)
        if row["device_id"] != f"{NO_DEVICE:08x}"
        else (row["device_ip"], row["device_model"])
        for row in rows
    ]
    pairs = set(zip(keys, log["user_id"], strict=True))
    assert len(pairs) == len(set(keys)) == len(set(log["user_id"]))
    past = defaultdict(list)
    for at, row in enumerate(rows):
        before = [(site, click) for hour, site, click in past[keys[at]] if hour < row["hour"]]
        # The last ten of any kind that were not clicked, the last ten clicks.
        clicked = [site for site, click in before if click == "1"][-10:]
        rest = [site for site, click in before[-10:] if click == "0"]
        assert [sites[item] for item in log["history"][at]] == clicked
        assert [sites[item] for item in log["history_rest"][at]] == rest
        past[keys[at]].append((row["hour"], row["site_id"], row["click"]))


def test_the_first_rows_alone(rows, tmp_path):
    (tmp_path / "train").write_text(text_of(rows))
    manifest = write_avazu(tmp_path / "train", tmp_path / "log", max_rows=90)
    assert manifest.num_rows == 90
    assert manifest.source == {"file": "train", "rows": "first 90"}


def test_the_test_file_is_refused_for_its_missing_label(rows, tmp_path):
    names = [name for name in COLUMNS if name != "click"]
    (tmp_path / "test.csv").write_text(text_of(rows, names))
    with pytest.raises(ValueError, match=r"test\.csv: expected Avazu's train\.gz.*missing: click"):
        write_avazu(tmp_path / "test.csv", tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hour", "2014-10", "column 'hour': expected YYMMDDHH, found '2014-10'"),
        ("click", "2", "column 'click': expected 0 or 1, found '2'"),
        ("device_ip", "1.2.3.4", "'device_ip': expected 8 hexadecimal digits, found '1.2.3.4'"),
    ],
)
def test_values_of_another_form_are_named(name, value, message, rows, tmp_path):
    (tmp_path / "train").write_text(text_of([rows[0], rows[1] | {name: value}]))
    with pytest.raises(ValueError, match=message):
        write_avazu(tmp_path / "train", tmp_path / "log")
