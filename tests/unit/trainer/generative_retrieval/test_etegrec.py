"""Who learns in which epoch of ETEGRec, and the whole on a small pattern."""

from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.generative_retrieval.successor_task import NUM_ITEMS, successor_task
from tokenization.rq_vae import RQVAE
from tokenization.sasrec import SASRec
from trainer.generative_retrieval.etegrec import ETEGRec, ETEGRecConfig
from trainer.generative_retrieval.generator import GeneratorConfig
from trainer.generative_retrieval.training import GeneratorTraining
from trainer.ranked_lists import score_lists

TOKENIZER = RQVAE(
    num_levels=2, num_codes=8, hidden=(16,), latent_dim=8, num_epochs=60, learning_rate=1e-2
)


def retriever(**settings):
    training = GeneratorTraining(
        num_epochs=20, batch_size=32, learning_rate=1e-2, warmup_steps=5, check_every=5, patience=3
    )
    drawn = torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(4)).numpy()
    content = settings.pop("content", drawn)
    config = ETEGRecConfig(
        tokenizer=TOKENIZER,
        sasrec=SASRec(dim=6, num_heads=1, num_layers=1, num_epochs=2, max_length=6),
        num_cycles=2,
        cycle_epochs=3,
        collisions="next_nearest",
        **settings,
    )
    sizes = GeneratorConfig(dim=32, num_layers=2, num_heads=2, max_items=6, dropout=0.0)
    return ETEGRec(config, content, sizes, training)


def test_it_learns_who_follows_whom():
    task, _, _ = successor_task()
    made = retriever()
    made.fit(task, seed=0)
    lists = made.top(task.test.history, 10)
    assert score_lists(lists, task.test, at=(1,))[1].mean()["recall"] > 0.9


def test_tokenizer_and_generator_learn_in_turns(monkeypatch):
    seen = []

    def watched(retriever, cases, training, *, epoch, state, at_least, seed):
        assert at_least == 6
        cells = dict(zip(epoch.__code__.co_freevars, epoch.__closure__, strict=True))
        generator = cells["generator"].cell_contents
        tokenizer = cells["both"].cell_contents.tokenizer
        for number in range(1, 9):
            before = [module.state_dict() for module in (generator, tokenizer)]
            before = [{name: t.clone() for name, t in one.items()} for one in before]
            epoch(number)
            seen.append(
                "".join(
                    letter
                    for letter, module, old in zip(
                        "gt", (generator, tokenizer), before, strict=True
                    )
                    if any((old[name] != t).any() for name, t in module.state_dict().items())
                )
            )
        return state()

    monkeypatch.setattr("trainer.generative_retrieval.etegrec.train_until_best", watched)
    task, _, _ = successor_task(num_users=40)
    made = retriever(content=None)
    made.fit(task, seed=0)
    assert seen == ["t", "g", "g", "t", "g", "g", "g", "g"]
    assert made.top(task.test.history, 3).shape == (60, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycle_epochs": 1}, "etegrec.cycle_epochs is 1, expected 2 or more"),
        ({"sequence_item": -1.0}, "etegrec.sequence_item is -1.0"),
        ({"temperature": 0.0}, "etegrec.temperature is 0.0, expected above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ETEGRecConfig(**settings)
