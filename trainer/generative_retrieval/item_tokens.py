"""Where a generative retriever's tokens come from: an artifact, or a tokenizer fitted to the task.

Legend: N items, D dimensions of the content, C collaborative ones, L levels.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact
from tokenization.base import Codes, Embeddings
from tokenization.co_clicks import CoClicks
from tokenization.collaborative import CollaborativeRQVAE
from tokenization.collisions import Collisions, resolve_collisions
from tokenization.pairs import co_clicks
from tokenization.sasrec import SASRec, SASRecNetwork, items_of, last_clicks
from tokenization.tokenizers import AnyTokenizer
from trainer.retrieval_task import RetrievalTask

logger = logging.getLogger(__name__)


class ItemTokens(NamedTuple):
    """Tokens of a catalogue.

    Attributes:
        codes: int32 (N, L), by item row.
        num_codes: of a level.
    """

    codes: Codes
    num_codes: int


class TokenSource(Protocol):
    """Gives every item of a task its tokens."""

    def tokens(self, task: RetrievalTask, *, seed: int) -> ItemTokens:
        """Tokens of item rows 0 to N - 1.

        Args:
            task: of which training sequences alone may be looked at.
            seed: of everything that is random.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArtifactTokens:
    """Tokens of an artifact; see that they were made of training rows alone.

    Args:
        artifact: of `farewell tokenize`.
        item_ids: int64 (N,), ids by item row (`Dataset.item_ids`).
    """

    artifact: TokenArtifact
    item_ids: NDArray[np.int64]

    def tokens(self, task: RetrievalTask, *, seed: int) -> ItemTokens:
        """The artifact's codes in the order of items.parquet.

        Raises:
            ValueError: for other ids than the task has items, or an item without tokens.
        """
        check_rows("item_ids", len(self.item_ids), task)
        own = self.artifact.item_ids
        order = np.argsort(own)
        place = order[np.searchsorted(own, self.item_ids, sorter=order).clip(max=len(own) - 1)]
        lost = np.flatnonzero(own[place] != self.item_ids)
        if len(lost):
            raise ValueError(
                f"tokens: {len(lost)} of {len(self.item_ids)} items have none in the artifact, the "
                f"first is {self.item_ids[lost[0]]}; add them with `farewell tokenize --update`"
            )
        return ItemTokens(self.artifact.codes[place], self.artifact.num_codes)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedTokens:
    """Tokens of a tokenizer that is fitted to the catalogue, with behaviour where it wants some.

    Args:
        tokenizer: settings; its seed is replaced.
        content: float32 (N, D) by item row; None for a catalogue without any, where SASRec's item
            vectors take its place.
        collisions: what becomes of items with equal codes; `keep` leaves them to popularity.
        sasrec: makes the collaborative embeddings of tokenizers that learn from behaviour too, of
            the task's training sequences (its dim is their `collaborative_dim`), and those of
            missing content.
    """

    tokenizer: AnyTokenizer
    content: Embeddings | None
    collisions: Collisions = "keep"
    sasrec: SASRec = field(default_factory=SASRec)

    def tokens(self, task: RetrievalTask, *, seed: int) -> ItemTokens:
        """Fit and encode.

        Raises:
            ValueError: for content of another number of items, or a `collaborative_dim` that is not
                SASRec's.
        """
        tokenizer = dataclasses.replace(self.tokenizer, seed=seed)
        if self.content is not None:
            check_rows("content", len(self.content), task)
        embeddings = self.content
        if embeddings is None:
            embeddings = behaviour = sasrec_items(task, self.sasrec, seed=seed)
        if isinstance(tokenizer, CollaborativeRQVAE):
            if tokenizer.collaborative_dim != self.sasrec.dim:
                raise ValueError(
                    f"tokenizer.collaborative_dim is {tokenizer.collaborative_dim}, but sasrec.dim "
                    f"is {self.sasrec.dim}; set both to the same"
                )
            if self.content is not None:
                behaviour = sasrec_items(task, self.sasrec, seed=seed)
            embeddings = np.concatenate([embeddings, behaviour], axis=1)
        return _fitted(tokenizer, embeddings, self.collisions)


@dataclass(frozen=True, kw_only=True, eq=False)
class CoClickTokens:
    """Tokens of co-click vectors beside the content: items clicked together share prefixes.

    They are TRM's collaborative item embeddings and gen-tokens (sections 3.1 and 3.2); see
    `tokenization.co_clicks`.

    Args:
        tokenizer: settings; its seed is replaced.
        content: float32 (N, D) by item row, all that is known of items that nobody clicked; None
            for a catalogue without any.
        co_clicks: settings of the vectors.
    """

    tokenizer: AnyTokenizer
    content: Embeddings | None
    co_clicks: CoClicks = field(default_factory=CoClicks)

    def tokens(self, task: RetrievalTask, *, seed: int) -> ItemTokens:
        """Fit and encode.

        Raises:
            ValueError: for content of another number of items, or no two items that the same user
                clicked within the window.
        """
        users = np.repeat(np.arange(len(task.train)), task.train.lengths)
        window, rows_N = self.co_clicks.window, np.arange(task.num_items)
        pairs = co_clicks(users, task.train.values, num_items=task.num_items, window=window)
        if self.content is None:
            embeddings = self.co_clicks.vectors(rows_N, pairs)
        else:
            check_rows("content", len(self.content), task)
            embeddings = self.co_clicks.beside(self.content, rows_N, pairs)
        return _fitted(dataclasses.replace(self.tokenizer, seed=seed), embeddings, "keep")


def _fitted(tokenizer: AnyTokenizer, embeddings: Embeddings, collisions: Collisions) -> ItemTokens:
    """Fit a tokenizer to a catalogue and encode it."""
    fitted = tokenizer.fit(embeddings)
    codes = resolve_collisions(fitted.encode(embeddings), embeddings, fitted, how=collisions)
    distinct = len(np.unique(codes, axis=0))
    logger.info("%s: %d items have %d different tuples", fitted.kind, len(codes), distinct)
    return ItemTokens(codes, fitted.num_codes)


def sasrec_items(task: RetrievalTask, config: SASRec, *, seed: int) -> Embeddings:
    """Item vectors of a SASRec on the training sequences, float32 (N, C).

    Items of no sequence that it reads get the mean of the others: nothing is known of them.

    Args:
        task: of at least one sequence of two items.
        config: its seed is replaced.
        seed: of weights and order.
    """
    config = dataclasses.replace(config, seed=seed)
    lengths = task.train.lengths
    longer = lengths > 1
    if not longer.any():
        raise ValueError("SASRec: expected training sequences of two items or more, found none")
    sequences_UT = last_clicks(
        task.train.values, task.train.offsets[:-1][longer], lengths[longer], config.max_length + 1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SASRecNetwork(task.num_items, config)
        for epoch, loss in enumerate(config.epochs(network, sequences_UT), start=1):
            logger.info("sasrec epoch %d of %d: loss %.4f", epoch, config.num_epochs, loss)
    vectors: Embeddings = network.items.weight[1:].detach().numpy().copy()
    known = np.zeros(task.num_items, dtype=np.bool_)
    known[items_of(sequences_UT)] = True
    vectors[~known] = vectors[known].mean(axis=0)
    return vectors


def check_rows(name: str, number: int, task: RetrievalTask) -> None:
    """Raise a ValueError unless there is one of something for each item of the task."""
    if number != task.num_items:
        raise ValueError(
            f"{name}: expected one for each of the task's {task.num_items} items, found {number}"
        )
