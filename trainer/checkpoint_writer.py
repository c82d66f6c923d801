"""Write checkpoints while training goes on.

Training waits for a copy of this rank's values into host memory that is kept from save to save; a
thread writes the copy. Each rank writes one file, then rank 0 writes the index and last of all the
manifest, and renames the folder: a reader sees all of a checkpoint or nothing. At most one save
is under way, so memory is bounded by one copy, and by `staging_bytes` where that is less: what
goes beyond is written before training goes on.

The threads agree over a process group of their own, so that they never meet training's exchanges.
A save that fails leaves earlier checkpoints as they are, and stops training at the next step.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint import Checkpoints, random_parts
from trainer.distributed import Ranks
from trainer.parallelize import ParallelModel
from trainer.state_parts import Part, parts_of, waiting_parts, written_by
from trainer.stored_state import (
    DTYPES,
    FORMAT,
    MANIFEST,
    CheckpointError,
    TensorFile,
    write_document,
)

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(hours=2)
"""How long the slowest rank may write after the fastest."""
_LAST_SECONDS = 300.0
"""How long a run that has failed waits for the save that is under way."""


@dataclass(frozen=True)
class SaveCost:
    """What a save costs.

    Attributes:
        seconds_stalled: that training waited.
        num_bytes: of all ranks' values.
    """

    seconds_stalled: float
    num_bytes: int


@dataclass(frozen=True)
class _Report:
    """What one rank's thread tells the others."""

    error: str | None
    file: str = ""
    num_bytes: int = 0
    sha256: str = ""
    chunks: tuple[tuple[str, dict[str, Any]], ...] = ()


class CheckpointWriter:
    """Saves a run's checkpoints; every rank has one and calls its methods at the same steps.

    Args:
        checkpoints: where they go.
        ranks: this process among all.
        keep: newest ones that are kept.
        keep_best: validation metric whose best checkpoint is kept beside those; None for none.
        staging_bytes: most host memory for copies on this rank.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        ranks: Ranks,
        *,
        keep: int,
        keep_best: str | None = None,
        staging_bytes: int,
    ) -> None:
        self.checkpoints = checkpoints
        self._ranks = ranks
        self._keep = keep
        self._keep_best = keep_best
        self._staging_bytes = staging_bytes
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._failure: str | None = None

    def prepare(self, parallel: ParallelModel) -> None:
        """Claim the memory for copies, so that the first save stalls no longer than others.

        Where it is not there, a run should end before its first step and not at its first save.
        """
        self._stage(written_by(parts_of(parallel), self._ranks))

    def save(
        self,
        parallel: ParallelModel,
        *,
        step: int,
        state: Mapping[str, Any],
        documents: Mapping[str, Any],
    ) -> SaveCost:
        """Take a copy of everything and begin to write it; waits for the save before.

        Args:
            parallel: model and optimizers.
            step: steps trained.
            state: further JSON values (place in the data, fingerprints); rank 0's are written.
            documents: further JSON files, by name without suffix: `config`, `plan`.

        Raises:
            CheckpointError: when the save before failed, or the folder can't be made.
        """
        start = time.perf_counter()
        self.wait()
        ranks = self._ranks
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        final = self.checkpoints.path(step)
        unfinished = final.with_name(f".{final.name}.unfinished")
        error = ranks.broadcast(self._make(unfinished) if ranks.is_first else None)
        if error is not None:
            raise CheckpointError(error)
        own = [*random_parts(ranks), *waiting_parts(parallel, ranks)]
        parts = written_by([*parts_of(parallel), *own], ranks)
        num_bytes = torch.tensor(sum(part.num_bytes for part in parts), device=ranks.device)
        total = int(ranks.all_reduce(num_bytes))
        direct, staged = self._stage(parts)
        values = {"step": step, "world_size": ranks.world_size, **state}
        file, error = None, None
        try:
            file = TensorFile(
                unfinished / f"rank_{ranks.rank:05d}.safetensors",
                [(_key(p), p.tensor.dtype, tuple(p.tensor.shape)) for p in (*direct, *staged)],
            )
            for part in direct:
                file.write(part.tensor)
        except OSError as found:
            error = _text(found)
        self._thread = threading.Thread(
            target=self._finish,
            args=(file, error, (*direct, *staged), len(direct), final, values, dict(documents)),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        return SaveCost(time.perf_counter() - start, total)

    def check(self) -> None:
        """Raise what has gone wrong in the background since the last call.

        Raises:
            CheckpointError: when a save failed.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise CheckpointError(failure)

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointError: when it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Let the save that is under way finish, after training has failed too; never raises.

        A rank that is gone can't finish its part, so this waits for some minutes only.
        """
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)
            if self._thread.is_alive():
                logger.error("the last checkpoint was not finished; the one before is the newest")
        try:
            self.check()
        except CheckpointError as error:
            logger.error("%s", error)

    def _make(self, unfinished: Path) -> str | None:
        try:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            self.checkpoints.remove_unfinished()
            unfinished.mkdir()
        except OSError as error:
            return f"{unfinished.parent}: no checkpoint can be written ({_text(error)})"
        return None

    def _stage(self, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
        """Parts that must be written at once, and copies of the others in kept memory."""
        direct: list[Part] = []
        copied: list[Part] = []
        used = 0
        for part in parts:
            fits = used + part.num_bytes <= self._staging_bytes
            (copied if fits else direct).append(part)
            used += part.num_bytes if fits else 0
        kept = {(part.name, part.box.offsets): part.tensor for part in copied}
        self._buffers = {
            key: buffer
            for key, buffer in self._buffers.items()
            if key in kept and (buffer.shape, buffer.dtype) == (kept[key].shape, kept[key].dtype)
        }
        staged = []
        for part in copied:
            key = (part.name, part.box.offsets)
            if key not in self._buffers:
                self._buffers[key] = torch.empty(
                    part.tensor.shape, dtype=part.tensor.dtype, pin_memory=part.tensor.is_cuda
                )
            self._buffers[key].copy_(part.tensor, non_blocking=True)
            staged.append(replace(part, tensor=self._buffers[key]))
        if any(part.tensor.is_cuda for part in copied):
            torch.cuda.synchronize()
        return direct, staged

    def _finish(
        self,
        file: TensorFile | None,
        error: str | None,
        parts: Sequence[Part],
        num_written: int,
        final: Path,
        state: Mapping[str, Any],
        documents: Mapping[str, Any],
    ) -> None:
        """Write the copies, agree with the other ranks, commit; runs in the thread."""
        start = time.perf_counter()
        try:
            report = _write(file, error, parts, num_written)
            reports: list[Any] = [None] * self._ranks.world_size
            dist.all_gather_object(reports, report, group=self._group)
            errors = [
                f"rank {rank}: {found.error}" for rank, found in enumerate(reports) if found.error
            ]
            outcome = "; ".join(errors) or None
            if self._ranks.is_first:
                outcome = self._commit(final, reports, outcome, state, documents)
            outcomes: list[Any] = [None] * self._ranks.world_size
            dist.all_gather_object(outcomes, outcome, group=self._group)
            failure = outcomes[0]
        except Exception as found:  # whatever ends this thread must reach training
            failure = f"{type(found).__name__}: {found}"
        if failure is not None:
            self._failure = (
                f"{final}: was not saved ({failure}); earlier checkpoints are as they were. Free "
                "space or mend the cause, then go on with --resume"
            )
            return
        seconds = time.perf_counter() - start
        logger.info("saved %s: written in %.2f s while training went on", final, seconds)

    def _commit(
        self,
        final: Path,
        reports: Sequence[_Report],
        error: str | None,
        state: Mapping[str, Any],
        documents: Mapping[str, Any],
    ) -> str | None:
        """Make the folder of all ranks' files a checkpoint; why not, or None."""
        unfinished = final.with_name(f".{final.name}.unfinished")
        try:
            error = error or _not_shared(unfinished, reports)
            if error is None:
                files: dict[str, Any] = {
                    report.file: {"bytes": report.num_bytes, "sha256": report.sha256}
                    for report in reports
                }
                for name, value in {
                    "index": _index(reports),
                    "state": state,
                    **documents,
                }.items():
                    file = f"{name}.json"
                    files[file] = write_document(unfinished / file, value)
                write_document(unfinished / MANIFEST, {"format": FORMAT, "files": files})
                _sync_folder(unfinished)
                if final.exists():
                    os.replace(final, final.with_name(f".{final.name}.removed"))
                os.replace(unfinished, final)
                _sync_folder(final.parent)
        except OSError as found:
            error = _text(found)
        try:
            self.checkpoints.remove_unfinished()
            if error is None:
                self.checkpoints.retain(self._keep, self._keep_best)
        except (OSError, CheckpointError) as found:
            logger.warning("%s: older checkpoints could not be removed (%s)", final.parent, found)
        return error


