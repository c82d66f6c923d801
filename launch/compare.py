r"""Train the rows of a named comparison, evaluate them on the same test rows, write the report.

    farewell compare id_vs_tokens.movielens1m
    farewell compare id_vs_tokens.movielens1m --seeds 3 --ranks 2
    farewell compare storage.trm_paper

A row that was trained before with the same settings is not trained again; one that was stopped
goes on from its newest checkpoint. A storage comparison trains nothing: it plans tables.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console

from launch.compare_storage import compare_storage_of
from launch.named import load_named, name_and_options
from launch.prepare import prepare
from launch.ranks import run_on_ranks
from launch.rows import trained_row
from launch.terminal import result_console
from sharding.compare import StorageComparison
from trainer.baselines.base import Baseline
from trainer.comparison import ComparedRow, Comparison
from trainer.data.dataset import Dataset
from trainer.data.schema import Splits
from trainer.evaluation import EvaluationSplit
from trainer.loop import train
from trainer.report import (
    ReportRow,
    RowRun,
    build_report,
    print_report,
    write_report,
)
from trainer.run_folder import RunFolder, describe_machine, package_versions, write_json


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How a comparison is run.

    Args:
        seeds: each row is trained with seeds 0 to `seeds` - 1; medians are shown.
        ranks: processes on this machine.
        folder: of the report and the runs; by default `runs/<comparison>`.
        json: file to write the report to, beside `report.json` in the folder.
    """

    seeds: int = 1
    ranks: int = 2
    folder: Path | None = None
    json: Path | None = None


def main(args: Sequence[str]) -> None:
    """Run `farewell compare` with the words that follow the verb."""
    name, words = name_and_options(args, verb="compare", description=__doc__)
    comparison = load_named(name, object)
    if isinstance(comparison, StorageComparison):
        compare_storage_of(comparison, words)
        return
    if not isinstance(comparison, Comparison):
        raise ValueError(
            f"{name} gives a value of type {type(comparison).__name__}, expected Comparison or "
            "StorageComparison"
        )
    options = tyro.cli(
        CompareOptions, prog=f"farewell compare {name}", description=__doc__, args=words
    )
    compare(comparison, options)


def compare(comparison: Comparison, options: CompareOptions) -> None:
    """Train what is missing, evaluate, print and write the report.

    Raises:
        ValueError: for whatever is wrong with data, tokens or settings.
        RankFailedError: when a rank of a row failed; finished rows are kept.
    """
    console = result_console()
    folder = options.folder or Path("runs") / comparison.name
    for row in comparison.rows:
        row.experiment.check_ranks(options.ranks)
        prepare(row.experiment, console)
    first = comparison.rows[0].experiment
    dataset = Dataset.open(first.data.folder, first.data.schema)
    splits = dataset.split(first.data.split)
    rows = [
        *(_oracle(comparison, dataset, splits)),
        *(_baseline(baseline, dataset, splits, console) for baseline in comparison.baselines),
        *(_trained(row, folder, options, splits, console) for row in comparison.rows),
    ]
    with console.status("evaluating the test rows"):
        report = build_report(
            experiment=comparison.name,
            dataset=dataset.schema.name,
            split=EvaluationSplit.from_dataset(dataset, splits, splits.test),
            rows=rows,
            machine={key: str(value) for key, value in describe_machine().items()},
            versions=package_versions(),
        )
    print_report(report, console)
    write_report(folder, report)
    if options.json is not None:
        write_json(options.json, report)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _trained(
    row: ComparedRow, folder: Path, options: CompareOptions, splits: Splits, console: Console
) -> ReportRow:
    """Train the missing seeds of a row and read all of them."""
    runs = {}
    for seed in range(options.seeds):
        experiment = replace(row.experiment, train=replace(row.experiment.train, seed=seed))
        run = RunFolder(
            folder / "rows" / f"{experiment.name}_seed{seed}_{experiment.fingerprint[:8]}"
        )
        if not run.result.exists():
            console.print(f"[bold]{row.title}[/bold], seed {seed}: {run.path}", soft_wrap=True)
            run_on_ranks(
                train, options.ranks, experiment, run.path, True, log_folder=run.path / "log"
            )
        runs[seed] = run
    return trained_row(
        row.title, row.tower, runs, row.experiment, splits.test, RunFolder.predictions_of("test")
    )


def _baseline(baseline: Baseline, dataset: Dataset, splits: Splits, console: Console) -> ReportRow:
    start = time.perf_counter()
    with console.status(f"fitting {baseline.name}"):
        scores = {
            task: baseline.fit_predict(dataset, splits, task) for task in dataset.schema.labels
        }
    return ReportRow(
        name=baseline.name,
        kind="baseline",
        runs=(RowRun(seed=0, scores=scores, wall_seconds=time.perf_counter() - start),),
    )


def _oracle(comparison: Comparison, dataset: Dataset, splits: Splits) -> list[ReportRow]:
    """The row that knows the true probabilities, where the log holds them."""
    if not comparison.oracle:
        return []
    columns = dataset.read(splits.test, list(comparison.oracle.values()))
    scores = {task: columns[column] for task, column in comparison.oracle.items()}
    return [
        ReportRow(
            name="best possible (true odds)",
            kind="oracle",
            runs=(RowRun(seed=0, scores=scores),),
        )
    ]
