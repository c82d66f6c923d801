"""torch-rechub and deepctr-torch training as they come; run in the peers' environment.

DeepFM on both; with `--tower dcn_v2` torch-rechub's DCN-v2, whose cross layers are full matrices.

In mode `loader` their own entry point is called: `CTRTrainer.train_one_epoch` over the loader of
`DataGenerator`, and `fit`. In mode `memory` batches are tensors already: torch-rechub's trainer
takes them as its loader, and for deepctr-torch, whose `fit` makes its loader itself, the body of
that loop stands below.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput_worker import serve
from throughput_workload import (
    BATCH_SIZE,
    CROSS_LAYERS,
    DIM,
    HIDDEN_DIMS,
    HISTORY,
    HISTORY_LENGTH,
    ITEM,
    Rows,
    table_rows,
)

MEMORY_BATCHES = 8


def torch_rechub(num_items: int, rows: Rows, tower: str) -> dict[str, Callable[[int], None]]:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DCNv2, DeepFM
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    features: list[Any] = [
        SparseFeature(name, vocab_size=size, embed_dim=DIM)
        for name, size in table_rows(num_items).items()
    ]
    features.append(
        SequenceFeature(
            HISTORY, vocab_size=num_items, embed_dim=DIM, pooling="mean", shared_with=ITEM
        )
    )
    deep = {"dims": list(HIDDEN_DIMS)}
    model = (
        DeepFM(features, features, deep)
        if tower == "deepfm"
        else DCNv2(features, CROSS_LAYERS, deep, use_low_rank_mixture=False)
    )
    trainer = CTRTrainer(model)
    ready = [
        (
            {
                HISTORY: torch.from_numpy(batch.history),
                **{name: torch.from_numpy(ids) for name, ids in batch.ids.items()},
            },
            torch.from_numpy(batch.label),
        )
        for batch in rows.batches(MEMORY_BATCHES)
    ]

    def from_memory(steps: int) -> None:
        trainer.train_one_epoch(itertools.islice(itertools.cycle(ready), steps))

    def from_loader(steps: int) -> None:
        part = rows.take(0, steps * BATCH_SIZE)
        data = DataGenerator({**part.ids, HISTORY: part.history}, part.label)
        # Validation and test are asked for by the function; nothing reads them.
        few = {name: values[:1] for name, values in {**part.ids, HISTORY: part.history}.items()}
        loader, _, _ = data.generate_dataloader(
            x_val=few,
            y_val=part.label[:1],
            x_test=few,
            y_test=part.label[:1],
            batch_size=BATCH_SIZE,
        )
        trainer.train_one_epoch(loader)

    return {"memory": from_memory, "loader": from_loader}


def deepctr_torch(num_items: int, rows: Rows, tower: str) -> dict[str, Callable[[int], None]]:
    if tower != "deepfm":
        raise ValueError(f"deepctr-torch has no {tower}; it has deepfm")
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DeepFM

    columns: list[Any] = [
        SparseFeat(name, vocabulary_size=size, embedding_dim=DIM)
        for name, size in table_rows(num_items).items()
    ]
    columns.append(
        VarLenSparseFeat(
            SparseFeat(HISTORY, vocabulary_size=num_items, embedding_dim=DIM, embedding_name=ITEM),
            maxlen=HISTORY_LENGTH,
            combiner="mean",
        )
    )
    model = DeepFM(columns, columns, dnn_hidden_units=HIDDEN_DIMS)
    model.compile("adam", "binary_crossentropy")
    ready = [
        (torch.from_numpy(side_by_side(batch, model)), torch.from_numpy(batch.label))
        for batch in rows.batches(MEMORY_BATCHES)
    ]

    def from_memory(steps: int) -> None:
        model.train()
        for x, y in itertools.islice(itertools.cycle(ready), steps):
            predicted = model(x.float()).squeeze(-1)
            model.optim.zero_grad()
            loss = model.loss_func(predicted, y, reduction="sum")
            total = loss + model.get_regularization_loss() + model.aux_loss
            loss.item()
            total.item()
            total.backward()
            model.optim.step()

    def from_loader(steps: int) -> None:
        part = rows.take(0, steps * BATCH_SIZE)
        model.fit(
            {**part.ids, HISTORY: part.history},
            part.label,
            batch_size=BATCH_SIZE,
            epochs=1,
            verbose=0,
        )

    return {"memory": from_memory, "loader": from_loader}


def side_by_side(batch: Rows, model: Any) -> Any:
    """The matrix of ids that `fit` makes of its inputs."""
    values = {**batch.ids, HISTORY: batch.history}
    columns = [values[name] for name in model.feature_index]
    return np.concatenate([v if v.ndim == 2 else v[:, None] for v in columns], axis=1)


LIBRARIES = {"torch-rechub": torch_rechub, "deepctr-torch": deepctr_torch}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tower", choices=("deepfm", "dcn_v2"), default="deepfm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = Rows.load(arguments.rows)
    serve(LIBRARIES[arguments.library](arguments.items, rows, arguments.tower))


if __name__ == "__main__":
    main()
