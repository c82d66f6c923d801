import gzip

import pytest

from trainer.data import csv_chunks
from trainer.data.csv_chunks import CsvFile

NAMES = ("a", "b")


def csv_file(path, text, **changes):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    settings = {"columns": NAMES, "delimiter": ",", "header": True, "what": "the test's file"}
    return CsvFile(path=path, **(settings | changes))


@pytest.mark.parametrize("name", ["rows.csv", "rows.gz"])
def test_blocks_hold_all_rows_as_text(name, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_chunks, "BLOCK_BYTES", 64)
    rows = [{"a": f"0{at}", "b": "" if at % 3 else "x"} for at in range(50)]
    text = "a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows)
    file = csv_file(tmp_path / name, text)
    chunks = list(file.chunks())
    assert len(chunks) > 3
    assert [row for chunk in chunks for row in chunk.to_pylist()] == rows
    first = csv_file(tmp_path / name, text, max_rows=17)
    assert [row for chunk in first.chunks() for row in chunk.to_pylist()] == rows[:17]


def test_other_columns_are_named(tmp_path):
    file = csv_file(tmp_path / "rows.csv", "a,c\n1,2\n")
    with pytest.raises(ValueError, match=r"the test's file.*missing: b, unknown: c"):
        list(file.chunks())
    file = csv_file(tmp_path / "rows.csv", "b,a\n1,2\n")
    with pytest.raises(ValueError, match=r"missing: none, unknown: none, order: b, a"):
        list(file.chunks())


@pytest.mark.parametrize("text", ["1,2\n3\n", "1,2,3\n", ""])
def test_lines_of_other_lengths_and_empty_files_are_named(text, tmp_path):
    file = csv_file(tmp_path / "rows.csv", text, header=False)
    with pytest.raises(ValueError, match=r"rows\.csv: expected the test's file with 2 columns"):
        list(file.chunks())


def test_a_truncated_archive_is_named(tmp_path):
    text = "a,b\n" + "".join(f"{hash(str(at))},{at}\n" for at in range(5_000))
    file = csv_file(tmp_path / "rows.gz", text)
    file.path.write_bytes(file.path.read_bytes()[:-2_000])
    with pytest.raises(ValueError, match=r"rows\.gz: expected the test's file.*[Tt]runcated"):
        list(file.chunks())


def test_missing_files_and_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file; expected the test's file"):
        CsvFile(
            path=tmp_path / "none",
            columns=NAMES,
            delimiter=",",
            header=True,
            what="the test's file",
        )
    with pytest.raises(ValueError, match="max_rows is 0"):
        csv_file(tmp_path / "rows.csv", "a,b\n", max_rows=0)
