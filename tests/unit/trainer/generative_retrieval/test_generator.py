"""The transformer: what it sees, its loss against a loop, continued histories against one pass."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from trainer.data.ragged import Ragged
from trainer.generation import TupleTrie
from trainer.generative_retrieval.generator import Generator, GeneratorConfig, rotated
from trainer.generative_retrieval.search import GeneratorScorer, TupleSearch
from trainer.generative_retrieval.sequences import batches, codes_of, last_items, windows
from trainer.prefix_search import prefix_search

LEVELS, CODES = 3, 4


def generator(max_items=5):
    torch.manual_seed(0)
    config = GeneratorConfig(dim=16, num_layers=2, num_heads=2, max_items=max_items)
    made = Generator(config, num_levels=LEVELS, num_codes=CODES).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def codes(num_rows, num_items, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(CODES, (num_rows, num_items, LEVELS), generator=drawn)


@torch.no_grad()
def test_an_output_sees_the_tokens_before_the_one_it_predicts_and_no_other():
    made, before = generator(), codes(1, 4)
    outputs = made(before)
    changed = before.clone()
    changed[0, 2, 1] = (changed[0, 2, 1] + 1) % CODES
    differs = (made(changed) - outputs).abs().amax(dim=3)[0] > 1e-6
    flat = differs.flatten().tolist()
    assert flat == [False] * (2 * LEVELS + 2) + [True] * (2 * LEVELS - 2)


def test_products_of_turned_features_depend_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(6), torch.randn(6)

    def product(at, other):
        turned = [
            rotated(x, torch.tensor(place), base=100.0) for x, place in ((query, at), (key, other))
        ]
        return float(turned[0] @ turned[1])

    # Pairs (i, i + 3) as complex numbers, turned by 100 ** (-i / 3) a place.
    speed = 100.0 ** (-np.arange(3) / 3)
    one, other = (x[:3].numpy() + 1j * x[3:].numpy() for x in (query, key))
    for distance in (0, 1, 7):
        expected = float((one * other.conj() * np.exp(1j * distance * speed)).real.sum())
        for place in (0, 3, 40):
            assert product(place + distance, place) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"dim": 12, "num_heads": 4}, "multiple of twice num_heads"), ({"rotary_base": 1.0}, "base")],
)
def test_heads_and_base_that_can_not_turn_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        GeneratorConfig(**wrong)


@torch.no_grad()
def test_the_loss_is_that_of_a_loop_over_items_that_are_there():
    made, right = generator(), codes(2, 3)
    there = torch.tensor([[True, True, True], [True, False, False]])
    outputs = made(right)
    total = 0.0
    for row, item in there.nonzero().tolist():
        for level in range(LEVELS):
            weights = made.token_LKD[level]
            scores = weights @ outputs[row, item, level] + made.bias_LK[level]
            total -= float(scores.log_softmax(0)[right[row, item, level]])
    assert float(made.loss(outputs, right, there)) == pytest.approx(total / 4, rel=1e-5)


@torch.no_grad()
def test_a_history_that_is_continued_equals_one_pass():
    made, before, length = generator(), codes(3, 4), torch.tensor([4, 1, 0])
    beams = codes(3, 2, seed=1)  # two beams of a whole item each
    histories = made.encode(before, length)
    generated, found = [], [histories.last_RD.unsqueeze(1).expand(-1, 2, -1)]
    for level in range(LEVELS - 1):
        output, generated = made.follow(histories, generated, beams[:, :, level], level=level)
        found.append(output)
    for row, number in enumerate(length.tolist()):
        for beam in range(2):
            whole = torch.cat([before[row, :number], beams[row, beam : beam + 1]])
            expected = made(whole.unsqueeze(0))[0, number]
            ours = torch.stack([output[row, beam] for output in found])
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def chance(made, history, item):
    """Log-probability of an item's codes after a history, by one pass."""
    outputs = made(torch.cat([history, item.unsqueeze(0)]).unsqueeze(0))[0, len(history)]
    return sum(
        float(made.logits(outputs[level], level).log_softmax(0)[item[level]])
        for level in range(LEVELS)
    )


