import numpy as np
import pyarrow as pa
import pytest

from trainer.data.text_ids import MISSING, TextIds, hex_ids


def column(*values):
    return pa.chunked_array([pa.array(values, pa.string())])


def test_ids_follow_frequency_and_the_rare_share_zero():
    ids = TextIds(max_ids=3)
    ids.count(column("b", "a", "c"))
    ids.count(column("c", "c", "b"))
    ids.finish()
    assert ids.values.to_pylist() == ["c", "b"]
    assert ids.encode(column("a", "b", "c", "new")).tolist() == [0, 2, 1, 0]


def test_without_limit_every_value_has_an_id_from_zero():
    ids = TextIds()
    ids.count(column("b", "", "b", "a"))
    ids.finish()
    assert ids.values.to_pylist() == ["b", "", "a"]
    assert ids.encode(column("a", "b", "")).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="'new' was not there when values were counted"):
        ids.encode(column("a", "new"))


def test_hex_ids_are_the_numbers_that_digits_say():
    values = ["00000000", "000000ff", "DEADbeef", "ffffffff", ""]
    expected = [int(value, 16) for value in values[:-1]] + [MISSING]
    found = hex_ids(column(*values), name="C1")
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("wrong", ["0000000g", "ff", "123456789", "é0000000"])
def test_other_text_is_named(wrong):
    with pytest.raises(ValueError, match=f"'C1': expected 8 hexadecimal digits, found '{wrong}'"):
        hex_ids(column("00000000", wrong), name="C1")
