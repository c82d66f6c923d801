"""Power laws of loss over size, L(N) = L_inf + A N^-beta (TRM Eq. 8), with honest intervals.

For a given exponent the law is linear in floor and factor, so a fit is a search over exponents
with a closed form inside (separable least squares): it can't diverge, and thousands of bootstrap
draws are fitted at once. Floor and factor are held at 0 or above.

Legend: S sizes, K seeds, R bootstrap draws, G exponents tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.bootstrap import interval
from trainer.metrics import Floats

MIN_SIZES = 4
"""A law has three parameters; with as many points it fits anything."""
EXPONENTS: NDArray[np.float64] = np.geomspace(0.01, 4.0, 160)
"""Exponents that are tried; the best one is refined between its neighbours."""
MAX_UNDEFINED = 0.025
"""Share of draws without an exponent above which nothing is concluded from exponents."""

ExponentVerdict = Literal["larger", "smaller", "undecided"]


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L(N) = floor + factor * N^-exponent.

    Attributes:
        floor: L_inf, irreducible loss.
        factor: A; 0 where the loss does not fall with size.
        exponent: beta; nan where the loss does not fall with size.
    """

    floor: float
    factor: float
    exponent: float

    def __call__(self, sizes: ArrayLike) -> Floats:
        """Loss at each size."""
        sizes = np.asarray(sizes, dtype=np.float64)
        if not self.factor:
            return np.full(sizes.shape, self.floor)
        return self.floor + self.factor * sizes**-self.exponent


@dataclass(frozen=True, kw_only=True)
class PowerLawFits:
    """R laws fitted to R curves over the same sizes; arrays float64 (R,), as in `PowerLaw`."""

    floor: Floats
    factor: Floats
    exponent: Floats

    def __getitem__(self, index: int) -> PowerLaw:
        """One of them."""
        return PowerLaw(
            floor=float(self.floor[index]),
            factor=float(self.factor[index]),
            exponent=float(self.exponent[index]),
        )

    def __call__(self, sizes: ArrayLike) -> Floats:
        """Losses (R, number of sizes)."""
        x = np.asarray(sizes, dtype=np.float64)[None, :] ** -np.nan_to_num(self.exponent)[:, None]
        return self.floor[:, None] + self.factor[:, None] * x


def fit_power_laws(sizes: ArrayLike, losses_RS: ArrayLike) -> PowerLawFits:
    """Fit one law to each of R curves by least squares.

    Args:
        sizes: (S,) positive and distinct, at least `MIN_SIZES`.
        losses_RS: (R, S) positive.

    Raises:
        ValueError: when sizes or losses are not as described.
    """
    sizes_S = np.asarray(sizes, dtype=np.float64)
    y_RS = np.asarray(losses_RS, dtype=np.float64)
    if len(np.unique(sizes_S)) < MIN_SIZES or len(np.unique(sizes_S)) < len(sizes_S):
        raise ValueError(
            f"scaling law: expected at least {MIN_SIZES} distinct sizes, found {sizes_S.tolist()}"
        )
    if sizes_S.min() <= 0 or not np.isfinite(y_RS).all() or y_RS.min() <= 0:
        raise ValueError("scaling law: expected positive sizes and finite positive losses")
    unit = np.exp(np.log(sizes_S).mean())  # sizes around 1 keep powers of any exponent in range
    coarse_RG = _solve(
        sizes_S / unit, y_RS, np.broadcast_to(EXPONENTS, (len(y_RS), len(EXPONENTS)))
    )
    best_R = np.argmin(coarse_RG[2], axis=1)
    # A finer grid between the neighbours of the best exponent.
    low_R = EXPONENTS[np.maximum(best_R - 1, 0)]
    high_R = EXPONENTS[np.minimum(best_R + 1, len(EXPONENTS) - 1)]
    fine_RG = low_R[:, None] * (high_R / low_R)[:, None] ** np.linspace(0, 1, 41)[None, :]
    floor_RG, factor_RG, error_RG = _solve(sizes_S / unit, y_RS, fine_RG)
    at = (np.arange(len(y_RS)), np.argmin(error_RG, axis=1))
    exponent, factor = fine_RG[at], factor_RG[at]
    falls = factor > 0
    return PowerLawFits(
        floor=floor_RG[at],
        factor=np.where(falls, factor * unit**exponent, 0.0),
        exponent=np.where(falls, exponent, np.nan),
    )


