"""Exact ranking and calibration metrics of one task, in float64 numpy.

Labels are 0 or 1, scores are probabilities (any finite number where only the order counts).
A metric that does not exist for the rows at hand (AUC of a single class) is `nan`; arguments
that cannot be meant (NaN scores, probabilities outside [0, 1], lengths that differ) are errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPSILON = 1e-12
"""Probabilities are held this far from 0 and 1 inside logarithms."""


@dataclass(frozen=True, kw_only=True)
class GroupedAUC:
    """AUC within groups, averaged with the groups' impressions as weights.

    Attributes:
        value: weighted mean over groups that hold both classes; nan if there is none.
        num_groups: number of groups used.
        group: int64 (G,) id of each group used, ascending.
        auc: float64 (G,) AUC of each group.
        impressions: float64 (G,) rows of each group.
    """

    value: float
    num_groups: int
    group: Ints
    auc: Floats
    impressions: Floats


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Rows of neighbouring predictions: how many, what was predicted, what happened."""

    rows: int
    predicted: float
    observed: float


def check_scores(
    labels: ArrayLike, scores: ArrayLike, *, probabilities: bool = False
) -> tuple[Floats, Floats]:
    """Bring labels and scores to float64 vectors and check them.

    Args:
        labels: (N,) values 0 or 1.
        scores: (N,) finite numbers.
        probabilities: scores must also lie in [0, 1].

    Returns:
        Labels and scores as float64 (N,).

    Raises:
        ValueError: on another shape, lengths that differ, no rows, a label that is neither 0 nor
            1, a score that is not finite, or a probability outside [0, 1].
    """
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or s.ndim != 1:
        raise ValueError(f"labels and scores must be vectors, found shapes {y.shape} and {s.shape}")
    if len(y) != len(s):
        raise ValueError(f"labels and scores differ in length: {len(y)} and {len(s)}")
    if len(y) == 0:
        raise ValueError("no rows to evaluate: labels and scores are empty")
    if not ((y == 0) | (y == 1)).all():
        wrong = int(np.flatnonzero(~((y == 0) | (y == 1)))[0])
        raise ValueError(f"labels: expected 0 or 1, found {y[wrong]} at position {wrong}")
    if not np.isfinite(s).all():
        wrong = int(np.flatnonzero(~np.isfinite(s))[0])
        raise ValueError(f"scores: expected finite numbers, found {s[wrong]} at position {wrong}")
    if probabilities and (s.min() < 0 or s.max() > 1):
        wrong = int(np.flatnonzero((s < 0) | (s > 1))[0])
        raise ValueError(
            f"scores: expected probabilities in [0, 1], found {s[wrong]} at position {wrong}; "
            "apply the sigmoid to logits first"
        )
    return y, s


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, exact, ties counted half.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) finite numbers; only their order counts.

    Returns:
        AUC in [0, 1], or nan when only one class is present.

    Raises:
        ValueError: see `check_scores`.
    """
    y, s = check_scores(labels, scores)
    negatives = np.sort(s[y == 0])
    positives = np.sort(s[y == 1])
    if len(negatives) == 0 or len(positives) == 0:
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    won = 0.5 * (below.sum(dtype=np.float64) + not_above.sum(dtype=np.float64))
    return float(won / (len(negatives) * float(len(positives))))


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> GroupedAUC:
    """AUC within each group, weighted by impressions: GAUC over users, QAUC over queries.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) finite numbers.
        groups: (N,) integer group of each row.

    Returns:
        The weighted mean and the values of the groups that hold both classes.

    Raises:
        ValueError: see `check_scores`; also when `groups` has another length.
    """
    y, s = check_scores(labels, scores)
    ids, group = np.unique(np.asarray(groups), return_inverse=True)
    if group.shape != y.shape:
        raise ValueError(f"groups and labels differ in length: {group.size} and {len(y)}")
    num_groups = len(ids)

    # One integer key orders rows by (group, score, label), so a plain sort does it all.
    order = np.argsort(s)
    ordered = s[order]
    rank = np.empty(len(s), dtype=np.int64)
    rank[order] = np.concatenate(([0], np.cumsum(ordered[1:] != ordered[:-1])))
    num_ranks = int(rank[order[-1]]) + 1
    key = np.sort((group.astype(np.int64) * num_ranks + rank) * 2 + y.astype(np.int64))

    positive = (key & 1).astype(np.float64)
    tie = key >> 1
    first = np.flatnonzero(np.concatenate(([True], tie[1:] != tie[:-1])))
    tie_group = tie[first] // num_ranks
    tie_rows = np.diff(np.append(first, len(tie))).astype(np.float64)
    tie_positives = np.add.reduceat(positive, first)
    tie_negatives = tie_rows - tie_positives

    rows = np.bincount(group, minlength=num_groups).astype(np.float64)
    num_positives = np.bincount(tie_group, weights=tie_positives, minlength=num_groups)
    num_negatives = rows - num_positives
    earlier = np.cumsum(tie_negatives) - tie_negatives
    earlier -= (np.cumsum(num_negatives) - num_negatives)[tie_group]
    won = np.bincount(
        tie_group, weights=tie_positives * (earlier + 0.5 * tie_negatives), minlength=num_groups
    )

    used = (num_positives > 0) & (num_negatives > 0)
    value = won[used] / (num_positives[used] * num_negatives[used])
    weight = rows[used]
    return GroupedAUC(
        value=float(np.average(value, weights=weight)) if used.any() else float("nan"),
        num_groups=int(used.sum()),
        group=ids[used].astype(np.int64),
        auc=value,
        impressions=weight,
    )


def cross_entropy(labels: Floats, probabilities: Floats) -> Floats:
    """Negative log-likelihood of each row in nats, probabilities held off 0 and 1."""
    p = np.clip(probabilities, EPSILON, 1 - EPSILON)
    return -np.log(np.where(labels > 0.5, p, 1 - p))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log-likelihood in nats.

    Raises:
        ValueError: see `check_scores`.
    """
    y, p = check_scores(labels, probabilities, probabilities=True)
    return float(cross_entropy(y, p).mean())


