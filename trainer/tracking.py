"""What a run tells while it runs: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

logger = logging.getLogger(__name__)


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
        self._path = metrics
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
        for file in (self._file, self._board):
            try:
                file.close()
            except OSError as failure:  # a full disk; whoever logs has said so
                logger.warning("%s: not closed properly (%s)", self._path.parent, failure)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._bar, completed=step)

    def log(self, step: int, samples: int, values: dict[str, float]) -> None:
        """Write one line of metrics and the same to TensorBoard.

        Args:
            step: steps trained.
            samples: impressions trained on.
            values: tag -> number, for instance `train/loss`.

        Raises:
            OSError: when they can't be written, for instance on a full disk.
        """
        line = {"step": step, "samples": samples, "time": time.time(), **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)
        except OSError as error:
            raise OSError(
                error.errno,
                f"metrics of step {step} can't be written ({error.strerror}); checkpoints are as "
                "they were. Free space or mend the cause, then go on with --resume",
                str(self._path),
            ) from error
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
    """Which gen-tokens a rank looks up, by batch in the order of training.

    Args:
        num_levels: L.
        num_codes: K.
    """

    def __init__(self, *, num_levels: int, num_codes: int) -> None:
        self._num_levels = num_levels
        self._num_codes = num_codes
        self._batches: deque[np.ndarray[Any, Any]] = deque()

    def add(self, items: KeyedJaggedTensor) -> None:
        """Note the gen-tokens of the next batch, which the pipeline may hold for some steps."""
        tokens = np.zeros(0, dtype=np.int64)
        if GEN_TOKEN in items.keys():  # noqa: SIM118 (a KJT is no dict)
            tokens = items[GEN_TOKEN].values().cpu().numpy()
        self._batches.append(tokens)

    def take(self, num_batches: int) -> dict[str, float]:
        """Share of each level's codes that the next `num_batches` batches look up."""
        seen_LK = np.zeros((self._num_levels, self._num_codes), dtype=bool)
        for _ in range(num_batches):
            seen_LK.reshape(-1)[self._batches.popleft()] = True
        shares = seen_LK.sum(axis=1) / max(1, self._num_codes)
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
    unfinished = metrics.with_name(f".{metrics.name}.tmp")
    try:
        unfinished.write_text("".join(line + "\n" for line in kept))
        os.replace(unfinished, metrics)  # killed meanwhile, or on a full disk, none is lost
    finally:
        unfinished.unlink(missing_ok=True)
