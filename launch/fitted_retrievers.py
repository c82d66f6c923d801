"""Retrievers that are fitted to sequences alone: several at a time, each kept once it is done.

Ranks go through the same list of jobs and take what nobody holds (a lock beside the result, which
the system lets go of when its process ends), so a long job of one rank does not hold up the others.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from launch.ranks import run_on_ranks
from launch.terminal import result_console
from trainer.data.dataset import Dataset
from trainer.retrieval_study import LENGTHS, RetrieverConfig
from trainer.retrieval_task import RetrievalTask


@dataclass(frozen=True, kw_only=True)
class FittedRetriever:
    """A retriever and a seed, and where its lists are kept.

    Args:
        config: the retriever.
        seed: of its fit.
        folder: of its own, named after all that decides its lists.
    """

    config: RetrieverConfig
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        """The lists: int64 item rows (C, M) of the test cases, best first."""
        return self.folder / "lists.npy"

    def fit(self, dataset: Dataset, task: RetrievalTask) -> None:
        """Fit it, ask it, and keep what it says."""
        retriever = self.config.build(dataset)
        retriever.fit(task, seed=self.seed)
        lists = retriever.top(task.test.history, max(LENGTHS))
        unfinished = self.folder / f".lists.{os.getpid()}.npy"
        np.save(unfinished, lists)
        os.replace(unfinished, self.path)

    @contextmanager
    def held(self, *, wait: bool) -> Iterator[bool]:
        """Whether this process may fit it; waits for another that does so, if asked to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def fit_missing(
    retrievers: Sequence[FittedRetriever],
    *,
    dataset: Dataset,
    task: RetrievalTask,
    ranks: int,
    log_folder: Path,
) -> None:
    """Fit those whose lists are not there, as many at a time as there are ranks.

    Raises:
        RankFailedError: naming what one of them said; lists of the others are kept.
        StoppedError: when told to stop; finished lists are kept.
    """
    missing = [one for one in retrievers if not one.path.exists()]
    if missing:
        ranks = min(ranks, len(missing))
        run_on_ranks(_fit, ranks, missing, dataset, task, log_folder=log_folder)


def _fit(retrievers: Sequence[FittedRetriever], dataset: Dataset, task: RetrievalTask) -> None:
    """What each rank does: fit what nobody holds, then wait for what others do."""
    leads = os.environ.get("RANK", "0") == "0"
    with _progress(result_console(), leads) as progress:
        bar = progress.add_task("", total=len(retrievers))
        for wait in (False, True):
            for one in retrievers:
                if not one.path.exists():
                    verb = "waiting for" if wait else "fitting"
                    progress.update(bar, description=f"{verb} {one.config.title}, seed {one.seed}")
                    with one.held(wait=wait) as is_held:
                        if is_held and not one.path.exists():
                            one.fit(dataset, task)
                done = sum(one.path.exists() for one in retrievers)
                progress.update(bar, completed=done, description="retrievers")


def _progress(console: Console, shown: bool) -> Progress:
    """A bar over jobs; its clock runs on while a job does."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not shown)
