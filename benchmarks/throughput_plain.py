"""The same DeepFM hand-tuned in plain torch: EmbeddingBags with sparse gradients and Adagrad."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from throughput_worker import serve
from throughput_workload import (
    BATCH_SIZE,
    DIM,
    HIDDEN_DIMS,
    HISTORY,
    ITEM,
    Rows,
    table_rows,
)
from torch import Tensor, nn

MEMORY_BATCHES = 8
Batch = tuple[dict[str, Tensor], Tensor]


class PlainDeepFM(nn.Module):
    """DeepFM over sparse EmbeddingBags; the history is pooled from the item's table."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(rows, DIM, mode="mean", sparse=True)
                for name, rows in table_rows(num_items).items()
            }
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.01)
        in_dim = (len(self.tables) + 1) * DIM
        layers: list[nn.Module] = []
        width = in_dim
        for hidden in HIDDEN_DIMS:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.deep = nn.Sequential(*layers)
        self.first_order = nn.Linear(in_dim, 1)
        self.head = nn.Linear(width + 2, 1)

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        """Logits (B,)."""
        vectors = [table(ids[name]) for name, table in self.tables.items()]
        vectors.append(self.tables[ITEM](ids[HISTORY]))
        x_BF = torch.cat(vectors, dim=1)
        x_BND = x_BF.view(len(x_BF), -1, DIM)
        second_B = 0.5 * (x_BND.sum(1).square().sum(1) - x_BND.square().sum((1, 2)))
        parts = [self.deep(x_BF), self.first_order(x_BF), second_B.unsqueeze(1)]
        return self.head(torch.cat(parts, dim=1)).squeeze(1)


class PlainTrainer:
    """Adagrad on the tables (it takes sparse gradients), AdamW on the network."""

    def __init__(self, num_items: int, rows: Rows) -> None:
        self.model = PlainDeepFM(num_items)
        network = [p for name, p in self.model.named_parameters() if "tables" not in name]
        self.optimizers = [
            torch.optim.Adagrad(self.model.tables.parameters(), lr=0.05),
            torch.optim.AdamW(network, lr=1e-3, fused=True),
        ]
        columns = {**rows.ids, HISTORY: rows.history}
        self.columns = {
            name: torch.from_numpy(values if values.ndim == 2 else values[:, None])
            for name, values in columns.items()
        }
        self.label = torch.from_numpy(rows.label)
        self.ready = [
            self.batch(torch.arange(at * BATCH_SIZE, (at + 1) * BATCH_SIZE))
            for at in range(MEMORY_BATCHES)
        ]

    def batch(self, rows: Tensor) -> Batch:
        """Gather a batch by whole columns."""
        return (
            {name: values.index_select(0, rows) for name, values in self.columns.items()},
            self.label.index_select(0, rows),
        )

    def shuffled(self, steps: int) -> Iterator[Batch]:
        """Batches in random order."""
        for rows in torch.randperm(steps * BATCH_SIZE).split(BATCH_SIZE):
            yield self.batch(rows)

    def train(self, batches: Iterator[Batch]) -> None:
        """One step a batch; the loss is read in every step, as the others do."""
        for ids, label in batches:
            loss = nn.functional.binary_cross_entropy_with_logits(self.model(ids), label)
            loss.item()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()

    def modes(self) -> dict[str, Callable[[int], None]]:
        """What `serve` calls."""
        return {
            "memory": lambda steps: self.train(
                itertools.islice(itertools.cycle(self.ready), steps)
            ),
            "loader": lambda steps: self.train(self.shuffled(steps)),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    serve(PlainTrainer(arguments.items, Rows.load(arguments.rows)).modes())


if __name__ == "__main__":
    main()
