"""What a trained ranker retrieves for rows of a log, kept in a file.

Legend: N rows of a part of the log, C rows that are retrieved for, M places of a list.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import Floats


@dataclass(frozen=True, kw_only=True)
class RetrievedPart:
    """Lists for some rows of a part of the log, and how both paths score all of its rows.

    Attributes:
        by_recall_CM: int64 item rows of each list, best first as the beam search finds them; -1
            behind the last.
        by_rank_CM: the same items by the ranking path, with what retrieval has for u2t in the place
            of cross features: the log has these of its own pairs alone.
        rank_N: float64 (N,) probabilities of the main task by the ranking path.
        recall_N: the same by the retrieval path, of each row's own item by its full SID.
    """

    by_recall_CM: NDArray[np.int64]
    by_rank_CM: NDArray[np.int64]
    rank_N: Floats
    recall_N: Floats

    def save(self, path: Path) -> None:
        """Write an `.npz` file under a temporary name, then rename it."""
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        np.savez(unfinished, **{one.name: getattr(self, one.name) for one in fields(self)})
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: Path) -> RetrievedPart:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{one.name: arrays[one.name] for one in fields(cls)})
