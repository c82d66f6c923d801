import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization.co_clicks import CoClicks
from tokenization.pairs import ClickLog

IDS = np.array([70, 10, 30, 90, 50])
CONTENT = np.arange(15, dtype=np.float32).reshape(5, 3) + 1


@pytest.fixture
def log(tmp_path):
    """Items 10 and 30 are clicked together, 50 and 70 too; 90 never; 20 is not in the catalogue."""
    users = np.repeat(np.arange(6), 2)
    items = np.array([[10, 30], [50, 70]] * 2 + [[10, 20], [30, 10]]).reshape(-1)
    pq.write_table(pa.table({"user_id": users, "item_id": items}), tmp_path / "log.parquet")
    return ClickLog(path=tmp_path / "log.parquet")


def test_vectors_are_the_leading_eigenvectors_of_the_scores(log):
    config = CoClicks(dim=2, content_weight=0.25)
    made = config.beside(CONTENT, IDS, config.mine(log))
    assert made.dtype == np.float32
    assert made.shape == (5, 5)
    # Clicks: 10 four times, 30 three, 20 once, 50 and 70 twice; scores are counts over their roots.
    score = np.zeros((5, 5))
    row = {item: place for place, item in enumerate(IDS)}
    score[row[10], row[30]] = score[row[30], row[10]] = 3 / np.sqrt(4 * 3)
    score[row[50], row[70]] = score[row[70], row[50]] = 2 / np.sqrt(2 * 2)
    values, vectors = np.linalg.eigh(score)
    best = vectors[:, -2:] * np.sqrt(values[-2:])
    length = np.linalg.norm(best, axis=1, keepdims=True)
    best = np.divide(best, length, out=np.zeros_like(best), where=length > 1e-9)
    np.testing.assert_allclose(made[:, :2] @ made[:, :2].T, best @ best.T, atol=1e-5)
    np.testing.assert_array_equal(made[3, :2], 0)  # nobody clicked 90
    np.testing.assert_allclose(
        made[:, 2:], 0.25 * CONTENT / np.linalg.norm(CONTENT, axis=1, keepdims=True), rtol=1e-6
    )


def test_new_items_move_no_other_items_vector(log):
    config = CoClicks(dim=3)
    pairs = config.mine(log)
    old = config.vectors(IDS, pairs)
    ids = np.array([5, 99, *IDS[::-1], 40])
    new = config.vectors(ids, pairs)
    np.testing.assert_array_equal(new[2:-1], old[::-1])
    np.testing.assert_array_equal(new[[0, 1, -1]], 0)


def test_a_log_without_pairs_of_the_catalogue_is_refused(log):
    config = CoClicks(dim=2, window=3)
    with pytest.raises(ValueError, match="no user clicked two of these items within 3 clicks"):
        config.vectors(np.array([10, 50]), config.mine(log))


@pytest.mark.parametrize("name", ["dim", "window", "content_weight"])
def test_settings_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=name):
        CoClicks(**{name: 0})
