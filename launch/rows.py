"""A report's row read back from the run folders that it was trained in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenization.quality import mem_bags
from trainer.data.schema import RowRange
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import GEN_TOKEN, ITEM_ID, MEM_TOKEN
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.predictions import Predictions
from trainer.report import CurvePoint, ReportRow, RowRun
from trainer.run_folder import RunFolder
from trainer.run_inputs import load_tokens


def what_stands_for_an_item(experiment: Experiment) -> str:
    """`item_id`, `gen_token`, `mem_token`, `hybrid`, `mixed` (tokens and IDs), or `learned`."""
    if isinstance(experiment.model.item, LearnedTokensConfig):
        return "learned"
    tables = experiment.item_tables
    gen, mem = GEN_TOKEN in tables, MEM_TOKEN in tables
    if not (gen or mem):
        return "item_id"
    if ITEM_ID in tables:
        return "mixed"
    return "hybrid" if gen and mem else GEN_TOKEN if gen else MEM_TOKEN


def _cost(run: RunFolder) -> dict[str, Any]:
    """What a run says of itself at its end; nothing yet of one that goes on, or was stopped."""
    return json.loads(run.result.read_text()) if run.result.exists() else {}


def trained_row(
    title: str,
    tower: str,
    runs: Mapping[int, RunFolder],
    experiment: Experiment,
    rows: RowRange,
    predictions: str,
) -> ReportRow:
    """One row of a report.

    Args:
        title: shown in the report.
        tower: readable name of the interaction architecture.
        runs: run of each seed; one that is not finished has no costs yet.
        experiment: that was trained; seeds differ.
        rows: part of the log that was scored.
        predictions: name of the file of scores in each run folder.
    """
    costs = {seed: _cost(run) for seed, run in runs.items()}
    cost = next(iter(costs.values()))
    return ReportRow(
        name=title,
        tokens=what_stands_for_an_item(experiment),
        tower=tower,
        dense_params=cost.get("dense_params"),
        sparse_params=cost.get("sparse_params", {}),
        sparse_bytes=cost.get("sparse_bytes"),
        flops_per_batch=cost.get("flops_per_batch"),
        batch_size=cost.get("flops_batch"),
        details=_token_counts(experiment),
        runs=tuple(
            RowRun(
                seed=seed,
                scores=Predictions.load(run.path / predictions).aligned(rows),
                curve=_curve(run, experiment.data.schema.labels[0]),
                samples_per_s=costs[seed].get("samples_per_s"),
                wall_seconds=costs[seed].get("train_seconds"),
                peak_rss_bytes=costs[seed].get("peak_rss_bytes"),
                sids=costs[seed].get("sids"),
            )
            for seed, run in runs.items()
        ),
    )


def _curve(run: RunFolder, task: str) -> tuple[CurvePoint, ...]:
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in run.metrics.read_text().splitlines()
    ]
    return tuple(
        CurvePoint(
            samples=line["samples"],
            loss=line.get("train/discriminative", line.get("train/loss")),
            valid_auc=line.get(f"valid/{task}_auc"),
        )
        for line in lines
    )


def _token_counts(experiment: Experiment) -> dict[str, str]:
    """How far a model's tokens tell items apart, in words for the report."""
    tokens = load_tokens(experiment)
    if tokens is None:
        return {}
    tables = experiment.item_tables
    counts = {
        "items": f"{tokens.num_items:,}",
        "distinct gen-token tuples": f"{len(np.unique(tokens.codes, axis=0)):,}",
        "token rows": f"{sum(table.rows for table in tables.values()):,}",
    }
    if MEM_TOKEN in tables:
        counts["mem-tokens found"] = f"{tokens.num_merges:,}"
        counts["distinct mem-token bags"] = f"{len(np.unique(mem_bags(tokens))):,}"
    return counts
