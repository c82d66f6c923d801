"""From sequences to lists of items: tokens that are made, training that ends, what is left out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.trainer.generative_retrieval.successor_task import (
    NUM_ITEMS,
    ragged,
    successor_task,
)
from tokenization.co_clicks import CoClicks
from tokenization.letter import LETTER
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans
from tokenization.rq_vae import RQVAE
from tokenization.sasrec import SASRec
from trainer.generative_retrieval.etegrec import ETEGRec, ETEGRecConfig
from trainer.generative_retrieval.generative_retriever import GenerativeRetriever
from trainer.generative_retrieval.generator import GeneratorConfig
from trainer.generative_retrieval.item_tokens import (
    ArtifactTokens,
    CoClickTokens,
    FittedTokens,
    ItemTokens,
    sasrec_items,
)
from trainer.generative_retrieval.training import GeneratorTraining, Stepper, train_until_best
from trainer.ranked_lists import score_lists

TINY = GeneratorConfig(dim=32, num_layers=2, num_heads=2, max_items=6, dropout=0.0)
QUICK = GeneratorTraining(
    num_epochs=15, batch_size=32, learning_rate=1e-2, warmup_steps=5, check_every=5, beam_width=5
)


@dataclasses.dataclass
class Given:
    """Tokens that are there already."""

    codes: np.ndarray

    def tokens(self, task, *, seed):
        return ItemTokens(self.codes, 8)


def recall_at_1(retriever, task):
    lists = retriever.top(task.test.history, 10)
    return score_lists(lists, task.test, at=(1,))[1].mean()["recall"]


@pytest.fixture(scope="module")
def trained():
    task, successor, codes = successor_task()
    retriever = GenerativeRetriever("given", Given(codes), TINY, QUICK)
    retriever.fit(task, seed=0)
    return retriever, task, successor, codes


def test_it_learns_who_follows_whom(trained):
    retriever, task, successor, _ = trained
    assert recall_at_1(retriever, task) > 0.9
    every = ragged([[item] for item in range(NUM_ITEMS)])
    assert (retriever.top(every, 1)[:, 0] == successor).mean() > 0.9


def test_lists_hold_every_item_once_and_then_nothing(trained):
    retriever, task, _, _ = trained
    lists = retriever.top(task.test.history, NUM_ITEMS + 2)
    assert (np.sort(lists[:, :NUM_ITEMS], axis=1) == np.arange(NUM_ITEMS)).all()
    assert (lists[:, NUM_ITEMS:] == -1).all()
    empty = retriever.top(ragged([[], [3]]), 4)
    assert empty.shape == (2, 4)
    assert (empty >= 0).all()


def test_same_seed_same_lists(trained):
    _, task, _, codes = trained
    short = dataclasses.replace(QUICK, num_epochs=2)
    first, again, other = (
        GenerativeRetriever("given", Given(codes), TINY, short) for _ in range(3)
    )
    first.fit(task, seed=1)
    again.fit(task, seed=1)
    other.fit(task, seed=2)
    lists = [one.top(task.test.history, 10) for one in (first, again, other)]
    np.testing.assert_array_equal(lists[0], lists[1])
    assert (lists[0] != lists[2]).any()


def test_known_items_are_left_out_where_the_task_says_so(trained):
    _, _, _, codes = trained
    task, _, _ = successor_task(leave_out_history=True)
    retriever = GenerativeRetriever("given", Given(codes), TINY, QUICK)
    retriever.fit(task, seed=0)
    lists = retriever.top(task.test.history, 5)
    for case, best in enumerate(lists.tolist()):
        history = task.test.history.gather(np.array([case])).values
        assert not set(best) & set(history.tolist())
        assert min(best) >= 0
    assert recall_at_1(retriever, task) > 0.9
    # A history of nearly everything: what is left is found by wider beams, and no more than it.
    known = ragged([range(NUM_ITEMS - 2), [3]])
    lists = retriever.top(known, 4)
    assert set(lists[0].tolist()) == {NUM_ITEMS - 2, NUM_ITEMS - 1, -1}
    assert lists[0, 1] >= 0
    assert len(set(lists[1].tolist()) - {3, -1}) == 4


class Scripted:
    """A retriever whose recall follows a script: right in so many of ten cases."""

    title = "scripted"

    def __init__(self, cases, script):
        self.cases, self.script, self.epochs = cases, script, 0

    def epoch(self, number):
        self.epochs += 1
        assert number == self.epochs
        return 0.0

    def top(self, histories, k):
        right = np.arange(len(histories)) < self.script[self.epochs - 1]
        lists = np.full((len(histories), k), -1, dtype=np.int64)
        lists[:, 0] = np.where(right, self.cases.target, -1)
        return lists


def run(script, *, num_cases=10, at_least=0, **settings):
    task, _, _ = successor_task(num_users=5)
    cases = task.valid.take(np.arange(num_cases))
    scripted = Scripted(cases, script)
    kept = train_until_best(
        scripted,
        cases,
        GeneratorTraining(num_epochs=len(script), check_every=1, **settings),
        epoch=scripted.epoch,
        state=lambda: scripted.epochs,
        at_least=at_least,
        seed=0,
    )
    return kept, scripted.epochs


def test_training_ends_when_recall_no_longer_grows_and_keeps_the_best():
    assert run([1, 5, 4, 5, 9, 9], patience=2) == (2, 4)
    assert run([1, 5, 4, 5, 9, 9], patience=3) == (5, 6)
    assert run([9, 2, 3, 1], patience=3, at_least=2) == (3, 4)
    assert run([1, 2, 3], num_cases=0) == (3, 3)


@pytest.mark.parametrize(
    ("num_steps", "shares"),
    [(None, [1 / 3, 2 / 3, 1, 1, 1, 1, 1]), (5, [1 / 3, 0.8 * 2 / 3, 0.6, 0.4, 0.2, 0, 0])],
)
def test_a_step_is_as_long_as_the_schedule_says(num_steps, shares):
    parameter = torch.nn.Parameter(torch.tensor(1.0))
    stepper = Stepper([parameter], learning_rate=0.01, warmup_steps=2, num_steps=num_steps)
    moved = []
    for _ in shares:
        before = parameter.item()
        stepper.step(2 * parameter)  # the same gradient every time: Adam moves by its rate
        moved.append((before - parameter.item()) / 0.01)
    np.testing.assert_allclose(moved, shares, atol=1e-4)


@pytest.mark.parametrize("title", ["TIGER", "ETEGRec"])
def test_learning_rates_fall_to_nothing_in_the_last_epoch(title, monkeypatch):
    task, _, _ = successor_task(num_users=40)
    found = []
    step = Stepper.step

    def watched(self, loss):
        found.append(self._optimizer.param_groups[0]["lr"])
        return step(self, loss)

    monkeypatch.setattr(Stepper, "step", watched)
    training = dataclasses.replace(QUICK, num_epochs=3, patience=3, warmup_steps=0)
    if title == "TIGER":
        source = FittedTokens(tokenizer=RQKMeans(num_levels=2, num_codes=4), content=content())
        made, own_epochs = GenerativeRetriever(title, source, TINY, training), 3
    else:  # a cycle of three epochs, of which the first is the tokenizer's
        tokenizer = RQVAE(num_levels=2, num_codes=4, hidden=(8,), latent_dim=4, num_epochs=2)
        joint = ETEGRecConfig(tokenizer=tokenizer, num_cycles=1, cycle_epochs=3)
        made, own_epochs = ETEGRec(joint, content(), TINY, training), 5
    made.fit(task, seed=0)
    own = [rate for rate in found if rate != ETEGRecConfig().learning_rate]
    assert len(own) % own_epochs == 0
    expected = training.learning_rate * np.arange(len(own), 0, -1) / len(own)
    np.testing.assert_allclose(own, expected, rtol=1e-6)


def content():
    return np.random.default_rng(3).normal(size=(NUM_ITEMS, 6)).astype(np.float32)


def test_tokens_of_an_artifact_follow_the_order_of_items():
    task, _, _ = successor_task(num_users=5)
    ids = np.random.default_rng(0).permutation(100)[: NUM_ITEMS + 3]
    vectors = np.random.default_rng(1).normal(size=(len(ids), 4)).astype(np.float32)
    tokenizer = RQKMeans(num_levels=2, num_codes=4, num_iterations=3)
    artifact = fit_tokens(ids, vectors, tokenizer=tokenizer, mem=MemTokens(num_merges=0))
    rows = np.random.default_rng(2).permutation(len(ids))[:NUM_ITEMS]
    made = ArtifactTokens(artifact=artifact, item_ids=ids[rows]).tokens(task, seed=0)
    np.testing.assert_array_equal(made.codes, artifact.codes[rows])
    assert made.num_codes == 4
    strange = ids[rows].copy()
    strange[4] = 1000
    with pytest.raises(ValueError, match=r"1 of 24 items have none in the artifact.* 1000"):
        ArtifactTokens(artifact=artifact, item_ids=strange).tokens(task, seed=0)
    with pytest.raises(ValueError, match="each of the task's 24 items, found 5"):
        ArtifactTokens(artifact=artifact, item_ids=ids[:5]).tokens(task, seed=0)


def test_tokenizers_that_learn_from_behaviour_get_it_from_training_sequences():
    task, _, _ = successor_task(num_users=40)
    tokenizer = LETTER(
        num_levels=2, num_codes=4, hidden=(8,), latent_dim=4, num_epochs=2, collaborative_dim=4
    )
    sasrec = SASRec(dim=4, num_heads=1, num_layers=1, num_epochs=1, max_length=6)
    source = FittedTokens(
        tokenizer=tokenizer, content=content(), collisions="extra_code", sasrec=sasrec
    )
    made = source.tokens(task, seed=5)
    assert made.codes.shape == (NUM_ITEMS, 3)
    assert len(np.unique(made.codes, axis=0)) == NUM_ITEMS
    both = np.concatenate([content(), sasrec_items(task, sasrec, seed=5)], axis=1)
    expected = dataclasses.replace(tokenizer, seed=5).fit(both).encode(both)
    np.testing.assert_array_equal(made.codes[:, :2], expected)
    wrong = dataclasses.replace(tokenizer, collaborative_dim=8)
    with pytest.raises(ValueError, match=r"collaborative_dim is 8, but sasrec.dim is 4"):
        dataclasses.replace(source, tokenizer=wrong).tokens(task, seed=0)
    with pytest.raises(ValueError, match=r"content: expected one for each .* 24 items, found 3"):
        dataclasses.replace(source, content=content()[:3]).tokens(task, seed=0)


def test_items_without_content_are_what_their_behaviour_is():
    task, _, _ = successor_task(num_users=40)
    sasrec = SASRec(dim=4, num_heads=1, num_layers=1, num_epochs=1, max_length=6)
    behaviour = sasrec_items(task, sasrec, seed=5)
    shape = {"num_levels": 2, "num_codes": 4, "hidden": (8,), "latent_dim": 4, "num_epochs": 2}
    for tokenizer, embeddings in (
        (RQVAE(**shape), behaviour),
        (LETTER(**shape, collaborative_dim=4), np.concatenate([behaviour, behaviour], axis=1)),
    ):
        source = FittedTokens(tokenizer=tokenizer, content=None, sasrec=sasrec)
        expected = dataclasses.replace(tokenizer, seed=5).fit(embeddings).encode(embeddings)
        np.testing.assert_array_equal(source.tokens(task, seed=5).codes, expected)


def test_items_that_are_clicked_together_share_prefixes():
    group = np.arange(NUM_ITEMS) % 4
    rng = np.random.default_rng(0)
    lists = [rng.permutation(np.flatnonzero(group[:-4] == n % 4)) for n in range(80)]
    task = dataclasses.replace(successor_task()[0], users=np.arange(80), train=ragged(lists))
    content = np.eye(4, dtype=np.float32)[group[::-1]]  # tells others together
    tokenizer = RQKMeans(num_levels=2, num_codes=4)
    of_clicks = CoClicks(dim=8)
    source = CoClickTokens(tokenizer=tokenizer, content=content, co_clicks=of_clicks)
    first = source.tokens(task, seed=0).codes[:, 0]
    for one in range(4):
        assert len(set(first[:-4][group[:-4] == one])) == 1
    assert len(set(first[:-4])) == 4
    # What nobody clicked has content alone: equal content, equal tokens.
    content[-4:] = content[-1]
    assert len(np.unique(source.tokens(task, seed=0).codes[-4:], axis=0)) == 1
    without = CoClickTokens(tokenizer=tokenizer, content=None, co_clicks=of_clicks)
    assert without.tokens(task, seed=0).codes.shape == (NUM_ITEMS, 2)
    with pytest.raises(ValueError, match="content: expected one for each of the task's 24 items"):
        CoClickTokens(tokenizer=tokenizer, content=content[:3]).tokens(task, seed=0)
    single = dataclasses.replace(task, train=ragged([[n % NUM_ITEMS] for n in range(80)]))
    with pytest.raises(ValueError, match="no user clicked two of these items within 5 clicks"):
        source.tokens(single, seed=0)


def test_items_of_no_sequence_get_the_mean_of_the_others():
    task, _, _ = successor_task(num_users=40)
    first = task.train.values[task.train.offsets[:-1]]
    small = dataclasses.replace(task, train=ragged([[a, (a + 1) % 12] for a in first % 12]))
    sasrec = SASRec(dim=4, num_heads=1, num_layers=1, num_epochs=1, max_length=6)
    vectors = sasrec_items(small, sasrec, seed=0)
    known = np.unique(small.train.values)
    assert len(known) < NUM_ITEMS
    lost = np.setdiff1d(np.arange(NUM_ITEMS), known)
    mean = vectors[known].mean(axis=0)
    np.testing.assert_allclose(vectors[lost], np.tile(mean, (len(lost), 1)), rtol=1e-5)
    # A single click, and clicks before the last ones that are read, teach nothing either.
    long = [[0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 4, 5], [10]]
    vectors = sasrec_items(dataclasses.replace(task, train=ragged(long)), sasrec, seed=0)
    mean = vectors[2:9].mean(axis=0)
    np.testing.assert_allclose(vectors[[0, 1, 10]], np.tile(mean, (3, 1)), rtol=1e-5)
    alone = dataclasses.replace(task, train=ragged([[1], [2]]))
    with pytest.raises(ValueError, match="two items or more, found none"):
        sasrec_items(alone, sasrec, seed=0)


@pytest.mark.parametrize("name", ["num_epochs", "patience", "beam_width", "valid_cases"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"training.{name} is 0"):
        GeneratorTraining(**{name: 0})
    with pytest.raises(ValueError, match="learning_rate"):
        GeneratorTraining(learning_rate=0.0)


def test_the_state_of_torch_s_generator_is_left_alone(trained):
    _, task, _, codes = trained
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    once = dataclasses.replace(QUICK, num_epochs=1)
    GenerativeRetriever("given", Given(codes), TINY, once).fit(task, seed=0)
    assert torch.rand(1) == expected
