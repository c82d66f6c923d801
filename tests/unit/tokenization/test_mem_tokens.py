from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokenization.mem_tokens import MemTokens


def naive_bpe(codes, num_codes, num_merges, min_frequency, weights=None):
    """Recount every pair before every merge."""
    num_levels = codes.shape[1]
    items = [[level * num_codes + int(c) for level, c in enumerate(row)] for row in codes]
    weights = [1] * len(items) if weights is None else [int(w) for w in weights]
    formed = [[] for _ in items]
    merges = []
    while len(merges) < num_merges:
        count, weight = Counter(), Counter()
        for item, w in zip(items, weights, strict=True):
            for pair in itertools.pairwise(item):
                count[pair] += 1
                weight[pair] += w
        allowed = [p for p in count if count[p] >= min_frequency]
        if not allowed:
            break
        pair = min(allowed, key=lambda p: (-weight[p], p[0], p[1]))
        new = num_levels * num_codes + len(merges)
        for n, item in enumerate(items):
            for i in range(len(item) - 1):
                if (item[i], item[i + 1]) == pair:
                    item[i : i + 2] = [new]
                    formed[n].append(len(merges))
                    break
        merges.append((*pair, count[pair]))
    num_gen = num_levels * num_codes
    finest = [[s - num_gen for s in item if s >= num_gen] for item in items]
    return merges, finest, formed


def skewed_codes(seed, num_items, num_levels, num_codes):
    rng = np.random.default_rng(seed)
    return (rng.zipf(1.4, size=(num_items, num_levels)) % num_codes).astype(np.int32)


def as_lists(values, offsets):
    return [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("num_levels", "num_codes", "num_merges", "min_frequency"),
    [(5, 6, 60, 2), (3, 4, 1000, 2), (4, 30, 200, 5), (2, 3, 2, 2)],
)
def test_merges_and_both_covers_are_those_of_the_naive_reference(
    seed, num_levels, num_codes, num_merges, min_frequency
):
    codes = skewed_codes(seed, 150, num_levels, num_codes)
    expected, finest, tree = naive_bpe(codes, num_codes, num_merges, min_frequency)
    config = MemTokens(num_merges=num_merges, min_frequency=min_frequency)
    merges = config.fit(codes, num_codes=num_codes)
    assert list(zip(merges.left, merges.right, merges.count, strict=True)) == expected
    assert as_lists(*merges.encode(codes, cover="finest")) == finest
    assert as_lists(*merges.encode(codes, cover="tree")) == tree


def test_weights_order_the_merges_and_a_heavy_loner_is_never_merged():
    codes = skewed_codes(9, 120, 4, 8)
    weights = np.random.default_rng(1).integers(0, 50, size=120)
    codes[0] = 7  # a tuple of its own, seen more than all others together
    weights[0] = 10_000_000
    expected, _, _ = naive_bpe(codes, 8, 500, 2, weights)
    merges = MemTokens(num_merges=500).fit(codes, num_codes=8, weights=weights)
    assert list(zip(merges.left, merges.right, merges.count, strict=True)) == expected
    assert merges.count.min() >= 2
    unweighted = MemTokens(num_merges=500).fit(codes, num_codes=8)
    assert unweighted.left.tolist() != merges.left.tolist()


def test_ties_go_to_the_smallest_left_then_right_symbol():
    # Pairs (0, 4), (0, 5), (1, 4) in symbols, each twice.
    codes = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]], dtype=np.int32)
    merges = MemTokens(num_merges=10).fit(codes, num_codes=4)
    assert merges.left.tolist() == [0, 0, 1]
    assert merges.right.tolist() == [4, 5, 4]


def test_merges_equal_those_of_hugging_face_tokenizers():
    num_levels, num_codes, num_merges = 5, 20, 800
    codes = skewed_codes(3, 3000, num_levels, num_codes)
    # One character a gen row, in order, from a block of letters without gaps.
    letters = [chr(0x4E00 + symbol) for symbol in range(num_levels * num_codes)]
    symbols = codes + np.arange(num_levels) * num_codes
    words = ["".join(letters[s] for s in row) for row in symbols]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=len(letters) + num_merges,
            min_frequency=2,
            initial_alphabet=letters,
            special_tokens=[],
            show_progress=False,
        ),
    )
    ours = MemTokens(num_merges=num_merges).fit(codes, num_codes=num_codes)
    assert len(ours) == num_merges
    spelled = list(letters)
    for left, right in zip(ours.left, ours.right, strict=True):
        spelled.append(spelled[left] + spelled[right])
    theirs = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    assert [token for token, _ in theirs] == spelled
    values, offsets = ours.encode(codes[:200], cover="finest")
    for word, mine in zip(words, as_lists(values, offsets), strict=False):
        merged = [i - len(letters) for i in tokenizer.encode(word).ids if i >= len(letters)]
        assert merged == mine


def test_new_items_get_tokens_from_the_fitted_merges():
    codes = skewed_codes(0, 500, 4, 6)
    merges = MemTokens(num_merges=100).fit(codes, num_codes=6)
    whole = as_lists(*merges.encode(codes, cover="finest"))
    alone = as_lists(*merges.encode(codes[17:18], cover="finest"))
    assert alone == [whole[17]]


@pytest.mark.parametrize(
    "codes",
    [
        np.array([[0, 1, 2]], dtype=np.int32),  # one item
        np.array([[0], [0], [1]], dtype=np.int32),  # one level
        np.zeros((0, 3), dtype=np.int32),  # no item
    ],
)
def test_nothing_to_merge(codes):
    merges = MemTokens(num_merges=10).fit(codes, num_codes=3)
    values, offsets = merges.encode(codes, cover="tree")
    assert len(merges) == 0
    assert values.size == 0
    assert offsets.tolist() == [0] * (len(codes) + 1)


def test_no_merges_wanted():
    codes = skewed_codes(0, 100, 3, 4)
    assert len(MemTokens(num_merges=0).fit(codes, num_codes=4)) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_frequency": 1}, "min_frequency: expected at least 2, found 1"),
        ({"num_merges": -1}, "num_merges: expected at least 0"),
        ({"cover": "coarse"}, "cover: expected 'finest' or 'tree', found 'coarse'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        MemTokens(**settings)


def test_bad_codes_and_weights():
    codes = skewed_codes(0, 10, 3, 4)
    with pytest.raises(ValueError, match=r"codes: expected values in \[0, 2\)"):
        MemTokens().fit(codes, num_codes=2)
    with pytest.raises(ValueError, match="weights: expected one integer"):
        MemTokens().fit(codes, num_codes=4, weights=np.ones(10))
    with pytest.raises(ValueError, match="weights: expected one integer"):
        MemTokens().fit(codes, num_codes=4, weights=np.ones(9, dtype=np.int64))
    with pytest.raises(ValueError, match="weights: expected at least 0, found -3"):
        MemTokens().fit(codes, num_codes=4, weights=np.full(10, -3))
    merges = MemTokens().fit(codes, num_codes=4)
    with pytest.raises(ValueError, match=r"codes: expected shape \(items, 3\)"):
        merges.encode(codes[:, :2], cover="finest")
