"""Towers of a wanted size: comparisons hold dense parameters equal, sweeps spread them out.

A family has two sizes: a width, which moves parameters in large steps, and a hidden width, which
moves them in small ones. `sized` searches both, so that a comparison is fair on any log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.experiment import Experiment
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.dhen import DHENConfig
from trainer.models.dlrm import DLRMConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.tower import TowerConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wukong import WuKongConfig
from trainer.table_use import dense_reserve

NUM_TOKENS = 8
TOLERANCE = 0.05
"""Sizes count as equal up to this share."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Towers of one architecture.

    Args:
        title: as reports call it.
        build: width, hidden width -> tower; both grow its parameters.
        unit: widths are multiples of it.
        ratio: hidden width over width that the width is chosen for.
    """

    title: str
    build: Callable[[int, int], TowerConfig]
    unit: int
    ratio: float = 2.0


def _rankmixer(width: int, hidden: int) -> TowerConfig:
    return RankMixerConfig(num_tokens=NUM_TOKENS, dim=width, num_layers=2, expansion=hidden / width)


def _transformer(width: int, hidden: int) -> TowerConfig:
    return TransformerConfig(
        num_tokens=NUM_TOKENS,
        dim=width,
        num_layers=2,
        num_heads=4,
        expansion=hidden / width,
        weights="per_token",
    )


def _wukong(width: int, hidden: int) -> TowerConfig:
    return WuKongConfig(
        num_tokens=NUM_TOKENS,
        dim=width,
        num_layers=2,
        num_fm_tokens=NUM_TOKENS // 2,
        rank=NUM_TOKENS // 2,
        hidden_dims=(hidden,),
    )


def _dhen(width: int, hidden: int) -> TowerConfig:
    return DHENConfig(
        num_tokens=NUM_TOKENS, dim=width, num_layers=2, num_heads=4, dot_hidden_dim=hidden
    )


def _dcn_v2(width: int, hidden: int) -> TowerConfig:
    return DCNv2Config(num_layers=2, rank=width, hidden_dims=(hidden, hidden // 2))


def _dlrm(width: int, hidden: int) -> TowerConfig:
    return DLRMConfig(hidden_dims=(hidden, width))


RANKMIXER = Family(title="RankMixer", build=_rankmixer, unit=NUM_TOKENS)
TRANSFORMER = Family(title="Transformer", build=_transformer, unit=8)
WUKONG = Family(title="WuKong", build=_wukong, unit=8, ratio=4.0)
DHEN = Family(title="DHEN", build=_dhen, unit=8, ratio=4.0)
DCN_V2 = Family(title="DCN-v2", build=_dcn_v2, unit=4, ratio=4.0)
DLRM_MLP = Family(title="DLRM-MLP", build=_dlrm, unit=8)


def dense_parameters(experiment: Experiment) -> int:
    """Parameters outside embedding tables."""
    return dense_reserve(experiment).num_parameters


def sized(make: Callable[[TowerConfig], Experiment], family: Family, target: int) -> Experiment:
    """The experiment whose tower brings its dense parameters closest to a target.

    The width is the largest whose parameters do not exceed the target at the family's ratio of
    hidden width to width; the hidden width then makes up what is missing.

    Args:
        make: experiment of a tower; everything else about it is decided.
        family: of the tower.
        target: dense parameters of the whole network.

    Raises:
        ValueError: when no size comes within `TOLERANCE` of the target.
    """

    def at(width: int, hidden: int) -> int:
        return dense_parameters(make(family.build(width, hidden)))

    width = family.unit * _largest(
        lambda n: at(n * family.unit, int(family.ratio * n * family.unit)) <= target
    )
    hidden = max(width, 2) if width else 0
    if width:
        hidden += _largest(lambda n: at(width, hidden + n) <= target)
        over, under = at(width, hidden + 1), at(width, hidden)
        hidden += abs(over - target) < abs(under - target)
        found = at(width, hidden)
        if abs(found - target) <= TOLERANCE * target:
            return make(family.build(width, hidden))
    smallest = at(family.unit, int(family.ratio * family.unit))
    raise ValueError(
        f"{family.title}: no tower of about {target:,} dense parameters; the smallest has "
        f"{smallest:,}"
    )


def _largest(holds: Callable[[int], bool]) -> int:
    """Largest n >= 0 for which `holds`, which is true up to some n and false after; 0 always."""
    high = 1
    while holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
