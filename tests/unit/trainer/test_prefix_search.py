"""Beam search by prefixes' own scores against trying every SID, and the index behind it."""

import copy
import itertools

import numpy as np
import pytest
import torch

from tests.integration.tiny_dig import ITEM, NUM_ITEMS, batches_of_ranks, dig_model
from trainer.dig_scorer import DigScorer
from trainer.generation import TupleTrie
from trainer.item_index import IndexMismatchError, ItemIndex
from trainer.modules.learned_tokens import ITEM_ROW
from trainer.prefix_search import prefix_search
from trainer.retrieval import DigRetriever, build_index, tokens_fingerprint

CODES = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 2], [3, 0, 0], [3, 0, 1], [3, 3, 3], [0, 1, 2]])


class TableScorer:
    """A score for every prefix and row, drawn once."""

    def __init__(self, num_rows, seed=0):
        rng = np.random.default_rng(seed)
        self.scores = [rng.random((num_rows, *(4,) * (level + 1))) for level in range(3)]
        self.num_rows = num_rows

    def start(self):
        return torch.zeros(self.num_rows, 1, 0, dtype=torch.int64)

    def score(self, level, state, parent, code):
        longer = self.longer(state, parent, code)
        rows = torch.arange(self.num_rows)[:, None].expand_as(code)
        return torch.from_numpy(self.scores[level])[(rows, *longer.unbind(2))]

    def advance(self, level, state, parent, code, score):
        expected = self.score(level, state, parent, code)
        is_real = score > float("-inf")
        torch.testing.assert_close(score[is_real], expected[is_real].float())
        return self.longer(state, parent, code)

    def longer(self, state, parent, code):
        rows = torch.arange(self.num_rows)[:, None]
        return torch.cat([state[rows, parent], code[..., None]], dim=2)


def naive(scores, row, width, tuples):
    """Level by level; `tuples` are those that exist."""
    beams = [()]
    for level in range(3):
        longer = {t[: level + 1] for t in tuples if t[:level] in beams}
        beams = sorted(longer, key=lambda t: -scores[level][(row, *t)])[:width]
    return beams


@pytest.mark.parametrize("width", [1, 2, 5, 100])
@pytest.mark.parametrize("free", [False, True])
def test_equals_a_search_row_by_row(width, free):
    scorer = TableScorer(6)
    every = list(itertools.product(range(4), repeat=3))
    tuples = every if free else [tuple(row) for row in CODES.tolist()]
    found = prefix_search(
        scorer,
        num_rows=6,
        num_levels=3,
        num_codes=4,
        width=width,
        trie=None if free else TupleTrie(CODES, num_codes=4),
        device=torch.device("cpu"),
    )
    for row in range(6):
        is_real = found.scores_RW[row] > float("-inf")
        mine = [tuple(codes) for codes in found.codes_RWL[row][is_real].tolist()]
        assert mine == naive(scorer.scores, row, width, tuples)
        assert torch.equal(found.state[row], found.codes_RWL[row])
    if width == 100 and not free:  # exhaustive: the best SIDs of all
        best = [
            max(map(tuple, CODES.tolist()), key=lambda t: scorer.scores[2][(r, *t)])
            for r in range(6)
        ]
        assert [tuple(codes) for codes in found.codes_RWL[:, 0].tolist()] == best


def test_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width is 0"):
        prefix_search(
            TableScorer(1),
            num_rows=1,
            num_levels=3,
            num_codes=4,
            width=0,
            trie=None,
            device=torch.device("cpu"),
        )


def index(tokens="abc"):
    return ItemIndex(np.arange(10, 17), CODES.astype(np.int32), 4, tokens)


def test_index_gives_the_items_of_a_leaf():
    made = index()
    of, position = made.positions(torch.tensor([0, 3, 0]))
    assert of.tolist() == [0, 0, 1, 2, 2]
    assert sorted(made.item_ids[position[:2].numpy()].tolist()) == [10, 16]
    assert made.codes[position[2]].tolist() == [3, 0, 0]


def test_index_saves_and_loads(tmp_path):
    index().save(tmp_path / "index")
    loaded = ItemIndex.load(tmp_path / "index", tokens="abc")
    assert loaded.fingerprint == index().fingerprint
    assert loaded.item_ids.tolist() == index().item_ids.tolist()
    assert (loaded.codes == CODES).all()
    longer = ItemIndex(
        np.append(loaded.item_ids, 99), np.append(loaded.codes, [[1, 1, 1]], 0), 4, "abc"
    )
    assert longer.fingerprint != loaded.fingerprint
    longer.save(tmp_path / "index")
    again = ItemIndex.load(tmp_path / "index")
    _, position = again.positions(torch.tensor([again.trie().num_nodes[-1] - 4]))
    assert again.item_ids[position.numpy()].tolist() == [99]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_index_holds_each_item_once():
    with pytest.raises(ValueError, match="twice"):
        ItemIndex(np.array([1, 2, 1]), CODES[:3].astype(np.int32), 4, "abc")


