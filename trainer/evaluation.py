"""Metrics of a model on a split, with intervals, and differences between two models.

Every estimate keeps its bootstrap samples; the draws are the same for every model of a split, so
subtracting two models' samples gives the paired interval of their difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from trainer.bootstrap import RankedScores, Resamples, auc_samples, sum_samples
from trainer.buckets import Bucketing, default_bucketings
from trainer.data.schema import RowRange, Splits
from trainer.measurement import Estimate, Measurement
from trainer.metrics import Floats, Ints, auc, check_scores, cross_entropy, entropy, grouped_auc

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

NUM_RESAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """What metrics need to know about the rows of a split.

    Build it with `from_ids` or `from_dataset`, which number the groups.

    Attributes:
        rows: range in the log, N rows.
        labels: task -> float64 (N,) 0 or 1.
        user: int64 (N,) number of each row's user group in [0, U): GAUC's groups, and, where there
            are several, the units that the bootstrap draws.
        query: int64 (N,) number of each row's query group in [0, Q): QAUC's groups.
        query_user: int64 (Q,) user of each query, or None where a query spans several users (the
            bootstrap of QAUC then draws queries).
        bucketings: name -> cut of the rows.
    """

    rows: RowRange
    labels: Mapping[str, Floats]
    user: Ints
    query: Ints
    query_user: Ints | None
    bucketings: Mapping[str, Bucketing]

    @property
    def num_users(self) -> int:
        """Number of user groups U."""
        return int(self.user.max()) + 1

    @property
    def drawn(self) -> Ints:
        """Unit of each row that intervals draw, int64 (N,): its user, or the row itself.

        A log that does not tell users apart has one for all rows, of which every draw is the same.
        """
        return self.user if self.unit == "user" else np.arange(len(self.user))

    @property
    def unit(self) -> Literal["user", "row"]:
        """What intervals draw."""
        return "user" if self.num_users > 1 else "row"

    @property
    def num_queries(self) -> int:
        """Number of query groups Q."""
        return int(self.query.max()) + 1

    @classmethod
    def from_ids(
        cls,
        *,
        rows: RowRange,
        labels: Mapping[str, ArrayLike],
        user_ids: ArrayLike,
        query_ids: ArrayLike,
        bucketings: Mapping[str, Bucketing] | None = None,
    ) -> EvaluationSplit:
        """Number the groups of columns of ids.

        Raises:
            ValueError: when a column has another length than `rows`, or the split is empty.
        """
        columns = {**labels, "user group": user_ids, "query group": query_ids}
        columns |= {name: cut.code for name, cut in (bucketings or {}).items()}
        for name, column in columns.items():
            if len(np.asarray(column)) != len(rows):
                raise ValueError(
                    f"split of {len(rows)} rows: {name} has {len(np.asarray(column))} values"
                )
        if len(rows) == 0:
            raise ValueError("the split to evaluate has no rows; give it a larger fraction")
        user = np.unique(np.asarray(user_ids), return_inverse=True)[1].astype(np.int64)
        query = np.unique(np.asarray(query_ids), return_inverse=True)[1].astype(np.int64)
        query_user = np.zeros(int(query.max()) + 1, dtype=np.int64)
        query_user[query] = user
        nested = np.array_equal(query_user[query], user)
        return cls(
            rows=rows,
            labels={task: np.asarray(y, dtype=np.float64) for task, y in labels.items()},
            user=user,
            query=query,
            query_user=query_user if nested else None,
            bucketings=dict(bucketings or {}),
        )

    @classmethod
    def from_dataset(cls, dataset: Dataset, splits: Splits, rows: RowRange) -> EvaluationSplit:
        """Read labels, groups and buckets of `rows`, which is `splits.valid` or `splits.test`."""
        schema = dataset.schema
        columns = dataset.read(rows, [*schema.labels, schema.user_group, schema.query_group])
        return cls.from_ids(
            rows=rows,
            labels={task: columns[task] for task in schema.labels},
            user_ids=columns[schema.user_group],
            query_ids=columns[schema.query_group],
            bucketings=default_bucketings(dataset, splits, rows),
        )


def measure(
    scores: Mapping[str, ArrayLike],
    split: EvaluationSplit,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Measurement:
    """Measure a model on every task of the split.

    Args:
        scores: task -> (N,) probabilities, in the order of the split's rows.
        split: labels and groups.
        num_resamples: bootstrap draws; measurements compare only at equal draws.
        seed: of the draws.

    Raises:
        ValueError: when a task has no scores, or scores do not pass `metrics.check_scores`.
    """
    missing = sorted(set(split.labels) - set(scores))
    if missing:
        raise ValueError(f"no scores of task {', '.join(missing)}; found {', '.join(scores)}")
    unit = split.drawn
    num_units = int(unit.max()) + 1
    resamples = Resamples(num_units=num_units, num_resamples=num_resamples, seed=seed)
    of_users = replace(resamples, num_units=split.num_users)
    metrics: dict[str, dict[str, Estimate]] = {}
    buckets: dict[str, dict[str, dict[str, Estimate]]] = {}
    for task, labels in split.labels.items():
        y, p = check_scores(labels, scores[task], probabilities=True)
        cuts = [
            (name, cut.names[code], cut.code == code)
            for name, cut in split.bucketings.items()
            for code in cut.present
        ]
        ranked = [RankedScores.sort(y, p, unit)]
        ranked += [RankedScores.sort(y[kept], p[kept], unit[kept]) for *_, kept in cuts]
        samples = auc_samples(ranked, resamples)
        metrics[task] = {
            "auc": Estimate(auc(y, p), samples[0]),
            "gauc": _grouped(y, p, split.user, None, of_users),
            "qauc": _qauc(y, p, split, of_users),
            **_sums(y, p, unit, resamples),
        }
        buckets[task] = {name: {} for name in split.bucketings}
        for (name, bucket, kept), drawn in zip(cuts, samples[1:], strict=True):
            buckets[task][name][bucket] = Estimate(auc(y[kept], p[kept]), drawn)
    return Measurement(metrics=metrics, buckets=buckets)


def _qauc(y: Floats, p: Floats, split: EvaluationSplit, resamples: Resamples) -> Estimate:
    if split.query_user is not None:
        return _grouped(y, p, split.query, split.query_user, resamples)
    by_query = Resamples(
        num_units=split.num_queries, num_resamples=resamples.num_resamples, seed=resamples.seed
    )
    return _grouped(y, p, split.query, None, by_query)


def _grouped(
    y: Floats, p: Floats, group: Ints, unit_of_group: Ints | None, resamples: Resamples
) -> Estimate:
    found = grouped_auc(y, p, group)
    unit = found.group if unit_of_group is None else unit_of_group[found.group]
    won = np.bincount(unit, weights=found.auc * found.impressions, minlength=resamples.num_units)
    rows = np.bincount(unit, weights=found.impressions, minlength=resamples.num_units)
    if resamples.num_units == 1:  # every draw is the same
        return Estimate(found.value, np.full(resamples.num_resamples, np.nan))
    drawn = sum_samples(np.stack([won, rows]), resamples)
    return Estimate(found.value, _ratio(drawn[0], drawn[1]))


def _sums(y: Floats, p: Floats, unit: Ints, resamples: Resamples) -> dict[str, Estimate]:
    """LogLoss, NE and calibration from sums of loss, predictions, labels and rows per unit."""
    loss = cross_entropy(y, p)
    per_unit = np.stack(
        [
            np.bincount(unit, weights=column, minlength=resamples.num_units)
            for column in (loss, p, y, np.ones_like(y))
        ]
    ).astype(np.float64)
    whole = per_unit.sum(axis=1, keepdims=True)
    values, drawn = (
        {
            "logloss": _ratio(total, rows),
            "ne": _ratio(_ratio(total, rows), entropy(_ratio(positives, rows))),
            "calibration": _ratio(predicted, positives),
        }
        for total, predicted, positives, rows in (whole, sum_samples(per_unit, resamples))
    )
    return {name: Estimate(float(values[name][0]), drawn[name]) for name in values}


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(
        numerator,
        denominator,
        out=np.full_like(numerator, np.nan),
        where=denominator > 0,
    )


def finite(value: float) -> float | None:
    """JSON has no nan: a metric that does not exist is null."""
    return value if math.isfinite(value) else None


def interval_json(ends: Iterable[float]) -> list[float | None]:
    """An interval as JSON."""
    return [finite(end) for end in ends]


def evaluate(
    scores: Mapping[str, ArrayLike],
    split: EvaluationSplit,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model and describe it as `report.json` does: `metrics` and `buckets`."""
    return describe(measure(scores, split, num_resamples=num_resamples, seed=seed), split)


