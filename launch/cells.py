"""Cells: one trained experiment and seed each, shared by every study that asks for the same.

A cell's folder is named after everything that decides its result: the experiment without its
name, its tokens or item embeddings, and its log. Studies that hold equal experiments read one cell,
and a finished cell is not run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from launch.ranks import run_on_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.run_folder import RunFolder
from trainer.run_inputs import load_tokens

CELLS = Path("runs/cells")


def log_digest(folder: Path) -> bytes:
    """What tells a log from another at the same place.

    Its manifest; where another hand wrote the log, names, sizes and times of its files.
    """
    manifest = folder / "manifest.json"
    if manifest.exists():
        return manifest.read_bytes()
    paths = [folder / "items.parquet", folder / "users.parquet"]
    paths += sorted((folder / "interactions").glob("*.parquet"))
    files = [(path, path.stat()) for path in paths if path.exists()]
    found = [(str(path.relative_to(folder)), at.st_size, at.st_mtime_ns) for path, at in files]
    return repr(found).encode()


def item_embeddings_digest(item: object) -> bytes:
    """Of the file of item embeddings that a model's items, or a retriever's content, are read from.

    Empty for items of another kind, and where there is no such file (yet).
    """
    path = item.embeddings if isinstance(item, LearnedTokensConfig) else None
    if path is None or not path.is_file():
        return b""
    return _file_digest(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache
def _file_digest(path: Path, time: int, size: int) -> bytes:
    """Of a file as it is at this time, read once for all that ask."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Where cells are, and on how many ranks missing ones are trained.

    Args:
        root: folder of all cells.
        ranks: processes on this machine.
    """

    root: Path
    ranks: int

    def folder(self, experiment: Experiment) -> RunFolder:
        """The cell of an experiment, whether it is there or not.

        Raises:
            ValueError: when the experiment's tokens are missing or were made with other settings.
        """
        digest = hashlib.sha256(experiment.fingerprint.encode())
        tokens = load_tokens(experiment)
        digest.update(tokens.fingerprint.encode() if tokens is not None else b"")
        digest.update(item_embeddings_digest(experiment.model.item))
        digest.update(log_digest(experiment.data.folder))
        name = f"{experiment.data.folder.name}_{experiment.name}_seed{experiment.train.seed}"
        key = digest.hexdigest()[:12]
        found = sorted(self.root.glob(f"*_{key}"))
        return RunFolder(found[0] if found else self.root / f"{name}_{key}")

    def trained(
        self, experiment: Experiment, *, seeds: int, title: str, console: Console
    ) -> Mapping[int, RunFolder]:
        """The finished cell of each seed; what is missing is trained, what was stopped goes on.

        Raises:
            RankFailedError: when a rank failed; finished cells are kept.
        """
        cells = {}
        for seed in range(seeds):
            seeded = replace(experiment, train=replace(experiment.train, seed=seed))
            cell = self.folder(seeded)
            if not cell.result.exists():
                console.print(f"[bold]{title}[/bold], seed {seed}: {cell.path}", soft_wrap=True)
                run_on_ranks(
                    train, self.ranks, seeded, cell.path, True, log_folder=cell.path / "log"
                )
            cells[seed] = cell
        return cells
