r"""Score a parquet file, or a folder of parts, with an exported model.

    farewell predict serving/trm --data data/movielens1m/interactions --out scores.parquet
    farewell predict serving/trm --data new.parquet --out scores.parquet --tokens data/tokens_today

Row n of the result belongs to row n of the input: column `row` and a probability for each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from launch.export import own_classes
from launch.terminal import result_console
from trainer.predictions import Predictions
from trainer.serving.predictor import BATCH_ROWS, Predictor


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """What is scored.

    Args:
        model: folder of `farewell export`.
        data: parquet file with the columns of interactions, or a folder of parts.
        out: parquet file to write.
        tokens: token artifact to read instead of the exported one, for new items: one that
            `farewell tokenize --update` made of the same vocabulary.
        experiment: `path/to/mine.py:function`, where the model has a tower of your own.
        batch_rows: rows that are scored at a time.
    """

    model: tyro.conf.Positional[Path]
    data: Path
    out: Path
    tokens: Path | None = None
    experiment: str | None = None
    batch_rows: int = BATCH_ROWS


def main(args: Sequence[str]) -> None:
    """Run `farewell predict` with the words that follow the verb."""
    arguments = tyro.cli(PredictArgs, prog="farewell predict", description=__doc__, args=args)
    if arguments.batch_rows < 1:
        raise ValueError(f"--batch-rows is {arguments.batch_rows}, expected at least 1")
    predictor = Predictor.load(
        arguments.model, tokens=arguments.tokens, classes=own_classes(arguments.experiment)
    )
    scores = predictor.score_parquet(arguments.data, batch_rows=arguments.batch_rows)
    num_rows = len(next(iter(scores.values())))
    Predictions(rows=np.arange(num_rows), scores=scores).save(arguments.out)
    console = result_console()
    for task, values in scores.items():
        mean = f"{values.mean():.4f}" if num_rows else "-"
        console.print(f"{task}: {num_rows:,} rows, mean {mean}", markup=False)
    console.print(f"{arguments.out}", soft_wrap=True, markup=False)
