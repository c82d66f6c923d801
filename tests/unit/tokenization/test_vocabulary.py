from __future__ import annotations

import numpy as np
import pytest

from tokenization.vocabulary import gen_code, gen_row


def test_rows_and_back():
    codes = np.random.default_rng(0).integers(0, 7, size=(50, 3)).astype(np.int32)
    rows = gen_row(codes, 7)
    expected = [[level * 7 + int(c) for level, c in enumerate(item)] for item in codes]
    assert rows.tolist() == expected
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(gen_code(rows, 7), codes)


@pytest.mark.parametrize("code", [-1, 7])
def test_a_code_of_another_level_is_refused(code):
    with pytest.raises(ValueError, match=r"codes: expected values in \[0, 7\)"):
        gen_row(np.array([[0, code]]), 7)
    with pytest.raises(ValueError, match="rows of level l"):
        gen_code(np.array([[0, 7 + code]]), 7)
