"""Token quality as tables for the terminal."""

from __future__ import annotations

import dataclasses

import numpy as np
from rich.table import Table

from tokenization.quality import TokenQuality
from trainer.data.hashing import hash_buckets


def row_collisions(num_tokens: int, num_rows: int) -> float:
    """Share of mem-tokens that share their row with another; 0 while each has its own."""
    if num_tokens <= num_rows:
        return 0.0
    rows = hash_buckets(np.arange(num_tokens), num_rows)
    counts = np.bincount(rows, minlength=num_rows)
    return float(counts[counts > 1].sum() / num_tokens)


def quality_tables(quality: TokenQuality) -> tuple[Table, Table]:
    """Return the figures of `quality` as two tables: by level, and of the whole vocabulary."""
    levels = Table(title="gen-tokens by level")
    for name in (
        "level",
        "utilization",
        "dead codes",
        "perplexity",
        "gini",
        "distortion",
        "of variance",
    ):
        levels.add_column(name, justify="right")
    for level in quality.levels:
        levels.add_row(
            str(level.level),
            f"{level.utilization:.1%}",
            f"{level.dead_codes:,}",
            f"{level.perplexity:,.1f}",
            f"{level.gini:.3f}",
            f"{level.distortion:.4g}",
            f"{level.distortion_share:.1%}",
        )
    whole = Table(title="vocabulary", show_header=False)
    whole.add_column("what")
    whole.add_column("value", justify="right")
    formats = {"row_share": ".1%", "collision_rate": ".1%", "mem_tokens_per_item": ".2f"}
    for entry in dataclasses.fields(quality):
        if entry.name != "levels":
            value = getattr(quality, entry.name)
            whole.add_row(entry.name.replace("_", " "), format(value, formats.get(entry.name, ",")))
    return levels, whole
