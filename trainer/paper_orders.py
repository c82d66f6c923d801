"""Orders of two rows that a paper reports, and how they come out here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.pair_gains import Gain

_OUTCOMES = {"better": "same", "worse": "opposite", "unclear": "unclear"}


def paper_order(first: str, second: str, gain: Gain | None) -> dict[str, Any]:
    """How a pair comes out.

    Args:
        first: the paper's better row.
        second: the other one.
        gain: of the first over the second; None where one lacks the metric.
    """
    return {
        "first": first,
        "second": second,
        "difference": None if gain is None else gain.value,
        "ci": None if gain is None else [gain.low, gain.high],
        "outcome": "unclear" if gain is None else _OUTCOMES[gain.kind],
    }


def orders_finding(what: str, orders: Sequence[Mapping[str, Any]], source: str) -> dict[str, str]:
    """A sentence on the orders of one metric: as in the paper, otherwise (named), or untold.

    Args:
        what: the metric, as it is called.
        orders: see :func:`paper_order`; at least one.
        source: of the paper's numbers.
    """
    count = {
        outcome: sum(one["outcome"] == outcome for one in orders) for outcome in _OUTCOMES.values()
    }
    text = (
        f"{what}: of {len(orders)} orders of two rows in {source}, {count['same']} come out the "
        f"same, {count['opposite']} the other way round, {count['unclear']} can't be told."
    )
    below: dict[str, list[str]] = {}
    for one in orders:
        if one["outcome"] == "opposite":
            lower = f"{one['first']} ({-one['difference']:+.4f})"
            below.setdefault(one["second"], []).append(lower)
    if below:
        named = [f"{upper} above {', '.join(lower)}" for upper, lower in below.items()]
        text += f" The other way round: {'; '.join(named)}."
    return {"kind": "worse" if count["opposite"] else "note", "text": text}
