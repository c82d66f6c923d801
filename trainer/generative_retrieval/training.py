"""How generators are trained: settings, epochs, and the end of training by validation recall."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.baselines.retriever import Retriever
from trainer.ranked_lists import score_lists
from trainer.retrieval_task import RetrievalCases

logger = logging.getLogger(__name__)

CHOSEN_AT = 10
"""Training ends by Recall at this K; equal recalls are told apart by NDCG."""


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Training and search of a generator.

    Args:
        num_epochs: passes over the users' sequences at most.
        batch_size: windows of sequences a step.
        learning_rate: of AdamW, after a linear start; it falls linearly, to nothing after
            `num_epochs`.
        warmup_steps: of that start.
        weight_decay: of AdamW.
        check_every: epochs between two looks at the validation cases.
        patience: looks without progress after which training ends.
        valid_cases: of these cases that are looked at, drawn once.
        beam_width: tuples that beam search keeps; at least as many as items are asked for.
    """

    num_epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    check_every: int = 2
    patience: int = 5
    valid_cases: int = 2_000
    beam_width: int = 20

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        counts = ("num_epochs", "batch_size", "check_every", "patience", "valid_cases")
        for name in (*counts, "beam_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}, expected 1 or more")
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.learning_rate <= 0:
            raise ValueError(
                f"training.warmup_steps, weight_decay and learning_rate: expected at least 0, 0 "
                f"and above 0, found {self.warmup_steps}, {self.weight_decay} and "
                f"{self.learning_rate}"
            )


class Stepper:
    """AdamW with a linear start, a linear fall and a limit on gradients.

    Args:
        parameters: that it moves.
        learning_rate: after the start.
        weight_decay: of AdamW.
        warmup_steps: of the start.
        num_steps: after which the learning rate has fallen to nothing; None for a constant one.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        num_steps: int | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=learning_rate, weight_decay=weight_decay
        )

        def share(step: int) -> float:
            left = 1.0 if num_steps is None else max(0.0, 1 - step / num_steps)
            return left * min(1.0, (step + 1) / (warmup_steps + 1))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, share)

    def step(self, loss: Tensor) -> float:
        """Move the parameters down the gradient of `loss`; return its value."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        return float(loss.detach())


def train_until_best(
    retriever: Retriever,
    cases: RetrievalCases,
    training: GeneratorTraining,
    *,
    epoch: Callable[[int], float],
    state: Callable[[], Any],
    at_least: int = 0,
    seed: int,
) -> Any:
    """Train until Recall@10 of validation cases (then NDCG@10) is best; return that state.

    Args:
        retriever: asked for lists between epochs.
        cases: validation; without any, all epochs are trained and the last state is returned.
        training: settings.
        epoch: trains one (numbered from 1) and returns its mean loss.
        state: what is to be kept of the model; copied here.
        at_least: epochs before which there is no look.
        seed: of the draw of cases.
    """
    drawn = np.random.default_rng(seed).permutation(len(cases))[: training.valid_cases]
    looked_at = cases.take(np.sort(drawn))
    best, kept, looks_without = (-1.0, -1.0), None, 0
    for number in range(1, training.num_epochs + 1):
        loss = epoch(number)
        is_due = number % training.check_every == 0 and number >= at_least
        if not len(looked_at) or not (is_due or number == training.num_epochs):
            continue
        lists = retriever.top(looked_at.history, CHOSEN_AT)
        scores = score_lists(lists, looked_at, at=(CHOSEN_AT,))[CHOSEN_AT].mean()
        logger.info(
            "%s: epoch %d, loss %.4f, valid recall@%d %.4f, NDCG %.4f",
            retriever.title,
            number,
            loss,
            CHOSEN_AT,
            scores["recall"],
            scores["ndcg"],
        )
        found = (scores["recall"], scores["ndcg"])
        if found > best:
            best, kept, looks_without = found, copy.deepcopy(state()), 0
        else:
            looks_without += 1
            if looks_without >= training.patience:
                break
    return copy.deepcopy(state()) if kept is None else kept
