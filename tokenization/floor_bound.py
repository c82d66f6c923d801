"""What quantization can cost at most: the floor bound of TRM A.1.4.

If the Bayes logit is s-Hoelder in the item's representation with constant L_eta, then replacing Z
by its quantized Z~ raises the least possible loss by at most `L_eta * delta_s` (Eq. 16), where
`delta_s = E |Z - Z~|^s` (Eq. 13), and `delta_s <= D^(s/2)` with `D = E |Z - Z~|^2` for
`0 < s <= 2` (Eq. 18).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FloorBound:
    """Measured distortion and what follows from it.

    Args:
        exponent: s.
        delta: delta_s, measured (Eq. 13).
        delta_limit: D^(s/2), which delta_s can't exceed (Eq. 18).
        holder_constant: L_eta, None where nobody knows it.
        bound: L_eta * delta_s, the most that quantization can cost in log loss (Eq. 16).
    """

    exponent: float
    delta: float
    delta_limit: float
    holder_constant: float | None
    bound: float | None


def floor_bound(
    errors_N: NDArray[np.floating],
    *,
    exponent: float = 1.0,
    holder_constant: float | None = None,
) -> FloorBound:
    """Measure delta_s between embeddings and what their codes decode to.

    Args:
        errors_N: squared distance of each item's embedding Z to its decoded codes Z~.
        exponent: s, above 0 and at most 2.
        holder_constant: L_eta.

    Raises:
        ValueError: an exponent out of range.
    """
    if not 0 < exponent <= 2:
        raise ValueError(f"exponent: expected above 0 and at most 2, found {exponent}")
    delta = float((errors_N.astype(np.float64) ** (exponent / 2)).mean())
    return FloorBound(
        exponent=exponent,
        delta=delta,
        delta_limit=float(errors_N.mean(dtype=np.float64) ** (exponent / 2)),
        holder_constant=holder_constant,
        bound=None if holder_constant is None else holder_constant * delta,
    )


def floor_shift(logits_CN: NDArray[np.floating], cells_N: NDArray[np.integer]) -> float:
    """Return how much quantization really costs where the true logits are known.

    Items are equally likely; within a cell the best prediction is the cell's mean probability.

    Args:
        logits_CN: Bayes logits of every item in each of C contexts (users, queries).
        cells_N: number of each item's quantized value.

    Returns:
        The difference of the Bayes log losses, at least 0 (Eq. 14, 15).
    """
    p_CN = 1.0 / (1.0 + np.exp(-logits_CN.astype(np.float64)))
    cells_N = np.unique(cells_N, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(cells_N)
    total = 0.0
    for p_N in p_CN:
        mean = np.bincount(cells_N, weights=p_N) / sizes
        total += float(_entropy(mean)[cells_N].mean() - _entropy(p_N).mean())
    return total / len(p_CN)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = p.clip(1e-300, 1 - 1e-16)
    entropy: NDArray[np.float64] = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return entropy