def _solve(sizes_S: Floats, y_RS: Floats, exponents_RG: Floats) -> tuple[Floats, Floats, Floats]:
    """Best floor and factor, both at least 0, for each exponent, and the squared error left."""
    x_RGS = sizes_S[None, None, :] ** -exponents_RG[:, :, None]
    y_R1S = y_RS[:, None, :]
    x_mean, y_mean = x_RGS.mean(axis=2), y_R1S.mean(axis=2)
    x_centred = x_RGS - x_mean[:, :, None]
    factor = (x_centred * y_R1S).sum(axis=2) / (x_centred**2).sum(axis=2)
    factor = np.maximum(factor, 0.0)
    floor = y_mean - factor * x_mean
    below = floor < 0
    through_zero = (x_RGS * y_R1S).sum(axis=2) / (x_RGS**2).sum(axis=2)
    factor = np.where(below, through_zero, factor)
    floor = np.where(below, 0.0, floor)
    error = ((floor[:, :, None] + factor[:, :, None] * x_RGS - y_R1S) ** 2).sum(axis=2)
    return floor, factor, error


@dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """The law of one side, with what is known of its exponent.

    Attributes:
        law: fitted to the mean losses over seeds.
        exponent_ci: 95 % interval of beta, over draws that have one; nan without any.
        floor_ci: 95 % interval of L_inf.
        undefined: share of draws in which the loss does not fall with size, so that there is no
            exponent.
        noise: standard deviation of a mean loss from one training to the next.
        noise_from: what `noise` was estimated from.
        draws: laws of the bootstrap draws.
    """

    law: PowerLaw
    exponent_ci: tuple[float, float]
    floor_ci: tuple[float, float]
    undefined: float
    noise: float
    noise_from: Literal["seeds", "distance to the curve"]
    draws: PowerLawFits


def fit_scaling(
    sizes: ArrayLike, losses_SK: ArrayLike, draws_RSK: ArrayLike, *, seed: int = 0
) -> ScalingFit:
    """Fit a side's law, and again on every bootstrap draw.

    A draw takes resampled test rows (the same for every size and side, so differences are paired)
    and adds the scatter between trainings: the pooled standard deviation over seeds, divided by
    the square root of their number. With one seed the distance of the points from the fitted
    curve stands for it.

    Args:
        sizes: (S,).
        losses_SK: (S, K) test loss of each size and seed.
        draws_RSK: (R, S, K) the same on R resamples of the test rows.
        seed: of the added scatter; give sides different ones.

    Raises:
        ValueError: see `fit_power_laws`.
    """
    losses = np.asarray(losses_SK, dtype=np.float64)
    draws = np.asarray(draws_RSK, dtype=np.float64).mean(axis=2)
    mean_S = losses.mean(axis=1)
    num_sizes, num_seeds = losses.shape
    law = fit_power_laws(sizes, mean_S[None, :])[0]
    rng = np.random.default_rng(seed)
    if num_seeds > 1:
        variance = losses.var(axis=1, ddof=1).mean() / num_seeds
        freedom = num_sizes * (num_seeds - 1)
        noise_from: Literal["seeds", "distance to the curve"] = "seeds"
    else:
        freedom = num_sizes - 3
        variance = float(((law(sizes) - mean_S) ** 2).sum()) / freedom
        noise_from = "distance to the curve"
    # The standard deviation is itself an estimate: a draw takes another plausible one.
    spread_R1 = np.sqrt(variance * freedom / rng.chisquare(freedom, size=(len(draws), 1)))
    noisy = draws + spread_R1 * rng.standard_normal(draws.shape)
    fits = fit_power_laws(sizes, np.maximum(noisy, 1e-9))
    undefined = float(np.isnan(fits.exponent).mean())
    return ScalingFit(
        law=law,
        exponent_ci=interval(fits.exponent),
        floor_ci=interval(fits.floor),
        undefined=undefined,
        noise=float(np.sqrt(variance)),
        noise_from=noise_from,
        draws=fits,
    )


@dataclass(frozen=True, kw_only=True)
class ExponentDifference:
    """Whether one side's exponent is larger than another's.

    Attributes:
        difference: beta_a - beta_b of the fitted laws; nan where one has none.
        ci: 95 % interval over draws in which both have one.
        undefined: share of draws in which one has none.
        verdict: `undecided` where the interval holds 0 or too many draws have no exponent.
    """

    difference: float
    ci: tuple[float, float]
    undefined: float
    verdict: ExponentVerdict


def compare_exponents(a: ScalingFit, b: ScalingFit) -> ExponentDifference:
    """Paired difference of two sides' exponents."""
    drawn = a.draws.exponent - b.draws.exponent
    undefined = float(np.isnan(drawn).mean())
    low, high = interval(drawn)
    verdict: ExponentVerdict = "undecided"
    if undefined <= MAX_UNDEFINED and np.isfinite(low):
        verdict = "larger" if low > 0 else "smaller" if high < 0 else "undecided"
    return ExponentDifference(
        difference=a.law.exponent - b.law.exponent,
        ci=(low, high),
        undefined=undefined,
        verdict=verdict,
    )
