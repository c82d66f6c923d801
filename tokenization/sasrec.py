"""Item embeddings from behaviour alone: SASRec (Kang and McAuley), the source that STORE quantizes.

A causal transformer reads each user's clicks and predicts the next one; its item table is the
embedding. Items that nobody clicked have none.

Shape suffixes: B users of a batch, T positions, D dimensions, I items, S sampled negatives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization.base import check_at_least
from tokenization.embedding_table import EmbeddingTable
from tokenization.pairs import ClickLog

logger = logging.getLogger(__name__)

_SORTED_BATCHES = 32  # sorted by length at a time


@dataclass(frozen=True, kw_only=True)
class SASRec:
    """Settings of SASRec.

    Args:
        dim: D of the item embeddings.
        max_length: last clicks of a user that are read.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide `dim`.
        dropout: in the blocks.
        num_negatives: items drawn for each batch as negatives, shared by its positions.
        num_epochs: passes over the users.
        batch_size: users a step.
        learning_rate: of Adam.
        seed: of weights, dropout, order and negatives.
    """

    dim: int = 64
    max_length: int = 50
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.2
    num_negatives: int = 512
    num_epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("dim", "num_layers", "num_heads", "num_negatives", "num_epochs", "batch_size"):
            check_at_least(getattr(self, name), 1, name=name)
        check_at_least(self.max_length, 2, name="max_length")
        if self.dim % self.num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}"
            )

    def fit(self, log: ClickLog) -> EmbeddingTable:
        """Return the embeddings of the items that it reads; see `items_of`.

        Args:
            log: clicks in time order; keep its share at or below what models are trained on.

        Raises:
            ValueError: see `ClickLog.open`; no user with two clicks.
        """
        item_ids, sequences_UT = read_sequences(log, self.max_length + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = SASRecNetwork(len(item_ids), self)
            for epoch, loss in enumerate(self.epochs(network, sequences_UT), start=1):
                logger.info("sasrec epoch %d of %d: loss %.4f", epoch, self.num_epochs, loss)
        held = items_of(sequences_UT)
        embeddings = network.items.weight[1:].detach().numpy()[held]
        return EmbeddingTable(item_ids=item_ids[held], embeddings=embeddings)

    def epochs(self, network: SASRecNetwork, sequences_UT: NDArray[np.int64]) -> Iterator[float]:
        """Train a network, an epoch for each mean loss that is taken from here.

        Args:
            network: of these settings.
            sequences_UT: see :func:`read_sequences`, `max_length + 1` wide.
        """
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        num_items = len(network.items.weight) - 1
        sequences = torch.from_numpy(sequences_UT)
        length_U = (sequences > 0).sum(dim=1)
        for _ in range(self.num_epochs):
            total = 0.0
            for rows in _batches(length_U, self.batch_size, generator):
                negatives = torch.randint(
                    1, num_items + 1, (self.num_negatives,), generator=generator
                )
                loss = network.loss(sequences[rows, : length_U[rows].max()], negatives)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            yield total / len(sequences)


def _batches(length_U: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Users in random order, those of like length together: little is computed for padding."""
    parts: list[Tensor] = []
    for rows in torch.randperm(len(length_U), generator=generator).split(
        batch_size * _SORTED_BATCHES
    ):
        parts += rows[length_U[rows].argsort(stable=True)].split(batch_size)
    return [parts[at] for at in torch.randperm(len(parts), generator=generator).tolist()]


class SASRecNetwork(nn.Module):
    """Item and position tables and causal blocks; item 0 is padding.

    Args:
        num_items: I.
        config: sizes.
    """

    def __init__(self, num_items: int, config: SASRec) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=0)
        self.positions = nn.Embedding(config.max_length, config.dim)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0.0
        block = nn.TransformerEncoderLayer(
            config.dim,
            config.num_heads,
            dim_feedforward=4 * config.dim,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, config.num_layers, norm=nn.LayerNorm(config.dim), enable_nested_tensor=False
        )

    def forward(self, clicks_BT: Tensor) -> Tensor:
        """States `(B, T, D)` after each click; sequences are filled from the left, 0 beyond."""
        length = clicks_BT.shape[1]
        x_BTD = self.items(clicks_BT) + self.positions.weight[:length]
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        states_BTD: Tensor = self.blocks(x_BTD, mask=mask_TT, is_causal=True)
        return states_BTD

    def loss(self, sequences_BT: Tensor, negatives_S: Tensor) -> Tensor:
        """Cross-entropy of each next click against sampled negatives.

        Args:
            sequences_BT: items from 1, 0 beyond the end.
            negatives_S: items from 1.
        """
        targets_BT = sequences_BT[:, 1:]
        there_BT = targets_BT > 0
        states_PD = self(sequences_BT[:, :-1])[there_BT]
        targets_P = targets_BT[there_BT]
        positive_P = (states_PD * self.items(targets_P)).sum(dim=1)
        negative_PS = states_PD @ self.items(negatives_S).T
        same_PS = targets_P.unsqueeze(1) == negatives_S
        logits = torch.cat(
            [positive_P.unsqueeze(1), negative_PS.masked_fill(same_PS, float("-inf"))], dim=1
        )
        return nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def read_sequences(log: ClickLog, max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return clicked items and each user's last clicks.

    Args:
        log: in time order.
        max_length: most clicks kept of a user, T.

    Returns:
        item ids int64 `(I,)`, ascending; sequences int64 `(U, T)` of places in them plus 1, oldest
        first, 0 beyond the end; users with a single click are left out.

    Raises:
        ValueError: see `ClickLog.open`; no user with two clicks.
    """
    blocks = list(log.clicks())
    users = np.concatenate([block[log.user] for block in blocks])
    items = np.concatenate([block[log.item] for block in blocks]).astype(np.int64)
    item_ids, place = np.unique(items, return_inverse=True)
    order = np.argsort(users, kind="stable")
    users, place = users[order], place.reshape(-1)[order]
    _, start, count = np.unique(users, return_index=True, return_counts=True)
    start, count = start[count > 1], count[count > 1]
    if not len(count):
        raise ValueError(f"{log.path}: expected users with two clicks or more, found none")
    return item_ids, last_clicks(place, start, count, max_length)


def items_of(sequences_UT: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the items that some sequence holds, ascending.

    Others (of users with a single click, or before a user's last clicks) were drawn as negatives at
    most: their vectors say nothing.
    """
    return np.unique(sequences_UT[sequences_UT > 0]) - 1


def last_clicks(
    place: NDArray[np.int64], start: NDArray[np.int64], count: NDArray[np.int64], max_length: int
) -> NDArray[np.int64]:
    """The last items of each user as the network reads them.

    Args:
        place: int64, items of all users, one user after the other, oldest first.
        start: int64 `(U,)`, where each user's items begin.
        count: int64 `(U,)`, how many there are.
        max_length: most items kept of a user, T.

    Returns:
        int64 `(U, T)` of `place` plus 1, oldest first, 0 beyond the end.
    """
    kept = np.minimum(count, max_length)
    column = np.arange(max_length)
    source = (start + count - kept)[:, None] + column
    there = column < kept[:, None]
    sequences = np.zeros(there.shape, dtype=np.int64)
    sequences[there] = place[source[there]] + 1
    return sequences
