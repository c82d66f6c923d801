"""What the learned quantizers share: networks, the training loop, codewords that revive.

Shape suffixes: N items, B items of a batch, D dimensions, H latent dimensions, L levels, K codes.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization.base import Embeddings

logger = logging.getLogger(__name__)

_BLOCK = 8192  # items that networks see at a time when they encode or decode


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Standardizer(nn.Module):
    """Centres embeddings and divides them by one number, so that networks see values near 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def measure(self, embeddings: Embeddings) -> None:
        """Take mean and scale from `embeddings` `(N, D)`; constant ones keep scale 1."""
        mean_D = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
        scale = float(np.sqrt(np.square(embeddings - mean_D).mean(dtype=np.float64)))
        self.mean.copy_(torch.from_numpy(mean_D))
        self.scale.fill_(scale if scale > 1e-6 * (1 + float(np.abs(mean_D).max())) else 1.0)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Embeddings to standard ones."""
        return (x_BD - self.mean) / self.scale

    def inverse(self, x_BD: Tensor) -> Tensor:
        """Standard ones to embeddings."""
        return x_BD * self.scale + self.mean


def train(
    loss: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    embeddings: Embeddings,
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    after_epoch: Callable[[int], None],
) -> None:
    """Minimise `loss` of shuffled batches with AdamW and a cosine schedule.

    Args:
        loss: of a batch `(B, D)`, a scalar.
        parameters: that the optimizer moves.
        embeddings: float32 `(N, D)`.
        num_epochs: passes over the items.
        batch_size: items a step.
        learning_rate: at the start; falls to zero.
        generator: of the order of items.
        after_epoch: called with the number of epochs done.
    """
    x_ND = torch.tensor(embeddings)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    steps = num_epochs * -(-len(x_ND) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(1, num_epochs + 1):
        total = 0.0
        for rows_B in torch.randperm(len(x_ND), generator=generator).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            value = loss(x_ND[rows_B])
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += float(value.detach()) * len(rows_B)
        logger.info("epoch %d of %d: loss %.5g", epoch, num_epochs, total / len(x_ND))
        after_epoch(epoch)


def nearest_codeword(points_BH: Tensor, codewords_KH: Tensor) -> Tensor:
    """Indices int64 `(B,)` of the nearest codewords."""
    scores_BK = points_BH @ codewords_KH.T - 0.5 * codewords_KH.square().sum(dim=1)
    return scores_BK.argmax(dim=1)


def revive_dead_codes(
    codewords_KH: Tensor, counts_K: Tensor, points_BH: Tensor, generator: torch.Generator
) -> int:
    """Move the codewords that nobody chose onto random points, in place; return how many.

    Args:
        codewords_KH: one level's codewords.
        counts_K: choices of each since the last look.
        points_BH: recent points of this level.
        generator: of the draw.
    """
    dead = torch.nonzero(counts_K == 0).squeeze(1)
    if len(dead):
        drawn = torch.randint(len(points_BH), (len(dead),), generator=generator)
        codewords_KH[dead] = points_BH[drawn]
    return len(dead)


def recent_points(before: Tensor | None, batch_BH: Tensor, least: int, *, dim: int = 0) -> Tensor:
    """Points to revive codewords on: the last batch, with the last ones before where it is small.

    Args:
        before: what this returned for the batch before; None for the first.
        batch_BH: the last batch's points.
        least: points that are wanted.
        dim: that counts points.
    """
    if before is None or batch_BH.shape[dim] >= least:
        return batch_BH.detach()
    both = torch.cat([before, batch_BH.detach()], dim=dim)
    number = min(least, both.shape[dim])
    return both.narrow(dim, both.shape[dim] - number, number)


def blocks(array: NDArray[np.generic]) -> Iterator[Tensor]:
    """Yield a matrix in blocks of rows, as tensors of their own."""
    for start in range(0, len(array), _BLOCK):
        yield torch.tensor(array[start : start + _BLOCK])


def network_tensors(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The network's parameters and buffers as arrays, by name."""
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def load_network(network: nn.Module, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Put arrays of `network_tensors` back; others among `tensors` are left alone."""
    names = network.state_dict().keys()
    network.load_state_dict({name: torch.from_numpy(tensors[name].copy()) for name in names})
    network.eval()