def describe(measured: Measurement, split: EvaluationSplit) -> dict[str, Any]:
    """`{"metrics": {TASK: {"auc", "auc_ci", ...}}, "buckets": {TASK: {CUT: [{...}]}}}`."""
    metrics: dict[str, dict[str, Any]] = {}
    for task, estimates in measured.metrics.items():
        metrics[task] = {}
        for name, estimate in estimates.items():
            metrics[task][name] = finite(estimate.value)
            metrics[task][f"{name}_ci"] = interval_json(estimate.ci)
    buckets = {
        task: {
            cut: [
                {
                    "bucket": bucket,
                    "rows": bucket_rows(split, cut, bucket),
                    "auc": finite(estimate.value),
                    "auc_ci": interval_json(estimate.ci),
                }
                for bucket, estimate in found.items()
            ]
            for cut, found in cuts.items()
        }
        for task, cuts in measured.buckets.items()
    }
    return {"metrics": metrics, "buckets": buckets}


def bucket_rows(split: EvaluationSplit, cut: str, bucket: str) -> int:
    """Rows of one bucket."""
    found = split.bucketings[cut]
    return int((found.code == found.names.index(bucket)).sum())


def compare_pairs(
    scores_a: Mapping[str, ArrayLike],
    scores_b: Mapping[str, ArrayLike],
    split: EvaluationSplit,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences a - b with paired intervals.

    Returns:
        `{"metrics": [{"task", "metric", "difference", "ci"}], "buckets": [{"task", "bucketing",
        "bucket", "rows", "difference", "ci"}]}`; bucket differences are of AUC.
    """
    a = measure(scores_a, split, num_resamples=num_resamples, seed=seed)
    b = measure(scores_b, split, num_resamples=num_resamples, seed=seed)
    return {"metrics": metric_differences(a, b), "buckets": bucket_differences(a, b, split)}


def metric_differences(a: Measurement, b: Measurement) -> list[dict[str, Any]]:
    """Differences a - b of every task and metric."""
    return [
        {"task": task, "metric": name, **_difference(estimate, b.metrics[task][name])}
        for task, estimates in a.metrics.items()
        for name, estimate in estimates.items()
    ]


def bucket_differences(
    a: Measurement, b: Measurement, split: EvaluationSplit
) -> list[dict[str, Any]]:
    """Differences a - b of AUC in every bucket."""
    return [
        {
            "task": task,
            "bucketing": cut,
            "bucket": bucket,
            "rows": bucket_rows(split, cut, bucket),
            **_difference(estimate, b.buckets[task][cut][bucket]),
        }
        for task, cuts in a.buckets.items()
        for cut, found in cuts.items()
        for bucket, estimate in found.items()
    ]


def _difference(a: Estimate, b: Estimate) -> dict[str, Any]:
    gain = a - b
    return {"difference": finite(gain.value), "ci": interval_json(gain.ci)}
