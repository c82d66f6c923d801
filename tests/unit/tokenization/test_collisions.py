from __future__ import annotations

import numpy as np
import pytest

from tokenization.collisions import resolve_collisions
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans


def points(num_items=400):
    return np.random.default_rng(0).normal(size=(num_items, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    tokenizer = RQKMeans(num_levels=2, num_codes=16).fit(points())
    return tokenizer, tokenizer.encode(points())


def num_distinct(codes):
    return len(np.unique(codes, axis=0))


def test_keep_changes_nothing(fitted):
    tokenizer, codes = fitted
    assert num_distinct(codes) < 256
    kept = resolve_collisions(codes, points(), tokenizer, how="keep")
    np.testing.assert_array_equal(kept, codes)


def test_an_extra_code_numbers_the_items_of_a_tuple(fitted):
    tokenizer, codes = fitted
    resolved = resolve_collisions(codes, points(), tokenizer, how="extra_code")
    np.testing.assert_array_equal(resolved[:, :2], codes)
    seen: dict[tuple[int, ...], int] = {}
    for row, extra in zip(codes.tolist(), resolved[:, 2], strict=True):
        assert extra == seen.get(tuple(row), 0)
        seen[tuple(row)] = extra + 1
    assert num_distinct(resolved) == 400
    assert resolved.dtype == np.int32


def test_new_items_number_on_from_those_that_are_there(fitted):
    tokenizer, codes = fitted
    first = resolve_collisions(codes[:300], points()[:300], tokenizer, how="extra_code")
    later = resolve_collisions(
        codes[300:], points()[300:], tokenizer, how="extra_code", taken=first
    )
    assert num_distinct(np.concatenate([first, later])) == 400
    whole = resolve_collisions(codes, points(), tokenizer, how="extra_code")
    np.testing.assert_array_equal(np.concatenate([first, later]), whole)


def test_more_copies_than_codes_are_refused():
    embeddings = np.ones((30, 3), dtype=np.float32)
    tokenizer = RQKMeans(num_levels=1, num_codes=4).fit(embeddings)
    with pytest.raises(ValueError, match=r"30 items share the codes \[0\], .* has 4 codes"):
        resolve_collisions(tokenizer.encode(embeddings), embeddings, tokenizer, how="extra_code")


def test_the_next_nearest_free_code_of_the_last_level(fitted):
    tokenizer, _ = fitted
    embeddings = points(200)
    codes = tokenizer.encode(embeddings)
    resolved = resolve_collisions(codes, embeddings, tokenizer, how="next_nearest")
    np.testing.assert_array_equal(resolved[:, 0], codes[:, 0])
    first = np.unique(codes, axis=0, return_index=True)[1]
    np.testing.assert_array_equal(resolved[first], codes[first])
    # Naive: one item after another takes the nearest codeword whose tuple nobody has.
    used = {tuple(row) for row in codes.tolist()}
    for item in sorted(set(range(200)) - set(first.tolist())):
        left = embeddings[item] - tokenizer.codebooks[0][codes[item, 0]]
        ranked = ((tokenizer.codebooks[1] - left) ** 2).sum(axis=1).argsort()
        free = [int(c) for c in ranked if (int(codes[item, 0]), int(c)) not in used]
        expected = free[0] if free else codes[item, 1]
        used.add((int(codes[item, 0]), int(expected)))
        assert resolved[item, 1] == expected


def test_next_nearest_leaves_alone_what_others_have(fitted):
    tokenizer, codes = fitted
    taken = codes[:50]
    resolved = resolve_collisions(
        codes[50:100], points()[50:100], tokenizer, how="next_nearest", taken=taken
    )
    both = np.concatenate([np.unique(taken, axis=0), resolved])
    assert num_distinct(both) == len(both)


def test_an_artifact_of_distinct_items(tmp_path):
    artifact = fit_tokens(
        np.arange(400),
        points(),
        tokenizer=RQKMeans(num_levels=2, num_codes=16),
        mem=MemTokens(num_merges=20),
        collisions="extra_code",
    )
    assert (artifact.num_levels, artifact.num_codes) == (3, 16)
    artifact.save(tmp_path / "tokens")
    loaded = type(artifact).load(tmp_path / "tokens")
    assert num_distinct(loaded.codes) == 400
    assert loaded.manifest["collisions"] == "extra_code"
    np.testing.assert_array_equal(loaded.tokenizer.encode(points()), loaded.codes[:, :2])
