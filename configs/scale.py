"""Scaling studies (TRM section 4.3, Figure 4): towers of growing size on tokens and on item IDs.

farewell scale scale.synthetic_high_churn
"""

from __future__ import annotations

from dataclasses import replace

from configs import datasets
from configs.datasets import Source
from configs.sizes import DHEN, DLRM_MLP, RANKMIXER, WUKONG
from configs.trm_rows import TokenRow, aligned, id_model, semid
from trainer.experiment import Experiment
from trainer.modules.next_token_config import NextTokenConfig
from trainer.scaling_study import ScalingSide, ScalingStudy

SIZES = (110_000, 350_000, 1_100_000, 3_500_000, 11_000_000)
"""Dense parameters: two decades."""
NEXT_TOKEN = NextTokenConfig(dim=16, num_layers=2)
"""Small and of one size, so that the smallest model has a tower and only the tower is swept."""
TRM, RANKMIXER_ID = "TRM (RankMixer)", "RankMixer (ID)"


def study(name: str, source: Source, sizes: tuple[int, ...] = SIZES) -> ScalingStudy:
    """Two token sides and three ID sides.

    Args:
        name: of the report.
        source: log and tokens.
        sizes: dense parameters.
    """
    trm = TokenRow(source=aligned(source), next_token=NEXT_TOKEN)
    tokens: tuple[tuple[str, str, TokenRow], ...] = (
        (TRM, "trm_rankmixer", trm),
        ("SEMID (RankMixer)", "semid_rankmixer", semid(source)),
    )
    by_id = ((RANKMIXER_ID, RANKMIXER), ("WuKong (ID)", WUKONG), ("DHEN (ID)", DHEN))
    return ScalingStudy(
        name=name,
        sides=(
            *(
                ScalingSide(
                    title=title,
                    kind="token",
                    experiments=tuple(row.sized(run, dense=size) for size in sizes),
                )
                for title, run, row in tokens
            ),
            *(
                ScalingSide(
                    title=title,
                    kind="id",
                    experiments=tuple(id_model(source, family, size) for size in sizes),
                )
                for title, family in by_id
            ),
        ),
        baseline=_baseline(source, sizes[0]),
        question=(TRM, RANKMIXER_ID),
    )


def _baseline(source: Source, size: int) -> Experiment:
    """The MLP of the smallest size, over which gains are shown."""
    return id_model(source, DLRM_MLP, size)


def _short(source: Source, max_steps: int) -> Source:
    """Fewer steps, so that the largest towers train in minutes on a processor."""
    return replace(
        source,
        train=replace(source.train, max_steps=max_steps, eval_every=None),
        warmup_steps=max(1, max_steps // 6),
    )


def synthetic_high_churn() -> ScalingStudy:
    """On a simulated search log of high churn."""
    return study("scale.synthetic_high_churn", _short(datasets.synthetic_high_churn(), 100))


def movielens1m() -> ScalingStudy:
    """On MovieLens-1M."""
    return study("scale.movielens1m", _short(datasets.movielens1m(), 100))


def smoke() -> ScalingStudy:
    """On a small simulated log: does every side run?"""
    return study("scale.smoke", _short(datasets.smoke(), 8), (110_000, 150_000, 200_000, 300_000))
