import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from trainer.data import csv_chunks
from trainer.data.criteo import (
    COLUMNS,
    COUNTS,
    HASHED,
    IDS,
    ITEM,
    MISSING_COUNT,
    SCHEMA_CRITEO,
    write_criteo,
)
from trainer.data.dataset import Dataset
from trainer.data.schema import GlobalTimeSplit
from trainer.data.text_ids import MISSING
from trainer.modules.target_attention import FeedbackSum, TargetAttention

NUM_ROWS = 300


def made_rows():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(NUM_ROWS):
        counts = [str(rng.integers(-3, 900)) if rng.random() < 0.8 else "" for _ in COUNTS]
        ids = [f"{rng.integers(0, 7):08x}" if rng.random() < 0.9 else "" for _ in IDS]
        rows.append([str(int(rng.random() < 0.25)), *counts, *ids])
    return rows


def write_rows(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def rows():
    return made_rows()


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("criteo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_chunks, "BLOCK_BYTES", 8192)
        write_criteo(write_rows(folder / "train.txt", rows), folder / "log")
    return folder / "log"


def test_the_log_keeps_its_contract_and_the_order_of_the_file(folder):
    dataset = Dataset.open(folder, SCHEMA_CRITEO)
    dataset.validate()
    parts = dataset.split(GlobalTimeSplit())
    assert (parts.train.stop, parts.valid.stop) == (240, 270)
    assert (len(SCHEMA_CRITEO.pooled_features) + 1, len(SCHEMA_CRITEO.dense_features)) == (26, 13)


def test_columns_hold_what_the_file_says(folder, rows):
    log = pq.read_table(folder / "interactions").to_pydict()
    items = pq.read_table(folder / "items.parquet")["source_id"].to_pylist()
    texts = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    assert log["click"] == [int(text) for text in texts["label"]]
    for name in COUNTS:
        assert log[name] == [float(text) if text else MISSING_COUNT for text in texts[name]]
    for name in IDS:
        if name == ITEM:
            assert [items[item] for item in log["item_id"]] == list(texts[name])
        elif name in HASHED:
            assert log[name] == [int(text, 16) if text else MISSING for text in texts[name]]
        else:
            pairs = set(zip(texts[name], log[name], strict=True))
            fits = len(set(texts[name])) < next(
                f.cardinality for f in SCHEMA_CRITEO.pooled_features if f.name == name
            )
            assert not fits or len(pairs) == len(set(texts[name])), name


def test_history_modules_are_at_rest_where_no_row_has_a_history():
    nothing = torch.zeros(0, dtype=torch.int64)
    past = (torch.tensor([0, 1]), nothing, nothing, torch.zeros(3, dtype=torch.int64))
    items = torch.randn(2, 4, requires_grad=True)
    for module, width in ((TargetAttention(4, num_kinds=1), 4), (FeedbackSum(4, num_kinds=1), 8)):
        out = module(items, *past)
        assert out.shape == (2, width)
        assert not out.any()
        out.sum().backward()


def test_lines_without_label_are_refused(rows, tmp_path):
    path = write_rows(tmp_path / "test.txt", [row[1:] for row in rows])
    with pytest.raises(ValueError, match=r"test\.txt: expected Criteo's train\.txt with 40 col"):
        write_criteo(path, tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, "3", "'label': expected 0 or 1, found '3'"),
        (2, "many", "'I2': expected numbers.*many"),
        (16, "blue", "'C3': expected 8 hexadecimal digits, found 'blue'"),
    ],
)
def test_values_of_another_form_are_named(at, value, message, rows, tmp_path):
    wrong = list(rows[1])
    wrong[at] = value
    path = write_rows(tmp_path / "train.txt", [rows[0], wrong])
    with pytest.raises(ValueError, match=message):
        write_criteo(path, tmp_path / "log")
