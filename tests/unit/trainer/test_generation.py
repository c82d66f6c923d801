import itertools

import numpy as np
import pytest
import torch

from trainer.generation import TupleTrie, beam_search

LEVELS, CODES, ROWS = 3, 4, 5


class TableScorer:
    """Scores depend on the whole prefix, by a table of random numbers."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tables = [
            torch.randn(ROWS, *(CODES,) * (level + 1), generator=generator).log_softmax(-1)
            for level in range(LEVELS)
        ]
        self.prefixes = None

    def first(self):
        return self.tables[0]

    def following(self, parent_RW, code_RW):
        rows = []
        for row, (parents, codes) in enumerate(zip(parent_RW, code_RW, strict=True)):
            before = [[]] if self.prefixes is None else self.prefixes[row]
            rows.append([[*before[p], int(c)] for p, c in zip(parents, codes, strict=True)])
        self.prefixes = rows
        level = len(rows[0][0])
        return torch.stack(
            [
                torch.stack([self.tables[level][(row, *prefix)] for prefix in prefixes])
                for row, prefixes in enumerate(rows)
            ]
        )

    def total(self, row, codes):
        return sum(
            float(table[(row, *codes[: level + 1])]) for level, table in enumerate(self.tables)
        )


def every_tuple():
    return list(itertools.product(range(CODES), repeat=LEVELS))


def exhaustive(scorer, row, tuples):
    return sorted(((scorer.total(row, codes), codes) for codes in tuples), reverse=True)


def test_a_beam_as_wide_as_all_tuples_is_exhaustive():
    beams = beam_search(TableScorer(), num_levels=LEVELS, width=CODES**LEVELS)
    for row in range(ROWS):
        expected = exhaustive(TableScorer(), row, every_tuple())
        assert [tuple(codes) for codes in beams.codes_RWL[row].tolist()] == [
            codes for _, codes in expected
        ]
        torch.testing.assert_close(
            beams.scores_RW[row], torch.tensor([score for score, _ in expected])
        )


@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_narrow_beam_equals_a_loop_that_keeps_the_best_prefixes(width):
    beams = beam_search(TableScorer(), num_levels=LEVELS, width=width)
    scorer = TableScorer()
    for row in range(ROWS):
        kept = [(0.0, ())]
        for level in range(LEVELS):
            longer = [
                (score + float(scorer.tables[level][(row, *prefix, code)]), (*prefix, code))
                for score, prefix in kept
                for code in range(CODES)
            ]
            kept = sorted(longer, reverse=True)[:width]
        assert [tuple(codes) for codes in beams.codes_RWL[row].tolist()] == [p for _, p in kept]


def test_trie_holds_the_beam_to_tuples_that_exist():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, CODES, (12, LEVELS))
    tuples = sorted({tuple(row) for row in codes.tolist()})
    trie = TupleTrie(np.concatenate([codes, codes[:4]]), num_codes=CODES)
    assert trie.num_nodes == [
        len({codes[: level + 1] for codes in tuples}) for level in range(LEVELS)
    ]
    width = len(tuples) + 5
    beams = beam_search(TableScorer(), num_levels=LEVELS, width=width, trie=trie)
    for row in range(ROWS):
        expected = exhaustive(TableScorer(), row, tuples)
        found = beams.codes_RWL[row, : len(tuples)].tolist()
        assert [tuple(one) for one in found] == [codes for _, codes in expected]
        assert (beams.scores_RW[row, len(tuples) :] == float("-inf")).all()


def test_trie_allows_exactly_the_children_of_each_prefix():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, CODES, (20, LEVELS))
    trie = TupleTrie(codes, num_codes=CODES)
    tuples = {tuple(row) for row in codes.tolist()}
    prefixes = [()]
    for level in range(LEVELS):
        allowed = trie.allowed(level, torch.arange(len(prefixes)).unsqueeze(0))[0]
        children = []
        for node, prefix in enumerate(prefixes):
            for code in range(CODES):
                longer = (*prefix, code)
                exists = any(one[: level + 1] == longer for one in tuples)
                assert bool(allowed[node, code]) == exists, longer
                if exists:
                    found = trie.child(level, torch.tensor([[node]]), torch.tensor([[code]]))
                    assert int(found) == len(children), longer
                    children.append(longer)
        prefixes = children
    assert set(prefixes) == tuples


def test_no_row_gives_no_beam():
    scorer = TableScorer()
    scorer.tables = [table[:0] for table in scorer.tables]
    scorer.following = lambda parent, code: torch.zeros(0, parent.shape[1], CODES)
    trie = TupleTrie(np.array([[0, 1, 2]]), num_codes=CODES)
    beams = beam_search(scorer, num_levels=LEVELS, width=2, trie=trie)
    assert beams.codes_RWL.shape == (0, 2, LEVELS)


def test_nothing_to_generate_is_an_error():
    with pytest.raises(ValueError, match="no tuple to generate"):
        TupleTrie(np.zeros((0, 3), dtype=np.int64), num_codes=4)
    with pytest.raises(ValueError, match="width is 0"):
        beam_search(TableScorer(), num_levels=LEVELS, width=0)