def test_index_tells_what_changed():
    before, codes = index(), CODES[[6, 1, 2, 5, 3, 4]].astype(np.int32)
    after = ItemIndex(np.array([16, 11, 12, 13, 14, 99]), codes, 4, "abc")
    # 13 has the codes of 15, 14 those of 13; 10 and 15 are gone, 99 came.
    assert after.changes_since(before) == "1 items new, 2 gone, 2 with another SID"
    assert before.changes_since(index()) == "0 items new, 0 gone, 0 with another SID"


def test_index_of_other_tokens_or_damaged_is_refused(tmp_path):
    index().save(tmp_path / "index")
    with pytest.raises(IndexMismatchError, match=r"tokenizer abc.*remove the folder"):
        ItemIndex.load(tmp_path / "index", tokens="xyz")
    path = tmp_path / "index" / "index.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IndexMismatchError, match=r"damaged|expected"):
        ItemIndex.load(tmp_path / "index")
    with pytest.raises(IndexMismatchError, match="expected an index"):
        ItemIndex.load(tmp_path / "none")


@pytest.fixture(scope="module")
def trained():
    model = dig_model()
    batch = batches_of_ranks(1, 24, 1)[0][0]
    model(batch)
    model.eval()
    made = build_index(model.network, np.arange(NUM_ITEMS) * 7)
    retriever = DigRetriever(model.network, made, np.arange(NUM_ITEMS), width=500)
    with torch.no_grad():
        pooled, items = model.sparse(batch)
    return model, batch, pooled, items, retriever


def test_wide_beams_score_every_sid_of_the_catalogue(trained):
    model, batch, pooled, items, retriever = trained
    request = retriever.request(batch, pooled)
    found = retriever.retrieve(request, items)
    network = model.network
    codes = network.catalogue_codes()
    sid = network.sid_table(items)
    for row in (0, 7, 23):
        assert sorted(x for x in found.item_RC[row].tolist() if x >= 0) == list(range(NUM_ITEMS))
        one = request.take(torch.tensor([row]))
        for place in range(0, NUM_ITEMS, 9):
            item = int(found.item_RC[row, place])
            prefix, total = torch.zeros(ITEM.dim), 0.0
            for level in range(3):
                prefix = prefix + sid[level, codes[item, level]]
                inputs = torch.cat([one.user_BE[0], prefix])
                total = total + network.token_cross.levels[level](inputs)
            with torch.no_grad():
                recall = network.recall(one, prefix[None, None], total[None, None] / 3)
                rank = network.rank(one, retriever.e_ND[item][None, None], total[None, None] / 3)
            assert found.recall_RC[row, place].item() == pytest.approx(
                recall[0, 0, 0].sigmoid().item(), abs=1e-5
            )
            assert found.rank_RC[row, place].item() == pytest.approx(
                rank[0, 0, 0].sigmoid().item(), abs=1e-5
            )


def test_both_paths_score_an_impression_as_training_has_them(trained):
    model, batch, pooled, items, retriever = trained
    request = retriever.request(batch, pooled)
    rank, recall = retriever.score(batch, pooled, items, request)
    with torch.no_grad():
        expected = model(batch)[1].logits_BN[:, 0]
    torch.testing.assert_close(rank, expected)
    found = retriever.retrieve(request, items)
    item_of = batch.items[ITEM_ROW].values()[batch.candidate_B]
    for row in range(0, 24, 5):
        place = found.item_RC[row].tolist().index(int(item_of[row]))
        assert recall[row].sigmoid() == pytest.approx(found.recall_RC[row, place].item(), abs=1e-5)


def test_free_beams_end_in_existing_items(trained):
    model, batch, pooled, items, retriever = trained
    free = DigRetriever(model.network, retriever.index, np.arange(NUM_ITEMS), width=8**3, free=True)
    request = retriever.request(batch, pooled)
    found = free.retrieve(request, items)
    expected = retriever.retrieve(request, items)
    assert torch.equal(
        found.item_RC.sort(1).values[:, -NUM_ITEMS:], expected.item_RC.sort(1).values
    )
    one, other = (x.best(9, x.rank_RC)[1] for x in (found, expected))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scored", [1, 20])
def test_parts_of_a_large_search_give_the_same(trained, monkeypatch, scored):
    model, batch, pooled, items, retriever = trained
    request = retriever.request(batch, pooled)
    sid = model.network.sid_table(items)
    parent, code = torch.zeros(24, 8, dtype=torch.int64), torch.arange(8).expand(24, 8)
    with torch.no_grad():
        scorer = DigScorer(model.network, request, sid, task=0)
        whole = scorer.score(0, scorer.start(), parent, code)
        monkeypatch.setattr("trainer.dig_scorer._SCORED", scored)
        torch.testing.assert_close(scorer.score(0, scorer.start(), parent, code), whole)


@pytest.mark.parametrize("part", ["encoder", "standardization", "codebooks", "mixer"])
def test_fingerprint_follows_what_decides_sids_alone(trained, part):
    network = copy.deepcopy(trained[0].network)
    changed = {
        "encoder": next(network.encoder.parameters()),
        "standardization": network.encoder.text_mean_E,
        "codebooks": network.quantizer.codebooks_LKD,
        "mixer": next(network.tower.parameters()),
    }[part]
    with torch.no_grad():
        changed.flatten()[0] += 1
    is_same = tokens_fingerprint(network) == tokens_fingerprint(trained[0].network)
    assert is_same == (part == "mixer")