def entropy(rate: ArrayLike) -> Floats:
    """Entropy in nats of 0/1 outcomes with the given rate; 0 at rates 0 and 1."""
    p = np.asarray(rate, dtype=np.float64)
    inside = (p > 0) & (p < 1)
    q = np.where(inside, p, 0.5)
    return np.where(inside, -(q * np.log(q) + (1 - q) * np.log(1 - q)), 0.0)


def normalized_entropy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """LogLoss over the entropy of these rows' own base rate: below 1 beats the constant guess.

    Returns:
        The ratio, or nan when only one class is present.

    Raises:
        ValueError: see `check_scores`.
    """
    y, p = check_scores(labels, probabilities, probabilities=True)
    base = float(entropy(y.mean()))
    return float(cross_entropy(y, p).mean() / base) if base > 0 else float("nan")


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Sum of predictions over sum of labels: 1 is calibrated, above 1 promises too much.

    Returns:
        The ratio, or nan when no label is positive.

    Raises:
        ValueError: see `check_scores`.
    """
    y, p = check_scores(labels, probabilities, probabilities=True)
    return float(p.sum() / y.sum()) if y.any() else float("nan")


def calibration_bins(
    labels: ArrayLike, probabilities: ArrayLike, *, num_bins: int = 20
) -> tuple[CalibrationBin, ...]:
    """Predicted against observed rate in bins of equal row counts, by ascending prediction.

    Args:
        labels: (N,) 0 or 1.
        probabilities: (N,) in [0, 1].
        num_bins: bins; fewer when there are fewer rows.

    Raises:
        ValueError: see `check_scores`; also when `num_bins` is below 1.
    """
    y, p = check_scores(labels, probabilities, probabilities=True)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, found {num_bins}")
    parts = np.array_split(np.argsort(p, kind="stable"), min(num_bins, len(p)))
    return tuple(
        CalibrationBin(
            rows=len(part), predicted=float(p[part].mean()), observed=float(y[part].mean())
        )
        for part in parts
    )