@torch.no_grad()
@pytest.mark.parametrize("width", [2, 100])
def test_the_search_scores_prefixes_by_the_chances_of_their_codes(width):
    made, before, length = generator(), codes(3, 4), torch.tensor([2, 4, 0])
    tuples = np.unique(codes(1, 20, seed=2)[0].numpy(), axis=0)
    found = prefix_search(
        GeneratorScorer(made, made.encode(before, length)),
        num_rows=3,
        num_levels=LEVELS,
        num_codes=CODES,
        width=width,
        trie=TupleTrie(tuples, num_codes=CODES),
        device=torch.device("cpu"),
    )
    for row, number in enumerate(length.tolist()):
        scores = found.scores_RW[row]
        for codes_L, score in zip(found.codes_RWL[row], scores, strict=True):
            if score > float("-inf"):
                expected = chance(made, before[row, :number], codes_L)
                assert float(score) == pytest.approx(expected, abs=1e-4)
        if width == 100:
            best = max(chance(made, before[row, :number], torch.from_numpy(t)) for t in tuples)
            assert float(scores[0]) == pytest.approx(best, abs=1e-4)
            assert int((scores > float("-inf")).sum()) == len(tuples)


@torch.no_grad()
def test_items_of_one_tuple_stand_side_by_side_the_popular_one_first():
    made = generator()
    item_codes = np.array([[0, 1, 2], [3, 3, 3], [0, 1, 2], [1, 0, 0], [0, 1, 2]])
    popularity = np.array([1.0, 0.0, 5.0, 2.0, 1.0])
    search = TupleSearch(
        item_codes, num_codes=CODES, popularity=popularity, device=torch.device("cpu")
    )
    histories = np.array([[1, 0, 3], [4, -1, -1]])
    found = search.best(made, histories, 7, width=10)
    for row, history in zip(found.tolist(), ([1, 0, 3], [4]), strict=True):
        before = torch.from_numpy(item_codes[history])
        scores = [chance(made, before, torch.from_numpy(one)) for one in item_codes]
        order = sorted(
            range(5), key=lambda item: (-round(scores[item], 4), -popularity[item], item)
        )
        assert row == [*order, -1, -1]
    np.testing.assert_array_equal(search.best(made, histories, 2, width=10), found[:, :2])
    assert search.best(made, histories[:0], 2, width=10).shape == (0, 2)


def test_windows_keep_every_step_from_item_to_item():
    lengths = np.array([1, 4, 0, 9, 5, 10])
    sequences = Ragged.from_lengths(np.arange(lengths.sum()), lengths)
    found = windows(sequences, 3)
    assert found.shape[1] == 4
    steps = set()
    for row in found.tolist():
        items = [item for item in row if item >= 0]
        assert row == items + [-1] * (4 - len(items))
        steps |= set(itertools.pairwise(items))
    ends = set(np.cumsum(lengths).tolist())
    assert steps == {(i, i + 1) for i in range(28) if i + 1 not in ends}
    assert 0 in found[:, 0]  # a sequence of one item


def test_batches_hold_every_window_once_without_empty_columns():
    lengths = np.random.default_rng(0).integers(1, 7, 50)
    sequences = Ragged.from_lengths(np.arange(lengths.sum()), lengths)
    found = windows(sequences, 6)
    parts = list(batches(found, 8, np.random.default_rng(1)))
    assert sorted(part[row, 0] for part in parts for row in range(len(part))) == sorted(found[:, 0])
    assert all((part[:, -1] >= 0).any() for part in parts)


def test_last_items_and_codes():
    histories = Ragged.from_lengths(np.array([4, 7, 8, 9, 2]), np.array([4, 0, 1]))
    items = last_items(histories, 3)
    assert items.tolist() == [[7, 8, 9], [-1, -1, -1], [2, -1, -1]]
    table = torch.arange(20).view(10, 2)
    found, there = codes_of(table, items)
    assert found[0].tolist() == [[14, 15], [16, 17], [18, 19]]
    assert there.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "generator.num_layers is 0"),
        ({"dim": 30, "num_heads": 4}, r"generator.dim \(30\) must be a multiple"),
        ({"dropout": 1.0}, "generator.dropout is 1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**settings)
