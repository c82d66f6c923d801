"""The way from item IDs to tokens: quality against storage.

farewell compare migration.movielens1m

The ID side is what industry runs: a row an item, fewer rows shared by hash, and fewer rows that go
to the ids that are seen (managed collisions, ZCH) and leave those that stay away. The token side
keeps a residual ID table beside its tokens that shrinks to nothing: the items most exposed in
the training part keep a row, the others are their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from configs import datasets, rankmixer_id, trm_rankmixer
from configs.datasets import Source
from configs.id_vs_tokens import SYNTHETIC_ORACLE
from configs.recipe import ID_DIM, ITEM_DIM, RANKMIXER, ranking_experiment, token_encoder
from trainer.comparison import ComparedRow, Comparison, Study
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import IdRows, ItemIdConfig

TOWER = "RankMixer"
OWN_ROWS = "ID, a row an item"
ID_SHARES = (0.5, 0.25)
RESIDUAL_SHARES = (1.0, 0.5, 0.25, 0.1)
ROW_KINDS: tuple[tuple[IdRows, str], ...] = (("hashed", "hashed"), ("managed", "managed (ZCH)"))


def comparison(name: str, source: Source, oracle: Mapping[str, str] | None = None) -> Comparison:
    """IDs with fewer and fewer rows, tokens with fewer and fewer residual IDs, tokens alone."""
    ids = [
        ComparedRow(
            title=f"ID, {title}, {share:.0%} of the rows",
            tower=TOWER,
            experiment=with_fewer_rows(source, rows, share),
        )
        for rows, title in ROW_KINDS
        for share in ID_SHARES
    ]
    mixed = [
        ComparedRow(
            title=f"Tokens and IDs of {share:.0%} of the items",
            tower=TOWER,
            experiment=with_residual_ids(source, share),
        )
        for share in RESIDUAL_SHARES
    ]
    return Comparison(
        name=name,
        rows=(
            ComparedRow(title=OWN_ROWS, tower=TOWER, experiment=rankmixer_id.experiment(source)),
            *ids,
            *mixed,
            ComparedRow(
                title="Tokens alone (TRM)",
                tower=TOWER,
                experiment=trm_rankmixer.experiment(source),
            ),
        ),
        oracle=oracle or {},
        study=Study(
            question="How much of the ID table can go, and what does it cost?",
            source="no paper: TRM replaces IDs at once",
            reference=OWN_ROWS,
            notes=(
                "Bytes of a managed table hold its map from ids to rows (32 a row) beside the "
                "weights; optimizer state is in none of the rows.",
                "Items without an impression in the training part never keep a residual row, so "
                "'100 %' means every item that was seen.",
            ),
        ),
    )


def with_fewer_rows(source: Source, rows: IdRows, share: float) -> Experiment:
    """RankMixer on item IDs that share `share` as many rows as there are items."""
    item = ItemIdConfig(table_dim=ID_DIM, item_dim=ITEM_DIM, hidden_dims=(192,), rows=rows)
    return ranking_experiment(
        f"rankmixer_id_{rows}_{round(100 * share)}",
        source,
        item=item,
        tower=RANKMIXER,
        id_rows=_rows(source, share),
    )


def with_residual_ids(source: Source, share: float) -> Experiment:
    """TRM on RankMixer whose `share` most exposed items keep an ID beside their tokens."""
    item = replace(token_encoder(source, mem_tokens=True), residual_id_dim=ID_DIM)
    return ranking_experiment(
        f"trm_rankmixer_residual_{round(100 * share)}",
        source,
        item=item,
        tower=RANKMIXER,
        id_rows=_rows(source, share),
    )


def _rows(source: Source, share: float) -> int:
    return max(4, round(share * source.num_items))


def movielens1m() -> Comparison:
    """On MovieLens-1M."""
    return comparison("migration.movielens1m", datasets.movielens1m())


def synthetic_high_churn() -> Comparison:
    """On a simulated log whose catalogue changes fast: rows must change hands, or items share."""
    return comparison(
        "migration.synthetic_high_churn", datasets.synthetic_high_churn(), SYNTHETIC_ORACLE
    )


def smoke() -> Comparison:
    """On a small simulated log: does every row run?"""
    return comparison("migration.smoke", datasets.smoke(), SYNTHETIC_ORACLE)
