from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from tokenization.artifact import TokenArtifact
from tokenization.combinations import mem_config
from tokenization.mem_tokens import MemTokens
from tokenization.ngrams import KGrams, PrefixNGrams
from tokenization.pipeline import fit_tokens
from tokenization.report import token_lengths
from tokenization.rq_kmeans import RQKMeans


def skewed_codes(num_items=400, num_levels=4, num_codes=6):
    rng = np.random.default_rng(0)
    return (rng.zipf(1.5, size=(num_items, num_levels)) % num_codes).astype(np.int32)


def spelled(merges):
    """Each token as its tuple of gen rows."""
    num_gen = merges.num_levels * merges.num_codes
    words = [(symbol,) for symbol in range(num_gen)]
    for left, right in zip(merges.left, merges.right, strict=True):
        words.append(words[left] if left == right else words[left] + words[right])
    return words[num_gen:]


def tokens_of_items(config, codes, merges):
    values, offsets = merges.encode(codes, cover=config.cover)
    words = spelled(merges)
    return [{words[v] for v in values[a:b]} for a, b in itertools.pairwise(offsets)]


def naive(codes, num_codes, lengths, starts, min_frequency=2, weights=None):
    rows = (codes + np.arange(codes.shape[1]) * num_codes).tolist()
    items = [
        {
            tuple(row[start : start + length])
            for length in lengths
            for start in starts
            if start + length <= len(row)
        }
        for row in rows
    ]
    count = Counter(gram for item in items for gram in item)
    frequent = {gram for gram, n in count.items() if n >= min_frequency}
    return [item & frequent for item in items], {gram: count[gram] for gram in frequent}


@pytest.mark.parametrize("min_frequency", [2, 7])
@pytest.mark.parametrize(
    ("config", "lengths", "starts"),
    [
        (PrefixNGrams, (2, 3, 4), (0,)),
        (lambda **kw: PrefixNGrams(max_length=3, **kw), (2, 3), (0,)),
        (KGrams, (2,), range(4)),
        (lambda **kw: KGrams(max_length=3, **kw), (2, 3), range(4)),
        (lambda **kw: PrefixNGrams(min_length=1, **kw), (1, 2, 3, 4), (0,)),
        (lambda **kw: KGrams(min_length=1, max_length=3, **kw), (1, 2, 3), range(4)),
    ],
)
def test_tokens_are_the_frequent_grams_of_each_item(config, lengths, starts, min_frequency):
    codes = skewed_codes()
    settings = config(min_frequency=min_frequency)
    merges = settings.fit(codes, num_codes=6)
    expected, counts = naive(codes, 6, lengths, starts, min_frequency)
    assert tokens_of_items(settings, codes, merges) == expected
    assert dict(zip(spelled(merges), merges.count.tolist(), strict=True)) == counts


def test_shorter_then_heavier_grams_come_first_and_the_limit_cuts_the_rest():
    codes = skewed_codes()
    weights = np.random.default_rng(1).integers(0, 50, len(codes))
    merges = PrefixNGrams().fit(codes, num_codes=6, weights=weights)
    lengths = [len(word) for word in spelled(merges)]
    assert lengths == sorted(lengths)
    items = [row[:2] for row in (codes + np.arange(4) * 6).tolist()]
    heavy = [
        sum(int(w) for row, w in zip(items, weights, strict=True) if tuple(row) == word)
        for word in spelled(merges)
        if len(word) == 2
    ]
    assert heavy == sorted(heavy, reverse=True)
    fewer = PrefixNGrams(num_merges=5).fit(codes, num_codes=6, weights=weights)
    assert spelled(fewer) == spelled(merges)[:5]


def test_new_items_find_the_fitted_grams_alone():
    merges = KGrams().fit(skewed_codes(), num_codes=6)
    new = np.full((1, 4), 5, dtype=np.int32)
    found = tokens_of_items(KGrams(), new, merges)[0]
    assert found <= set(spelled(merges))


