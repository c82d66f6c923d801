from __future__ import annotations

import itertools

import numpy as np
import pytest

from tokenization import residual
from tokenization.base import check_embeddings
from tokenization.kmeans import fit_kmeans
from tokenization.rq_kmeans import RQKMeans


def points(seed=0, num_items=600, dim=12):
    return np.random.default_rng(seed).normal(size=(num_items, dim)).astype(np.float32)


def naive_encode(embeddings, codebooks):
    codes = []
    for embedding in embeddings.astype(np.float64):
        left_over, item = embedding.copy(), []
        for codewords in codebooks.astype(np.float64):
            item.append(int(((codewords - left_over) ** 2).sum(axis=1).argmin()))
            left_over -= codewords[item[-1]]
        codes.append(item)
    return np.array(codes)


def test_encode_is_the_nearest_codeword_of_what_is_left_over():
    embeddings = points()
    codebooks = np.random.default_rng(1).normal(size=(3, 16, 12)).astype(np.float32)
    codes = residual.encode(embeddings, codebooks)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, naive_encode(embeddings, codebooks))


def test_blocks_change_nothing(monkeypatch):
    embeddings = points()
    codebooks = np.random.default_rng(1).normal(size=(3, 16, 12)).astype(np.float32)
    whole = residual.encode(embeddings, codebooks)
    monkeypatch.setattr(residual, "_BLOCK_VALUES", 16 * 7)
    np.testing.assert_array_equal(residual.encode(embeddings, codebooks), whole)


def test_ties_go_to_the_smallest_code():
    codewords = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    nearest = residual.nearest(np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32), codewords)
    assert nearest.tolist() == [0, 0, 1]


def test_decode_sums_the_codewords_and_takes_prefixes():
    codebooks = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    codes = np.array([[0, 3, 1], [2, 2, 2]], dtype=np.int32)
    expected = np.stack([sum(codebooks[level, c] for level, c in enumerate(row)) for row in codes])
    np.testing.assert_allclose(residual.decode(codes, codebooks), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        residual.decode(codes[:, :1], codebooks), codebooks[0][codes[:, 0]]
    )
    with pytest.raises(ValueError, match=r"codes: expected values in \[0, 4\), found 0 to 4"):
        residual.decode(np.array([[0, 4, 0]]), codebooks)
    with pytest.raises(ValueError, match="at most 3"):
        residual.decode(np.zeros((2, 4), dtype=np.int32), codebooks)


def test_same_seed_same_codes_other_seed_other_codebooks():
    embeddings = points()
    config = RQKMeans(num_levels=3, num_codes=16, seed=5)
    first, second = config.fit(embeddings), config.fit(embeddings)
    np.testing.assert_array_equal(first.codebooks, second.codebooks)
    np.testing.assert_array_equal(first.encode(embeddings), second.encode(embeddings))
    other = RQKMeans(num_levels=3, num_codes=16, seed=6).fit(embeddings)
    assert not np.array_equal(first.codebooks, other.codebooks)


def test_error_falls_with_every_level_and_beats_random_codewords():
    embeddings = points()
    tokenizer = RQKMeans(num_levels=4, num_codes=16).fit(embeddings)
    codes = tokenizer.encode(embeddings)
    assert (tokenizer.num_levels, tokenizer.num_codes) == (4, 16)
    assert codes.shape == (600, 4)
    assert codes.min() >= 0
    assert codes.max() < 16
    errors = [float((embeddings**2).sum(axis=1).mean())]
    for level in range(1, 5):
        decoded = tokenizer.decode(codes[:, :level])
        errors.append(float(((embeddings - decoded) ** 2).sum(axis=1).mean()))
    assert all(later < 0.95 * earlier for earlier, later in itertools.pairwise(errors))
    drawn = embeddings[np.random.default_rng(0).choice(600, 16, replace=False)]
    random_error = ((embeddings - drawn[residual.nearest(embeddings, drawn)]) ** 2).sum(axis=1)
    assert errors[1] < random_error.mean()


