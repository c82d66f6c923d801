"""Item embeddings aligned with what users do, by a head over any encoder (TRM section 3.1).

The encoder stays as it is; a residual head over its mean-pooled embeddings is trained with the
contrastive loss of Eq. 3 on item-item pairs mined from a log (`tokenization.pairs`). The head sees
content alone, so that items without a single click are aligned too.

Shape suffixes: N items, B pairs of a batch, D dimensions.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization.autoencoder import Standardizer, blocks
from tokenization.base import Embeddings, check_at_least, check_embeddings
from tokenization.contrastive import contrastive_loss
from tokenization.pairs import ClickLog, Pairs, mine_co_clicks, only_best, rows_of
from tokenization.spectral import spectral_map

logger = logging.getLogger(__name__)

HeadKind = Literal["contrastive", "spectral"]
"""How a head learns."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Settings of the alignment: which items belong together, and the heads that learn it.

    Args:
        window: clicks of a user within which two items belong together.
        min_count: how often they must.
        heads: each learns apart, and their embeddings are put side by side: `contrastive` by
            InfoNCE (Eq. 3), `spectral` in closed form on all pairs, within seconds
            (`tokenization.spectral`); several see more than one.
        num_best: pairs in which one is among the other's so many best, for contrastive heads; None
            for all.
        ridge: of a spectral head, an item.
        hidden: width of a contrastive head's hidden layer.
        out_dim: dimensions that a head gives; None for as many as go in.
        temperature: tau of Eq. 3.
        dropout: on the embeddings that go in and on the hidden layer, against learning items by
            heart.
        num_epochs: passes over the pairs.
        batch_size: pairs of all ranks in a step, each the negatives of the others.
        learning_rate: of AdamW, with cosine decay.
        weight_decay: of AdamW.
        seed: of weights, dropout and order.
    """

    window: int = 5
    min_count: int = 2
    heads: tuple[HeadKind, ...] = ("contrastive",)
    num_best: int | None = 20
    ridge: float = 0.2
    hidden: int = 1024
    out_dim: int | None = None
    temperature: float = 0.07
    dropout: float = 0.2
    num_epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("window", "min_count", "hidden", "num_epochs", "batch_size"):
            check_at_least(getattr(self, name), 1, name=name)
        if not self.heads or not set(self.heads) <= {"contrastive", "spectral"} or self.ridge <= 0:
            raise ValueError(
                f"heads and ridge: expected contrastive and spectral ones, and above 0, found "
                f"{self.heads} and {self.ridge}"
            )
        if self.num_best is not None:
            check_at_least(self.num_best, 1, name="num_best")
        check_at_least(self.batch_size, 2, name="batch_size")
        if self.temperature <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"temperature and dropout: expected above 0 and in [0, 1), found "
                f"{self.temperature} and {self.dropout}"
            )

    def mine(self, log: ClickLog) -> Pairs:
        """Return the pairs of a log that the heads are to be trained on.

        Raises:
            ValueError: see `mine_co_clicks`.
        """
        return mine_co_clicks(log, window=self.window, min_count=self.min_count)

    def fit(
        self, item_ids: NDArray[np.integer], embeddings: NDArray[np.floating], pairs: Pairs
    ) -> AlignmentHeads:
        """Return the heads trained on pairs of items.

        Under torchrun each rank takes its share of every batch; all ranks return the same heads.

        Args:
            item_ids: integers `(N,)`.
            embeddings: floating `(N, D)`, row `n` is that of `item_ids[n]`.
            pairs: item-item pairs; those of items without embedding are left out.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer than two pairs left.
        """
        checked = check_embeddings(embeddings)
        pairs = pairs.take(rows_of(pairs, item_ids)[1])
        if len(pairs) < 2:
            raise ValueError(
                f"pairs: expected at least two of items that have embeddings, found {len(pairs)}"
            )
        heads = []
        for place, kind in enumerate(self.heads):
            used = pairs
            if kind == "contrastive" and self.num_best is not None:
                used = only_best(pairs, self.num_best)
            rows = rows_of(used, item_ids)[0]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + place)
                head = AlignmentHead(checked.shape[1], self)
                head.standardizer.measure(checked)
                if kind == "spectral":
                    _solve(head, self, checked, rows, used.score)
                else:
                    config = dataclasses.replace(self, seed=self.seed + place)
                    left, right = torch.from_numpy(rows).T
                    x_ND = torch.from_numpy(checked.copy())
                    _train(head, config, x_ND, left, right, torch.from_numpy(used.score))
            heads.append(head.eval())
        return AlignmentHeads(heads)


class AlignmentHeads:
    """Heads that were trained apart.

    Args:
        heads: one or more.
    """

    def __init__(self, heads: Sequence[AlignmentHead]) -> None:
        self.heads = heads

    def encode(self, embeddings: NDArray[np.floating]) -> Embeddings:
        """Return aligned embeddings of length 1, float32 `(N, heads * out_dim)`."""
        sides = [head.encode(embeddings) for head in self.heads]
        return np.concatenate(sides, axis=1) / np.float32(len(sides) ** 0.5)


class AlignmentHead(nn.Module):
    """Standardized embedding -> linear + two-layer perceptron -> unit length.

    Args:
        dim: D of the encoder.
        config: sizes.
    """

    def __init__(self, dim: int, config: Alignment) -> None:
        super().__init__()
        self.standardizer = Standardizer(dim)
        out_dim = config.out_dim or dim
        self.linear = nn.Linear(dim, out_dim, bias=False)
        self.hidden = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(dim, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, out_dim),
        )
        if out_dim == dim:  # start at the encoder's own space
            nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.hidden[-1].bias)  # type: ignore[arg-type]
        nn.init.normal_(self.hidden[-1].weight, std=1e-3)  # type: ignore[arg-type]

    def forward(self, x_BD: Tensor) -> Tensor:
        """Embeddings of the encoder to aligned ones of length 1."""
        standard_BD = self.standardizer(x_BD)
        return nn.functional.normalize(self.linear(standard_BD) + self.hidden(standard_BD), dim=1)

    @torch.no_grad()
    def encode(self, embeddings: NDArray[np.floating]) -> Embeddings:
        """Return aligned embeddings, float32 `(N, out_dim)`."""
        checked = check_embeddings(embeddings, dim=len(self.standardizer.mean))
        network = copy.deepcopy(self).eval()
        return torch.cat([network(x_BD) for x_BD in blocks(checked)]).numpy()


@torch.no_grad()
def _solve(
    head: AlignmentHead,
    config: Alignment,
    embeddings: Embeddings,
    rows_P2: NDArray[np.int64],
    scores_P: NDArray[np.float64],
) -> None:
    """Make the head the linear map of the spectral solution."""
    weight = spectral_map(
        head.standardizer(torch.tensor(embeddings)).numpy(),
        rows_P2,
        scores_P,
        out_dim=head.linear.out_features,
        ridge=config.ridge,
    )
    head.linear.weight.copy_(torch.from_numpy(weight))
    nn.init.zeros_(head.hidden[-1].weight)  # type: ignore[arg-type]
    if dist.is_initialized():  # eigenvectors may differ by their sign
        dist.broadcast(head.linear.weight, 0)


def _train(
    head: AlignmentHead,
    config: Alignment,
    x_ND: Tensor,
    left: Tensor,
    right: Tensor,
    weights: Tensor,
) -> None:
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    generator = torch.Generator().manual_seed(config.seed)
    batch_size = min(config.batch_size, len(left)) // world * world
    num_batches = len(left) // batch_size
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_steps = max(4, config.num_epochs * num_batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=num_steps,
        pct_start=max(0.05, 2 / num_steps),  # torch divides by its first phase's steps less one
    )
    for epoch in range(1, config.num_epochs + 1):
        total = 0.0
        # Pairs are drawn by their score: near neighbours more often than chance acquaintances.
        drawn = torch.multinomial(
            weights, num_batches * batch_size, replacement=True, generator=generator
        )
        swapped = torch.rand(len(drawn), generator=generator) < 0.5
        a_rows = torch.where(swapped, right[drawn], left[drawn])
        b_rows = torch.where(swapped, left[drawn], right[drawn])
        for batch in torch.arange(len(drawn)).split(batch_size):
            mine = batch[rank * batch_size // world : (rank + 1) * batch_size // world]
            a_B, b_G = a_rows[mine], b_rows[batch]
            same_BG = (b_G == b_rows[mine].unsqueeze(1)) | (b_G == a_B.unsqueeze(1))
            loss = contrastive_loss(
                head(x_ND[a_B]),
                head(x_ND[b_rows[mine]]),
                temperature=config.temperature,
                same_BG=same_BG,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _average_gradients(head, world)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        logger.info("alignment epoch %d of %d: loss %.4f", epoch, config.num_epochs, total)


def _average_gradients(head: AlignmentHead, world: int) -> None:
    if world == 1:
        return
    for parameter in head.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world