def test_a_single_code_is_one_token_long_and_no_item_loses_its_first_code():
    settings = PrefixNGrams(min_length=1)
    embeddings = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    artifact = fit_tokens(
        np.arange(300), embeddings, tokenizer=RQKMeans(num_levels=3, num_codes=16), mem=settings
    )
    without = fit_tokens(
        np.arange(300),
        embeddings,
        tokenizer=RQKMeans(num_levels=3, num_codes=16),
        mem=PrefixNGrams(),
    )
    assert (np.diff(without.mem_offsets) == 0).any()
    assert (np.diff(artifact.mem_offsets) >= 1).all()
    lengths = token_lengths(artifact)
    assert lengths[:16].tolist() == [1] * 16
    assert lengths[16:].tolist() == token_lengths(without).tolist()


@pytest.mark.parametrize(
    "config",
    [
        PrefixNGrams(),
        PrefixNGrams(min_length=1, max_length=2),
        KGrams(max_length=3),
        KGrams(min_length=1),
    ],
)
def test_every_gram_that_codes_can_hold_has_a_row(config):
    every = np.array(list(itertools.product(range(3), repeat=4)) * 2, dtype=np.int32)
    tokens = config.max_tokens(num_levels=4, num_codes=3)
    assert tokens == len(config.fit(every, num_codes=3))
    assert dataclasses.replace(config, num_merges=5).max_tokens(num_levels=4, num_codes=3) == 5


def test_byte_pairs_never_need_more_rows_than_are_named():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 2, (60, 3)).astype(np.int32)
        # 2 runs of two codes x 4, and 8 runs of three that can be merged in two ways
        assert len(MemTokens().fit(codes, num_codes=2)) <= 2 * 4 + 8 * 2
    assert MemTokens().max_tokens(num_levels=3, num_codes=2) == 2 * 4 + 8 * 2
    assert MemTokens(num_merges=7).max_tokens(num_levels=3, num_codes=2) == 7
    assert MemTokens().max_tokens(num_levels=1, num_codes=2) == 0


@pytest.mark.parametrize(
    "config", [MemTokens(num_merges=9, cover="tree"), PrefixNGrams(max_length=2), KGrams()]
)
def test_settings_come_back_from_a_manifest(config, tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    fit_tokens(
        np.arange(60), embeddings, tokenizer=RQKMeans(num_levels=2, num_codes=4), mem=config
    ).save(tmp_path / "tokens")
    assert mem_config(TokenArtifact.load(tmp_path / "tokens").manifest["mem"]) == config
    with pytest.raises(ValueError, match=r"mem kind: expected one of bpe, .* found 'words'"):
        mem_config({"kind": "words"})


@pytest.mark.parametrize("config", [PrefixNGrams(), KGrams()])
def test_an_artifact_carries_them(config, tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    artifact = fit_tokens(
        np.arange(300), embeddings, tokenizer=RQKMeans(num_levels=3, num_codes=4), mem=config
    )
    artifact.save(tmp_path / "tokens")
    loaded = type(artifact).load(tmp_path / "tokens")
    assert loaded.manifest["mem"]["kind"] == config.kind
    values, offsets = loaded.merges.encode(loaded.codes, cover=config.cover)
    np.testing.assert_array_equal(values, loaded.mem_values)
    np.testing.assert_array_equal(offsets, loaded.mem_offsets)


@pytest.mark.parametrize("config", [PrefixNGrams(), KGrams(), MemTokens()])
def test_nothing_to_combine(config):
    for codes in (np.array([[0, 1, 2]]), np.array([[0], [0]]), np.zeros((0, 3))):
        merges = config.fit(codes.astype(np.int32), num_codes=3)
        values, offsets = merges.encode(codes.astype(np.int32), cover=config.cover)
        assert (len(merges), values.size) == (0, 0)
        assert offsets.tolist() == [0] * (len(codes) + 1)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="max_length: expected at least 2, found 1"):
        KGrams(max_length=1)
    with pytest.raises(ValueError, match="min_length: expected 1 or 2, found 3"):
        KGrams(min_length=3)
    with pytest.raises(ValueError, match="min_frequency: expected at least 2"):
        PrefixNGrams(min_frequency=1)
    with pytest.raises(ValueError, match="weights: expected at least 0"):
        KGrams().fit(skewed_codes(), num_codes=6, weights=np.full(400, -1))
