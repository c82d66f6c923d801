"""What an export costs and how far its scores are from those of training's evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.schema import RowRange
from trainer.metrics import auc
from trainer.models.ranking_network import Precision
from trainer.predictions import Predictions
from trainer.run_folder import RunFolder
from trainer.serving.export import TrainedRun
from trainer.serving.folder import FILES, IDENTITY, ITEMS, NETWORK, TABLES, TOKENS, USERS
from trainer.serving.predictor import Predictor
from trainer.serving.tables import RowKind
from trainer.state_parts import Box
from trainer.stored_state import DTYPES

LATENCY_ROWS = (1, 100, 1000)
_CALLS: Final = {1: 200, 100: 100, 1000: 50}
_WARM_CALLS = 5
_PART_ROWS = 8192

TOLERANCE: Final[dict[RowKind, float]] = {"fp32": 1e-6, "fp16": 1e-3, "int8": 1e-2, "int4": 1e-1}
"""Largest difference of a probability from training's evaluation, the network in fp32."""
BF16_TOLERANCE: Final = 2e-2
"""The same from a network in bf16, whose products are rounded anew in every batch."""


def tolerance(rows: RowKind, precision: Precision) -> float:
    """Largest difference of a probability from training's evaluation."""
    return TOLERANCE[rows] if precision == "fp32" else max(TOLERANCE[rows], BF16_TOLERANCE)


def sizes(run: TrainedRun, folder: Path) -> dict[str, dict[str, int]]:
    """Bytes by part: of the training checkpoint, and of the export."""
    checkpoint = dict.fromkeys(
        ("tables", "tables' optimizer", "network", "network's optimizer", "other"), 0
    )
    item_bytes = {name: dtype.itemsize for dtype, name in DTYPES.items()}
    for name, stored in run.source.tensors.items():
        of = name.split("/")[0]
        part = {"table": "tables", "network": "network"}.get(of, "other")
        if part != "other" and "/state/" in name:
            part += "' optimizer" if part.endswith("s") else "'s optimizer"
        for chunk in stored.chunks:
            box = Box.whole(chunk.box.sizes[:1]) if stored.per_row else chunk.box
            checkpoint[part] += box.num_values * item_bytes[stored.dtype]
    checkpoint["other"] += sum(
        entry["bytes"] for name, entry in run.source.files.items() if name.endswith(".json")
    )
    export = dict.fromkeys(("tables", "network", "tokens", "items and users", "other"), 0)
    parts = {TABLES: "tables", NETWORK: "network", TOKENS: "tokens"}
    parts |= dict.fromkeys((ITEMS, USERS, IDENTITY), "items and users")
    for name in FILES:
        if (folder / name).is_file():
            export[parts.get(name.split("/")[0], "other")] += (folder / name).stat().st_size
    return {"checkpoint": checkpoint, "export": export}


def measured_rows(run: TrainedRun, dataset: Dataset, num_rows: int) -> RowRange:
    """The first rows of the test part, at most `num_rows`."""
    test = dataset.split(run.split).test
    return RowRange(test.start, min(test.stop, test.start + num_rows))


def agreement(
    run: TrainedRun,
    predictor: Predictor,
    dataset: Dataset,
    rows: RowRange,
    *,
    reference: Predictor | None,
) -> dict[str, Any]:
    """Scores of the export against those of training's evaluation on the same rows.

    Args:
        run: what was exported.
        predictor: of the export.
        dataset: the log.
        rows: of the test part.
        reference: an export with fp32 rows, where training has not evaluated this checkpoint on
            the test part.

    Returns:
        `{"rows", "against", "tolerance", "holds", "tasks": {TASK: {"max_difference",
        "mean_difference", "auc", "reference_auc", "auc_change"}}}`; AUCs are null where a part
        holds one kind of label.
    """
    scores = _scores(predictor, dataset, rows)
    if reference is None:
        truth: Mapping[str, NDArray[np.float64]] = evaluated_scores(run, dataset, rows)
    else:
        truth = _scores(reference, dataset, rows)
    labels = dataset.read(rows, dataset.schema.labels)
    tasks: dict[str, dict[str, Any]] = {}
    for task in predictor.tasks:
        difference = np.abs(scores[task] - truth[task])
        y = labels[task].astype(np.float64)
        both = 0 < y.sum() < len(y)
        found, expected = (auc(y, p[task]) if both else None for p in (scores, truth))
        tasks[task] = {
            "max_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "auc": found,
            "reference_auc": expected,
            "auc_change": None if found is None or expected is None else found - expected,
        }
    allowed = tolerance(predictor.description.rows, predictor.description.precision)
    return {
        "rows": len(rows),
        "against": "export with fp32 rows" if reference else "training's evaluation",
        "tolerance": allowed,
        "holds": max(task["max_difference"] for task in tasks.values()) <= allowed,
        "tasks": tasks,
    }


