"""Rows of a comparison as retrievers: trained cells, and what is fitted to the sequences alone.

Lists are kept: those of a cell in its folder, those of a retriever in a folder named after all that
decides them. What is there is not computed again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from launch.cells import item_embeddings_digest, log_digest
from launch.fitted_retrievers import FittedRetriever, fit_missing
from launch.ranks import run_on_ranks
from trainer.baselines.retriever import without_known
from trainer.comparison import Comparison
from trainer.data.dataset import Dataset
from trainer.data.schema import Splits
from trainer.evaluation import EvaluationSplit
from trainer.experiment import Experiment
from trainer.models.dig_config import DigModelConfig
from trainer.retrieval_report import describe_retrieval
from trainer.retrieval_run import Retrieval, retrieve_part
from trainer.retrieval_study import (
    LENGTHS,
    RetrievalMeasure,
    RetrievalRow,
    RetrievalRun,
    RetrievalStudy,
)
from trainer.retrieval_task import RetrievalTask
from trainer.retrieved_part import RetrievedPart
from trainer.run_folder import RunFolder


def has_retrieval_path(experiment: Experiment) -> bool:
    """Whether a trained row can retrieve."""
    return isinstance(experiment.model, DigModelConfig) and experiment.model.recall_weight > 0


@dataclass(frozen=True, kw_only=True)
class RetrievalRows:
    """Lists of the test part's cases.

    Args:
        study: what is asked.
        dataset: the log.
        splits: its parts.
        cells: folder of all cells.
        ranks: processes that retrievers are fitted in.
        console: shows what is computed.
    """

    study: RetrievalStudy
    dataset: Dataset
    splits: Splits
    cells: Path
    ranks: int
    console: Console

    def describe(
        self,
        comparison: Comparison,
        runs: Mapping[str, Mapping[int, RunFolder]],
        split: EvaluationSplit,
    ) -> dict[str, Any]:
        """The part `retrieval` of the report.

        Args:
            comparison: its rows are trained.
            runs: title -> seed -> run folder.
            split: the test part, with labels and users.
        """
        task = RetrievalTask.of_log(
            self.dataset,
            self.splits,
            leave_out_history=self.study.leave_out_history,
            cases_per_user=self.study.cases_per_user,
        )
        seeds = sorted({seed for of_row in runs.values() for seed in of_row})
        rows = [
            RetrievalRow(title=title, kind="retriever", runs=found)
            for title, found in self._of_retrievers(task, seeds).items()
        ]
        rows += [
            RetrievalRow(
                title=row.title,
                kind="model",
                runs=tuple(
                    self._of_cell(row.experiment, run, task, seed)
                    for seed, run in runs[row.title].items()
                ),
            )
            for row in comparison.rows
            if has_retrieval_path(row.experiment)
        ]
        measure = RetrievalMeasure(task.test, split)
        return describe_retrieval(self.study, rows, measure, num_items=task.num_items)

    def _of_retrievers(
        self, task: RetrievalTask, seeds: Sequence[int]
    ) -> dict[str, tuple[RetrievalRun, ...]]:
        """Lists of what retrieves alone, by title: fitted now, or kept from another comparison."""
        schema = self.dataset.schema
        decisive = (
            self.splits,
            (task.leave_out_history, self.study.cases_per_user),
            (schema.labels[0], schema.histories[0].name, schema.user, schema.item),
            log_digest(self.dataset.folder),
        )
        fitted = []
        for config in self.study.retrievers:
            for seed in seeds:
                name = re.sub(r"\W+", "_", config.title.lower())
                content = item_embeddings_digest(getattr(config, "content", None))
                key = _digest(repr(config), seed, *decisive, content)
                folder = self.cells / f"{self.dataset.folder.name}_{name}_seed{seed}_{key}"
                fitted.append(FittedRetriever(config=config, seed=seed, folder=folder))
        fit_missing(
            fitted,
            dataset=self.dataset,
            task=task,
            ranks=self.ranks,
            log_folder=self.cells / "log",
        )
        return {
            config.title: tuple(
                RetrievalRun(seed=one.seed, lists_CM=np.load(one.path))
                for one in fitted
                if one.config.title == config.title
            )
            for config in self.study.retrievers
        }

    def _of_cell(
        self, experiment: Experiment, run: RunFolder, task: RetrievalTask, seed: int
    ) -> RetrievalRun:
        """Retrieve with a trained cell, or read what it retrieved."""
        cases = task.test
        longest = int(cases.history.lengths.max(initial=0)) if task.leave_out_history else 0
        wanted = max(LENGTHS) + longest
        options = Retrieval(width=max(self.study.width, wanted), top=wanted)
        order = np.argsort(cases.row)
        # Lists of the best checkpoint, as they were once made, are not those of the newest.
        step = () if experiment.train.keep_best is None else ("newest",)
        key = _digest(options, self.splits.test, cases.row[order].tobytes(), *step)
        path = run.path / f"retrieved_{key}.npz"
        if not path.exists():
            seeded = replace(experiment, train=replace(experiment.train, seed=seed))
            self.console.print(f"{run.path}: retrieving for {len(cases):,} cases", soft_wrap=True)
            run_on_ranks(
                retrieve_part,
                1,
                seeded,
                run.path,
                options,
                self.splits.test,
                cases.row[order],
                path,
                log_folder=run.path / "log",
            )
        part = RetrievedPart.load(path)
        place = np.argsort(order)

        def lists(found: NDArray[np.int64]) -> NDArray[np.int64]:
            if not task.leave_out_history:
                return found[place]
            return without_known(
                found[place], cases.history, max(LENGTHS), num_items=task.num_items
            )

        return RetrievalRun(
            seed=seed,
            lists_CM=lists(part.by_recall_CM),
            ranked_CM=lists(part.by_rank_CM),
            rank_N=part.rank_N,
            recall_N=part.recall_N,
        )


def _digest(*parts: object) -> str:
    """Twelve characters that stand for some values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()[:12]
