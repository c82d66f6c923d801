"""Differences between rows, read from the pairs of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["better", "worse", "unclear"]


class Gain(NamedTuple):
    """A difference of two rows in one metric, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def kind(self) -> Kind:
        """On which side of 0 the interval lies, `unclear` where it holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


def pair_gain(
    report: Mapping[str, Any], a: str, b: str, *, task: str, metric: str = "auc"
) -> Gain | None:
    """Difference a - b, or None where one of the two lacks the metric.

    Raises:
        KeyError: when the report has no such pair.
    """
    for pair in report["pairs"]:
        if (pair["task"], pair["metric"]) != (task, metric):
            continue
        sign = 1 if (pair["a"], pair["b"]) == (a, b) else -1
        if sign == 1 or (pair["a"], pair["b"]) == (b, a):
            if pair["difference"] is None or None in pair["ci"]:
                return None
            low, high = sorted(sign * end for end in pair["ci"])
            return Gain(sign * pair["difference"], low, high)
    raise KeyError(f"no pair of {a!r} and {b!r} in {metric} of {task}")