def was_evaluated(run: TrainedRun) -> bool:
    """Whether the run has scored its test part with the exported checkpoint: its last one."""
    schedule = run.source.state.get("schedule")
    last = schedule.get("num_steps") if isinstance(schedule, dict) else None
    return run.folder.result.exists() and run.source.state["step"] == last


def evaluated_scores(
    run: TrainedRun, dataset: Dataset, rows: RowRange
) -> dict[str, NDArray[np.float64]]:
    """What training's evaluation gave these rows of the test part."""
    test = dataset.split(run.split).test
    saved = Predictions.load(run.folder.path / RunFolder.predictions_of("test")).aligned(test)
    part = slice(rows.start - test.start, rows.stop - test.start)
    return {task: scores[part] for task, scores in saved.items()}


def latency(
    predictor: Predictor,
    dataset: Dataset,
    rows: RowRange,
    request_rows: Sequence[int] = LATENCY_ROWS,
) -> list[dict[str, Any]]:
    """Milliseconds of `Predictor.score` for requests from the log, each with its own history.

    Args:
        predictor: of the export.
        dataset: the log.
        rows: of the test part, which requests are cut from.
        request_rows: impressions of a request, at most those of the part.
    """
    found = []
    for wanted in request_rows:
        size = min(wanted, len(rows))
        calls = _CALLS.get(size, 50)
        requests = _requests(predictor, dataset, rows, size, calls + _WARM_CALLS)
        seconds = []
        for request in requests:
            start = time.perf_counter()
            predictor.score(request)
            seconds.append(time.perf_counter() - start)
        p50, p99 = np.percentile(np.asarray(seconds[_WARM_CALLS:]) * 1e3, (50, 99))
        found.append(
            {
                "rows": size,
                "calls": calls,
                "threads": torch.get_num_threads(),
                "p50_ms": float(p50),
                "p99_ms": float(p99),
                "rows_per_s": size / float(p50) * 1e3,
            }
        )
    return found


def _scores(
    predictor: Predictor, dataset: Dataset, rows: RowRange
) -> dict[str, NDArray[np.float64]]:
    found = []
    for start in range(rows.start, rows.stop, _PART_ROWS):
        part = RowRange(start, min(start + _PART_ROWS, rows.stop))
        found.append(predictor.score_table(_table(predictor, dataset, part)))
    return {task: np.concatenate([one[task] for one in found]) for task in predictor.tasks}


def _table(predictor: Predictor, dataset: Dataset, rows: RowRange) -> pa.Table:
    columns = predictor.columns(dataset.parts.parts[0].schema.names)
    return pa.concat_tables(piece.read(columns) for piece in dataset.parts.pieces(rows))


def _requests(
    predictor: Predictor, dataset: Dataset, rows: RowRange, size: int, number: int
) -> list[dict[str, Any]]:
    """Requests from places that are spread over the rows."""
    starts = np.linspace(rows.start, rows.stop - size, number).astype(int)
    requests = []
    for start in starts:
        part = RowRange(int(start), int(start) + size)
        values = _table(predictor, dataset, part).to_pydict()
        if size == 1:
            values = {name: value[0] for name, value in values.items()}
        requests.append(values)
    return requests
