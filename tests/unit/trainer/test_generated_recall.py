import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.integration.tiny_model import NUM_CODES, NUM_LEVELS, Case, batches_of_ranks
from trainer.generated_recall import (
    NextTokenScorer,
    check_can_generate,
    gen_embeddings,
    hits,
    most_popular,
)
from trainer.generation import beam_search
from trainer.modules.hybrid_tokens import GEN_TOKEN
from trainer.modules.next_token_config import NextTokenConfig

NEXT_TOKEN = NextTokenConfig(dim=8, num_layers=2, num_heads=2, expansion=2.0)
CASE = Case(name="joint", num_steps=1, batch_size=6, next_token=NEXT_TOKEN)


@pytest.fixture
def batch():
    ((batch,),) = batches_of_ranks(CASE, 1)
    return batch


def test_whole_gen_table_is_looked_up_through_the_sparse_side(batch):
    model = CASE.model("cpu")
    found = gen_embeddings(model.sparse, batch, num_tokens=NUM_LEVELS * NUM_CODES)
    (weight,) = (w for name, w in model.sparse.named_parameters() if GEN_TOKEN in name)
    assert torch.equal(found, weight)


def test_generated_scores_are_the_log_probabilities_that_the_loss_trains(batch):
    """Of all tuples, for every row: the beam's score is minus the teacher-forced loss."""
    model = CASE.model("cpu").eval()
    module = model.network.next_token
    with torch.no_grad():
        pooled, items = model.sparse(batch)
        gen_Vd = gen_embeddings(model.sparse, batch, num_tokens=NUM_LEVELS * NUM_CODES)
        rows = torch.tensor([4, 1, 5])
        context = model.network.encode_context(batch, pooled, items, rows)
        beams = beam_search(
            NextTokenScorer(model.network, context, gen_Vd),
            num_levels=NUM_LEVELS,
            width=NUM_CODES**NUM_LEVELS,
        )
        for row in range(len(rows)):
            one = context.take(torch.tensor([row]))
            score = {}
            for codes in itertools.product(range(NUM_CODES), repeat=NUM_LEVELS):
                if sum(codes) % 5:
                    continue
                codes_L = torch.tensor(codes)
                gen_Ld = gen_Vd[codes_L + NUM_CODES * torch.arange(NUM_LEVELS)]
                score[codes] = -float(module(one, gen_Ld.unsqueeze(0), codes_L.unsqueeze(0)))
            found = {
                tuple(codes): float(value)
                for codes, value in zip(
                    beams.codes_RWL[row].tolist(), beams.scores_RW[row], strict=True
                )
            }
            assert len(found) == NUM_CODES**NUM_LEVELS
            assert {codes: found[codes] for codes in score} == pytest.approx(score, abs=1e-4)


def test_popular_tuples_are_counted_over_positive_impressions_and_joined_items():
    codes = np.array([[0, 1], [2, 3], [0, 1], [4, 5], [6, 7]], dtype=np.int32)
    item_of_row = np.array([10, 12, 11, 11, 13, 14, 14, 14])
    label = np.array([1, 1, 1, 0, 1, 0, 0, 1])
    dataset = SimpleNamespace(
        schema=SimpleNamespace(item="item_id"),
        read=lambda rows, columns: {"click": label, "item_id": item_of_row},
        item_rows=lambda ids: ids - 10,
    )
    trainer = SimpleNamespace(dataset=dataset, splits=SimpleNamespace(train=None))
    found = most_popular(trainer, codes, "click").tolist()
    assert found[0] == [0, 1]  # two items of one tuple, one positive each
    assert sorted(found) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_hits_are_equal_tuples():
    lists = torch.tensor([[[1, 2], [3, 4]], [[1, 2], [2, 2]]])
    targets = torch.tensor([[3, 4], [2, 1]])
    assert hits(lists, targets).tolist() == [[False, True], [False, False]]


def test_a_model_without_generative_loss_and_a_short_beam_are_refused():
    experiment = SimpleNamespace(name="plain", model=replace(CASE.config(), next_token=None))
    with pytest.raises(ValueError, match=r"model\.next_token of 'plain' is None"):
        check_can_generate(experiment, 20)
    config = replace(NEXT_TOKEN, weight=0.0, feeds_tower=True)
    experiment.model = replace(CASE.config(), next_token=config)
    with pytest.raises(ValueError, match="without a loss"):
        check_can_generate(experiment, 20)
    experiment.model = CASE.config()
    with pytest.raises(ValueError, match="9 wide, expected at least 10"):
        check_can_generate(experiment, 9)
    check_can_generate(experiment, 10)
