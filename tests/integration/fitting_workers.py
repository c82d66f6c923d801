"""Retrievers for the tests of fitting several at a time; spawned ranks import them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from trainer.baselines.popularity import Popularity, PopularityConfig
from trainer.data.dataset import Dataset
from trainer.retrieval_task import RetrievalTask


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Popularity that is fitted only while `others` is fitted too: two wait for each other."""

    title: str
    folder: Path
    others: str

    def build(self, dataset: Dataset) -> Met:
        return Met(self)


class Met(Popularity):
    def __init__(self, config: Meeting) -> None:
        super().__init__(PopularityConfig(title=config.title))
        self.config = config

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        (self.config.folder / self.title).write_text(str(os.getpid()))
        until = time.monotonic() + 60
        while not (self.config.folder / self.config.others).exists():
            if time.monotonic() > until:
                raise TimeoutError(f"{self.config.others} is not fitted at the same time")
            time.sleep(0.05)
        super().fit(task, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A retriever that can't be fitted."""

    title: str = "broken"

    def build(self, dataset: Dataset) -> Popularity:
        raise ValueError("broken: expected a log with texts, found none")
