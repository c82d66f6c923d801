import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.schema import RowRange
from trainer.predictions import Predictions


def test_round_trip_in_any_order(tmp_path):
    path = tmp_path / "run" / "predictions.parquet"
    saved = Predictions(
        rows=np.array([12, 10, 11]),
        scores={"like": np.array([0.3, 0.1, 0.2]), "love": np.array([0.6, 0.4, 0.5])},
    )
    saved.save(path)
    saved.save(path)
    scores = Predictions.load(path).aligned(RowRange(10, 13))
    np.testing.assert_array_equal(scores["like"], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(scores["love"], [0.4, 0.5, 0.6])
    assert [file.name for file in path.parent.iterdir()] == ["predictions.parquet"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([10, 11], "1 are missing and 0"),
        ([10, 11, 11], "1 are missing and 1 stand more"),
        ([10, 11, 12, 12], "0 are missing and 1 stand more"),
        ([10, 11, 13], "row 13 lies outside rows 10 to 13"),
        ([9, 10, 11], "row 9 lies outside"),
    ],
)
def test_rows_must_be_those_of_the_split(rows, message):
    found = Predictions(rows=np.array(rows), scores={"like": np.full(len(rows), 0.5)})
    with pytest.raises(ValueError, match=message):
        found.aligned(RowRange(10, 13))


def test_wrong_records_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 rows but 1 scores of 'like'"):
        Predictions(rows=np.arange(2), scores={"like": np.ones(1)})
    with pytest.raises(ValueError, match="named 'row'"):
        Predictions(rows=np.arange(1), scores={"row": np.ones(1)})
    with pytest.raises(ValueError, match=r"missing\.parquet: expected a parquet file"):
        Predictions.load(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: expected a parquet file"):
        Predictions.load(tmp_path / "text.parquet")
    pq.write_table(pa.table({"like": [0.5]}), tmp_path / "rowless.parquet")
    with pytest.raises(ValueError, match="column 'row', found like"):
        Predictions.load(tmp_path / "rowless.parquet")
    pq.write_table(pa.table({"row": [1], "like": ["a"]}), tmp_path / "typed.parquet")
    with pytest.raises(ValueError, match="column 'like': expected double"):
        Predictions.load(tmp_path / "typed.parquet")