def test_centroids_are_the_means_of_all_their_points():
    embeddings = points(num_items=5000, dim=3)
    centroids = fit_kmeans(embeddings, num_codes=4, num_iterations=300, seed=0)
    codes = residual.nearest(embeddings, centroids)
    means = np.stack([embeddings[codes == code].mean(axis=0) for code in range(4)])
    # A subsample of 256 points a centroid, faiss's default, would miss these by about 0.05.
    np.testing.assert_allclose(centroids, means, atol=5e-3)


def test_later_levels_do_not_collapse_in_many_dimensions():
    embeddings = points(num_items=2000, dim=256)
    tokenizer = RQKMeans(num_levels=2, num_codes=64).fit(embeddings)
    counts = np.bincount(tokenizer.encode(embeddings)[:, 1], minlength=64) / 2000
    used = counts[counts > 0]
    assert np.exp(-(used * np.log(used)).sum()) > 45


def test_as_many_items_as_codes_are_told_apart():
    embeddings = points(num_items=16)
    tokenizer = RQKMeans(num_levels=1, num_codes=16).fit(embeddings)
    assert len(np.unique(tokenizer.encode(embeddings))) == 16


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-20])
def test_constant_embeddings_get_one_tuple(value):
    embeddings = np.full((50, 6), value, dtype=np.float32)
    tokenizer = RQKMeans(num_levels=3, num_codes=8).fit(embeddings)
    codes = tokenizer.encode(embeddings)
    assert len(np.unique(codes, axis=0)) == 1
    assert np.isfinite(tokenizer.codebooks).all()
    np.testing.assert_allclose(tokenizer.decode(codes), embeddings, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_share_their_codes_wherever_they_stand(seed):
    distinct = points(seed=seed, num_items=5)
    embeddings = np.repeat(distinct, 21, axis=0)
    tokenizer = RQKMeans(num_levels=3, num_codes=16, seed=seed).fit(embeddings)
    codes = tokenizer.encode(embeddings)
    assert len(np.unique(codes, axis=0)) == 5
    np.testing.assert_array_equal(tokenizer.encode(distinct), codes[::21])


def test_one_item():
    tokenizer = RQKMeans(num_levels=2, num_codes=1).fit(points(num_items=1))
    assert tokenizer.encode(points(num_items=1)).tolist() == [[0, 0]]


def test_float64_and_float16_are_taken_and_the_input_is_left_alone():
    embeddings = points()
    config = RQKMeans(num_levels=2, num_codes=8)
    before = embeddings.copy()
    codes = config.fit(embeddings).encode(embeddings)
    np.testing.assert_array_equal(embeddings, before)
    np.testing.assert_array_equal(
        config.fit(embeddings.astype(np.float64)).encode(embeddings.astype(np.float64)), codes
    )
    config.fit(embeddings.astype(np.float16))


def with_nan(array, value=np.nan):
    array[[7, 9], 3] = value
    return array


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (with_nan(points()), "2 of 600 rows hold NaN or infinity .* the first is row 7"),
        (with_nan(points(), np.inf), "the first is row 7"),
        (with_nan(points().astype(np.float64), 1e200), "the first is row 7"),
        (points(num_items=10), "num_codes: 16 codes need .* found 10 items"),
        (np.ones((50, 4), dtype=np.int64), "expected a floating dtype .* found int64"),
        (np.zeros((0, 4), dtype=np.float32), "expected at least one item"),
        (np.zeros((50, 0), dtype=np.float32), "expected at least one item and dimension"),
        (np.zeros(50, dtype=np.float32), r"expected a matrix .* found shape \(50,\)"),
    ],
)
def test_bad_embeddings(embeddings, message):
    with pytest.raises(ValueError, match=message):
        RQKMeans(num_levels=2, num_codes=16).fit(embeddings)


def test_large_finite_values_are_not_called_infinite():
    embeddings = points()
    embeddings[0] = np.float32(3e38)  # finite, though its sum is not
    np.testing.assert_array_equal(check_embeddings(embeddings), embeddings)


def test_encode_refuses_another_dimension():
    tokenizer = RQKMeans(num_levels=2, num_codes=8).fit(points())
    with pytest.raises(ValueError, match="expected 12 dimensions as in the codebooks, found 5"):
        tokenizer.encode(points(dim=5))


@pytest.mark.parametrize("field", ["num_levels", "num_codes", "num_iterations"])
def test_settings_out_of_range(field):
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, found 0"):
        RQKMeans(**{field: 0})
