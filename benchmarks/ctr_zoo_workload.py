"""The fields and rows that every side of the CTR zoo trains and is tested on.

Needs numpy alone, so that the peers' virtual environment can import it too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 4096
DIM = 16
HIDDEN_DIMS = (256, 128, 64)
CROSS_LAYERS = 3
ATTENTION_LAYERS = 3
ATTENTION_HEADS = 2
LEARNING_RATE = 2e-3
"""Of Adam on the peers' side, of AdamW on our network."""
MODELS = ("wide_deep", "deepfm", "dcn", "dcn_v2", "autoint")
MARK = "@result "
"""Begins the lines that are meant for the parent; the peers print lines of their own."""


@dataclass(frozen=True)
class ZooData:
    """Rows in order of time: those to train on, then those to test on.

    Attributes:
        ids: int64 (N,) of each field.
        label: float32 (N,) of 0 and 1.
        num_train: rows to train on.
    """

    ids: dict[str, NDArray[np.int64]]
    label: NDArray[np.float32]
    num_train: int

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each field's table."""
        return {name: int(values.max()) + 1 for name, values in self.ids.items()}

    def part(self, start: int, stop: int) -> tuple[dict[str, NDArray[np.int64]], NDArray]:
        """Fields and labels of some rows."""
        ids = {name: values[start:stop] for name, values in self.ids.items()}
        return ids, self.label[start:stop]

    def train(self, rows: int) -> tuple[dict[str, NDArray[np.int64]], NDArray]:
        """The first `rows` of those to train on."""
        return self.part(0, min(rows, self.num_train))

    def test(self, rows: int) -> tuple[dict[str, NDArray[np.int64]], NDArray]:
        """The first `rows` of those to test on."""
        return self.part(self.num_train, min(self.num_train + rows, len(self.label)))

    def save(self, path: Path) -> None:
        """Write an npz file."""
        np.savez(path, _label=self.label, _num_train=self.num_train, **self.ids)

    @classmethod
    def load(cls, path: Path) -> ZooData:
        """Read what `save` wrote."""
        with np.load(path) as found:
            arrays = dict(found)
        return cls(label=arrays.pop("_label"), num_train=int(arrays.pop("_num_train")), ids=arrays)


@dataclass(frozen=True)
class Steps:
    """What a side does for one run.

    Attributes:
        build: seed -> nothing; a fresh model.
        train: number of rows -> nothing; one epoch over the first of them, from its own loader.
        predict: number of rows -> probabilities of the first test rows.
    """

    build: Callable[[int], None]
    train: Callable[[int], None]
    predict: Callable[[int], NDArray[np.float64]]


def serve(steps: Steps, folder: Path) -> None:
    """Obey lines `<seed> <training rows> <test rows>` on standard input until it ends.

    The clock runs from before the loader is made until the last step is done.

    Args:
        steps: of this side.
        folder: predictions go there.
    """
    say({"ready": True})
    for line in sys.stdin:
        seed, train_rows, test_rows = map(int, line.split())
        steps.build(seed)
        begin = time.perf_counter()
        steps.train(train_rows)
        seconds = time.perf_counter() - begin
        path = folder / f"predictions_{seed}.npy"
        np.save(path, steps.predict(test_rows))
        say({"samples_per_s": train_rows / seconds, "predictions": str(path)})


def say(value: dict[str, object]) -> None:
    """Send one answer to the parent."""
    print(MARK + json.dumps(value), flush=True)
