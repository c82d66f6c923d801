"""The zoo's models of torch-rechub and deepctr-torch; run in the peers' environment.

Each library trains from its own entry point: `CTRTrainer.train_one_epoch` over the loader of
`DataGenerator`, and `fit`; each predicts with its own too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctr_zoo_workload import (
    ATTENTION_HEADS,
    ATTENTION_LAYERS,
    BATCH_SIZE,
    CROSS_LAYERS,
    DIM,
    HIDDEN_DIMS,
    LEARNING_RATE,
    MODELS,
    Steps,
    ZooData,
    serve,
)


class TorchRechub:
    """torch-rechub: batch normalisation in every MLP, weight decay of 1e-5 by default."""

    def __init__(self, name: str, data: ZooData) -> None:
        self.name = name
        self.data = data

    def build(self, seed: int) -> None:
        """A fresh model."""
        from torch_rechub.basic.features import SparseFeature
        from torch_rechub.models.ranking import DCN, AutoInt, DCNv2, DeepFM, WideDeep
        from torch_rechub.trainers import CTRTrainer

        torch.manual_seed(seed)
        features = [
            SparseFeature(field, vocab_size=size, embed_dim=DIM)
            for field, size in self.data.sizes.items()
        ]
        deep = {"dims": list(HIDDEN_DIMS)}
        make = {
            "wide_deep": lambda: WideDeep(features, features, deep),
            "deepfm": lambda: DeepFM(features, features, deep),
            "dcn": lambda: DCN(features, CROSS_LAYERS, deep),
            "dcn_v2": lambda: DCNv2(features, CROSS_LAYERS, deep, use_low_rank_mixture=False),
            "autoint": lambda: AutoInt(
                features,
                [],
                num_layers=ATTENTION_LAYERS,
                num_heads=ATTENTION_HEADS,
                mlp_params=deep,
            ),
        }
        self.trainer = CTRTrainer(
            make[self.name](), optimizer_params={"lr": LEARNING_RATE, "weight_decay": 1e-5}
        )

    def loaders(self, ids: Any, label: Any) -> Any:
        """The loader of its `DataGenerator`, shuffled and not."""
        from torch_rechub.utils.data import DataGenerator

        few = {field: values[:1] for field, values in ids.items()}
        made = DataGenerator(ids, label).generate_dataloader(
            x_val=ids, y_val=label, x_test=few, y_test=label[:1], batch_size=BATCH_SIZE
        )
        return made[:2]

    def train(self, rows: int) -> None:
        """One epoch over the first rows."""
        self.trainer.train_one_epoch(self.loaders(*self.data.train(rows))[0])

    def predict(self, rows: int) -> Any:
        """Probabilities of the first test rows."""
        loader = self.loaders(*self.data.test(rows))[1]
        return np.array(self.trainer.predict(self.trainer.model, loader), np.float64).ravel()


class DeepCTR:
    """deepctr-torch: tables of dim 1 beside the others, an L2 term on both by default."""

    def __init__(self, name: str, data: ZooData) -> None:
        self.name = name
        self.data = data

    def build(self, seed: int) -> None:
        """A fresh model."""
        from deepctr_torch.inputs import SparseFeat
        from deepctr_torch.models import DCN, WDL, AutoInt, DeepFM

        columns = [
            SparseFeat(field, vocabulary_size=size, embedding_dim=DIM)
            for field, size in self.data.sizes.items()
        ]
        both = (columns, columns)
        same = {"dnn_hidden_units": HIDDEN_DIMS, "seed": seed}
        make = {
            "wide_deep": lambda: WDL(*both, **same),
            "deepfm": lambda: DeepFM(*both, **same),
            "dcn": lambda: DCN(*both, cross_num=CROSS_LAYERS, **same),
            "dcn_v2": lambda: DCN(
                *both, cross_num=CROSS_LAYERS, cross_parameterization="matrix", **same
            ),
            "autoint": lambda: AutoInt(
                *both, att_layer_num=ATTENTION_LAYERS, att_head_num=ATTENTION_HEADS, **same
            ),
        }
        self.model = make[self.name]()
        torch.manual_seed(seed)
        self.model.compile(
            torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE), "binary_crossentropy"
        )

    def train(self, rows: int) -> None:
        """One epoch over the first rows."""
        ids, label = self.data.train(rows)
        self.model.fit(dict(ids), label, batch_size=BATCH_SIZE, epochs=1, verbose=0)

    def predict(self, rows: int) -> Any:
        """Probabilities of the first test rows."""
        ids, _ = self.data.test(rows)
        return self.model.predict(dict(ids), batch_size=BATCH_SIZE).ravel()


LIBRARIES = {"torch-rechub": TorchRechub, "deepctr-torch": DeepCTR}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    side = LIBRARIES[arguments.library](arguments.model, ZooData.load(arguments.data))
    serve(Steps(side.build, side.train, side.predict), arguments.folder)


if __name__ == "__main__":
    main()
