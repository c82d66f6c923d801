import numpy as np
import pyarrow as pa
import pytest

from trainer.data.log_levels import log_levels
from trainer.data.text_numbers import real_numbers, whole_numbers, zeros_and_ones


def column(*texts):
    return pa.chunked_array([pa.array(texts, pa.string())])


def test_numbers_are_read_and_absent_ones_replaced():
    assert whole_numbers(column("3", " 4", "5.0"), place="here").tolist() == [3, 4, 5]
    assert whole_numbers(column("3", "NULL", ""), place="here", absent=-1).tolist() == [3, -1, -1]
    assert real_numbers(column("0.5", "1e3"), place="here").tolist() == [0.5, 1000.0]
    assert zeros_and_ones(column("0", "1", "1"), place="here").tolist() == [0, 1, 1]
    assert len(whole_numbers(column(), place="here")) == 0


@pytest.mark.parametrize(
    ("read", "texts", "message"),
    [
        (whole_numbers, ("1", "2.5"), "a.csv, column 'b': expected whole numbers, found '2.5'"),
        (whole_numbers, ("1", ""), "a.csv, column 'b': expected a number in every row"),
        (real_numbers, ("1", "many"), "a.csv, column 'b': expected numbers.*many"),
        (real_numbers, ("1", "nan"), "a.csv, column 'b': expected finite numbers, found 'nan'"),
        (zeros_and_ones, ("1", "2"), "a.csv, column 'b': expected 0 or 1, found '2'"),
    ],
)
def test_other_values_are_named(read, texts, message):
    with pytest.raises(ValueError, match=message):
        read(column(*texts), place="a.csv, column 'b'")


def test_amounts_have_two_levels_a_doubling():
    amounts = np.array([-1.0, 0, 1, 1.9, 3, 1e9])
    assert log_levels(amounts, 32).tolist() == [0, 1, 3, 4, 5, 31]
