"""Rows of a comparison as retrievers: what is asked, and Recall, NDCG and AUC with intervals.

Legend: N rows of the evaluated part, C cases, M places of a list, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.baselines.retriever import Retriever
from trainer.bootstrap import RankedScores, Resamples, auc_samples, sum_samples
from trainer.data.dataset import Dataset
from trainer.evaluation import NUM_RESAMPLES, EvaluationSplit
from trainer.measurement import Estimate
from trainer.metrics import Floats, auc
from trainer.ranked_lists import score_lists
from trainer.retrieval_task import RetrievalCases

LENGTHS = (5, 10, 20, 50)
BUCKETING = "user_activity"
"""The cut of cases that is shown: impressions of the user in training."""

RowKind = Literal["model", "retriever"]


class RetrieverConfig(Protocol):
    """A retriever as a value: its `repr` names everything that decides its lists."""

    @property
    def title(self) -> str:
        """Name of the row."""
        ...

    def build(self, dataset: Dataset) -> Retriever:
        """The retriever, not yet fitted."""
        ...


@dataclass(frozen=True, kw_only=True)
class RetrievalStudy:
    """What a comparison asks of its rows as retrievers.

    Trained rows with a retrieval path take part, and rows that retrieve alone.

    Args:
        reference: title of the row that the others are set against.
        retrievers: rows that retrieve alone.
        free: titles of those that train nothing; the best of them is set against the best other.
        metric: what headline and figure are about, e.g. `recall@10`.
        published: title -> metric -> value, where the paper has one; the order of two rows counts.
        width: beams of trained rows.
        cases_per_user: last positives of each user that are asked for.
        leave_out_history: items of a case's history are left out of its list.
    """

    reference: str
    retrievers: tuple[RetrieverConfig, ...] = ()
    free: tuple[str, ...] = ()
    metric: str = "recall@10"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    width: int = max(LENGTHS)
    cases_per_user: int = 1
    leave_out_history: bool = False

    def __post_init__(self) -> None:
        """Check the beam.

        Raises:
            ValueError: when lists could not be filled.
        """
        if self.width < max(LENGTHS):
            raise ValueError(
                f"retrieval: width is {self.width}, expected at least {max(LENGTHS)}, the longest "
                "list that is measured"
            )

    def check(self, titles: Sequence[str]) -> None:
        """Check titles against those of the trained rows.

        Raises:
            ValueError: when a title stands twice, or one is named that is not there.
        """
        every = [*titles, *(one.title for one in self.retrievers)]
        if len(set(every)) < len(every):
            raise ValueError(f"retrieval: a title stands twice in {every}")
        unknown = sorted({self.reference, *self.published, *self.free} - set(every))
        if unknown:
            raise ValueError(f"retrieval: {unknown} are no rows, expected rows of {every}")


@dataclass(frozen=True, kw_only=True)
class RetrievalRun:
    """What a row retrieved with one seed.

    Attributes:
        seed: of the run.
        lists_CM: int64 item rows, best first, -1 behind the last.
        ranked_CM: the same by the ranking path, with what retrieval has for u2t in the place of
            cross features; None where there is no ranker.
        rank_N, recall_N: scores of the part's rows by both paths of a ranker.
    """

    seed: int
    lists_CM: NDArray[np.int64]
    ranked_CM: NDArray[np.int64] | None = None
    rank_N: Floats | None = None
    recall_N: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """A row of the report's tables of retrieval."""

    title: str
    kind: RowKind
    runs: tuple[RetrievalRun, ...]


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A row's estimates: medians over seeds, and each seed's.

    Attributes:
        row: what was measured.
        metrics: `recall@K`, `ndcg@K`, of rankers `ranked recall@K` and `ranked ndcg@K` too, and
            `rank_auc`, `recall_auc` and `gap` (the second less the first).
        by_seed: metric -> value of each seed.
        buckets: bucket -> metric -> estimate, of recall and NDCG.
    """

    row: RetrievalRow
    metrics: Mapping[str, Estimate]
    by_seed: Mapping[str, Sequence[float]]
    buckets: Mapping[str, Mapping[str, Estimate]]


class RetrievalMeasure:
    """Measures rows on the same cases, with the same draws of users for all of them.

    Args:
        cases: right answers, and users.
        split: the part that the cases are of; its main task is that of the AUCs.
        num_resamples: draws of users.
        seed: of the draws.
    """

    def __init__(
        self,
        cases: RetrievalCases,
        split: EvaluationSplit,
        *,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.split = split
        users, self._unit = np.unique(cases.user, return_inverse=True)
        self.num_users = len(users)
        self._of_cases = Resamples(num_units=self.num_users, num_resamples=num_resamples, seed=seed)
        self._drawn = split.drawn
        self._of_rows = Resamples(
            num_units=int(self._drawn.max()) + 1, num_resamples=num_resamples, seed=seed
        )
        cut = split.bucketings[BUCKETING]
        code = cut.code[cases.row - split.rows.start]
        self.title = cut.title
        self.buckets = {cut.names[one]: code == one for one in np.unique(code).tolist()}

    def measure(self, row: RetrievalRow) -> MeasuredRow:
        """Measure every seed, then take medians."""
        whole = np.ones(len(self.cases), dtype=bool)
        every = [self._run(run, whole) | self._paths(run) for run in row.runs]
        buckets = {
            name: _median([self._run(run, kept) for run in row.runs])
            for name, kept in self.buckets.items()
        }
        by_seed = {name: [one[name].value for one in every] for name in every[0]}
        return MeasuredRow(row=row, metrics=_median(every), by_seed=by_seed, buckets=buckets)

    def _run(self, run: RetrievalRun, kept: NDArray[np.bool_]) -> dict[str, Estimate]:
        """Recall and NDCG of some cases."""
        found = {}
        for prefix, lists in (("", run.lists_CM), ("ranked ", run.ranked_CM)):
            if lists is None:
                continue
            for at, scores in score_lists(lists, self.cases, at=LENGTHS).items():
                for name, values in (("recall", scores.hit), ("ndcg", scores.gain)):
                    found[f"{prefix}{name}@{at}"] = self._mean(values, kept)
        return found

    def _mean(self, values: Floats, kept: NDArray[np.bool_]) -> Estimate:
        """Mean of some cases, and of each draw of users."""
        unit = self._unit[kept]
        sums = np.stack(
            [
                np.bincount(unit, weights=column, minlength=self.num_users)
                for column in (values[kept], np.ones(int(kept.sum())))
            ]
        ).astype(np.float64)
        total, number = sum_samples(sums, self._of_cases)
        drawn = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
        return Estimate(float(values[kept].mean()), drawn)

    def _paths(self, run: RetrievalRun) -> dict[str, Estimate]:
        """AUCs of both paths of a ranker, and their gap."""
        if run.rank_N is None or run.recall_N is None:
            return {}
        y = next(iter(self.split.labels.values()))
        scores = (run.rank_N, run.recall_N)
        drawn = auc_samples(
            [RankedScores.sort(y, one, self._drawn) for one in scores], self._of_rows
        )
        rank, recall = (
            Estimate(auc(y, one), samples) for one, samples in zip(scores, drawn, strict=True)
        )
        return {"rank_auc": rank, "recall_auc": recall, "gap": recall - rank}


def _median(every: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {name: Estimate.median([one[name] for one in every]) for name in every[0]}
