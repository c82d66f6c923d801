from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization.alignment import Alignment
from tokenization.item_features import MIN_ITEMS, read_features, standard
from tokenization.pairs import Pairs
from tokenization.spectral import spectral_map, spectral_vectors


def cliques(num_items=90, num_groups=3):
    """Everyone of a group belongs together with everyone of it."""
    group = np.arange(num_items) % num_groups
    left, right = np.triu_indices(num_items, 1)
    same = group[left] == group[right]
    return group, np.stack([left[same], right[same]], axis=1)


def test_free_content_is_mapped_to_the_leading_eigenvectors():
    """With a dimension for each item nothing is lost but what centring takes."""
    _, rows = cliques(12)
    scores = np.random.default_rng(0).uniform(0.5, 1.5, len(rows))
    matrix = np.zeros((12, 12))
    matrix[rows[:, 0], rows[:, 1]] = matrix[rows[:, 1], rows[:, 0]] = scores
    content = np.eye(12, dtype=np.float32) - np.float32(1 / 12)
    found = content @ spectral_map(content, rows, scores, out_dim=3, ridge=1e-9).T
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors[:, -3:] * np.sqrt(values[-3:] * 12)
    expected -= expected.mean(axis=0)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-2)
    wide = spectral_map(content, rows, scores, out_dim=40, ridge=1.0)
    assert wide.shape == (40, 12)
    assert (wide[11:] == 0).all()


def test_free_vectors_multiply_to_the_scores():
    _, rows = cliques(12)
    scores = np.ones(len(rows))
    found = spectral_vectors(rows, scores, size=12, out_dim=20)
    matrix = np.zeros((12, 12))
    matrix[rows[:, 0], rows[:, 1]] = matrix[rows[:, 1], rows[:, 0]] = scores
    values, vectors = np.linalg.eigh(matrix)
    expected = (vectors * values.clip(min=0)) @ vectors.T * 12
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-6)
    np.testing.assert_array_equal(found, spectral_vectors(rows, scores, size=12, out_dim=20))


def test_items_without_pairs_come_near_their_kind_without_an_epoch():
    group, _ = cliques()
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(3, 4))
    content = np.concatenate([codes[group], 2 * rng.normal(size=(90, 12))], axis=1)
    content = content.astype(np.float32)
    known = np.arange(90) < 60
    _, rows = cliques(60)
    pairs = Pairs(
        left=rows[:, 0], right=rows[:, 1], count=np.ones(len(rows), int), score=np.ones(len(rows))
    )
    config = Alignment(heads=("spectral",), out_dim=4)
    aligned = config.fit(np.arange(90), content, pairs).encode(content)

    def share(embeddings):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        nearest = np.argsort(-(unit[~known] @ unit[known].T), axis=1)[:, :5]
        return (group[nearest] == group[~known][:, None]).mean()

    assert share(content) < 0.6
    assert share(aligned) > 0.8
    both = Alignment(heads=("spectral", "contrastive"), out_dim=4, hidden=8, num_epochs=1)
    side_by_side = both.fit(np.arange(90), content, pairs).encode(content)
    np.testing.assert_allclose(side_by_side[:, :4] * 2**0.5, aligned, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(side_by_side, axis=1), 1.0, rtol=1e-5)
    for wrong in ({"ridge": 0.0}, {"heads": ()}, {"heads": ("deep",)}):
        with pytest.raises(ValueError, match="heads and ridge"):
            Alignment(**wrong)


@pytest.fixture
def items(tmp_path):
    table = pa.table(
        {
            "item_id": np.arange(60),
            "year": np.arange(60) % 30 + 1970,
            "genres": [[n % 2, 2] if n % 3 else [n % 2] for n in range(60)],
            "maker": ["a" if n < 50 else "b" for n in range(60)],
            "flag": pa.array([True] * 60),
            "name": [str(n) for n in range(60)],
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def test_columns_are_encoded_and_crossed(items):
    ids = np.array([7, 59, -1, 0])
    features = read_features(items, ("genres", "maker"), ids)
    genres = np.zeros((60, 3))
    for n in range(60):
        genres[n, n % 2] = 1
        genres[n, 2] = n % 3 > 0
    maker = np.stack([np.arange(60) < 50, np.arange(60) >= 50], axis=1).astype(float)
    crossed = [genres[:, [g]] * maker[:, [m]] for g in range(3) for m in range(2)]
    crossed += [genres[:, [g]] * genres[:, [h]] for g, h in ((0, 1), (0, 2), (1, 2))]
    products = np.concatenate([c for c in crossed if c.sum() >= MIN_ITEMS], axis=1)
    expected = np.concatenate([standard(b) for b in (genres, maker, products)], axis=1)
    assert features.shape[1] == expected.shape[1]
    # Categories are numbered as they occur, so compare what does not depend on the order.
    np.testing.assert_allclose(
        features[[0, 1, 3]] @ features[[0, 1, 3]].T,
        expected[[7, 59, 0]] @ expected[[7, 59, 0]].T,
        rtol=1e-4,
    )
    assert (features[2] == 0).all()  # not in the file
    years = read_features(items, ("year",), np.arange(60))
    np.testing.assert_array_equal(years[0], years[30])
    near, far = np.linalg.norm(years[0] - years[1]), np.linalg.norm(years[0] - years[15])
    assert near < far / 2


def test_columns_that_can_t_be_encoded(items, monkeypatch):
    with pytest.raises(ValueError, match="expected column 'price', found item_id"):
        read_features(items, ("price",), np.arange(3))
    with pytest.raises(ValueError, match="column flag: expected numbers, strings or lists"):
        read_features(items, ("flag",), np.arange(3))
    monkeypatch.setattr("tokenization.item_features.MAX_CATEGORIES", 20)
    with pytest.raises(ValueError, match="column name: expected at most 20 categories, found 60"):
        read_features(items, ("name",), np.arange(3))
