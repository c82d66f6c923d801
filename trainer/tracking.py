"""What a run tells while it runs: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard.writer import SummaryWriter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.modules.hybrid_tokens import GEN_TOKEN


class Tracker:
    """Writes metrics to `metrics.jsonl` and TensorBoard, and shows progress in the terminal.

    Only rank 0 makes one. Use it as a context manager.

    Args:
        metrics: path of the JSONL file, appended to; lines of steps that a resume trains again
            are dropped first.
        tensorboard: folder of event files.
        num_steps: of the whole run.
        step: already trained.
        title: shown before the bar.
    """

    def __init__(
        self, metrics: Path, tensorboard: Path, *, num_steps: int, step: int, title: str
    ) -> None:
        _drop_steps_after(metrics, step)
        self._file = metrics.open("a")
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = self._progress.add_task(title, total=num_steps, completed=step, figures="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close files and bar."""
        self._progress.stop()
        self._file.close()
        self._board.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._bar, completed=step)

    def log(self, step: int, samples: int, values: dict[str, float]) -> None:
        """Write one line of metrics and the same to TensorBoard.

        Args:
            step: steps trained.
            samples: impressions trained on.
            values: tag -> number, for instance `train/loss`.
        """
        line = {"step": step, "samples": samples, "time": time.time(), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)
        shown = [
            f"{label} {values[tag]:{form}}"
            for tag, label, form in (
                ("train/loss", "loss", ".4f"),
                ("throughput/samples_per_s", "samples/s", ",.0f"),
            )
            if tag in values
        ]
        if shown:
            self._progress.update(self._bar, figures="  ".join(shown))


class TokenUse:
    """Which gen-tokens a rank has looked up since the last report.

    Args:
        num_levels: L.
        num_codes: K.
    """

    def __init__(self, *, num_levels: int, num_codes: int) -> None:
        self._seen_LK = np.zeros((num_levels, num_codes), dtype=bool)

    def add(self, items: KeyedJaggedTensor) -> None:
        """Count the gen-tokens of a batch's items."""
        if GEN_TOKEN in items.keys():  # noqa: SIM118 (a KJT is no dict)
            self._seen_LK.reshape(-1)[items[GEN_TOKEN].values().cpu().numpy()] = True

    def take(self) -> dict[str, float]:
        """Share of each level's codes in use, and start anew."""
        shares = self._seen_LK.sum(axis=1) / max(1, self._seen_LK.shape[1])
        self._seen_LK[:] = False
        return {f"tokens/level_{level}_use": float(share) for level, share in enumerate(shares)}


def squared_norms(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Square of the Frobenius norm of this rank's part of each table."""
    return {name: float(weight.detach().float().square().sum()) for name, weight in weights.items()}


def _drop_steps_after(metrics: Path, step: int) -> None:
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break  # a line cut short by a kill
    metrics.write_text("".join(line + "\n" for line in kept))