def _write(
    file: TensorFile | None, error: str | None, parts: Sequence[Part], num_written: int
) -> _Report:
    if file is None or error is not None:
        if file is not None:
            file.abandon()
        return _Report(error)
    try:
        for part in parts[num_written:]:
            file.write(part.tensor)
        sha256 = file.close()
    except OSError as found:
        file.abandon()
        return _Report(_text(found))
    chunks = tuple((part.name, _chunk(part, file.path.name)) for part in parts)
    return _Report(None, file.path.name, file.num_bytes, sha256, chunks)


def _not_shared(folder: Path, reports: Sequence[_Report]) -> str | None:
    """Which rank's file is not where rank 0 looks, as on hosts that share no folder."""
    for rank, report in enumerate(reports):
        path = folder / report.file
        if not path.is_file() or path.stat().st_size != report.num_bytes:
            return (
                f"rank {rank} wrote {report.file}, but rank 0 does not see it; all hosts must "
                "share the run folder"
            )
    return None


def _key(part: Part) -> str:
    """Name of a box within a file."""
    return f"{part.name}@{'_'.join(map(str, part.box.offsets))}"


def _chunk(part: Part, file: str) -> dict[str, Any]:
    return {
        "dtype": DTYPES[part.tensor.dtype],
        "shape": list(part.shape),
        "per_row": part.per_row,
        "file": file,
        "key": _key(part),
        "offsets": list(part.box.offsets),
        "sizes": list(part.box.sizes),
    }


def _index(reports: Sequence[_Report]) -> dict[str, Any]:
    index: dict[str, Any] = {}
    for report in reports:
        for name, chunk in report.chunks:
            entry = index.setdefault(
                name, {**{key: chunk[key] for key in ("dtype", "shape", "per_row")}, "chunks": []}
            )
            entry["chunks"].append({key: chunk[key] for key in ("file", "key", "offsets", "sizes")})
    return index


def _sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(error: OSError) -> str:
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
