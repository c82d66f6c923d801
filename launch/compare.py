r"""Train the rows of a named comparison, evaluate them on the same test rows, write the report.

    farewell compare id_vs_tokens.movielens1m
    farewell compare trm.main_movielens1m --seeds 3 --ranks 2
    farewell compare storage.trm_paper
    farewell compare towers.trm_table1
    farewell compare dig.main_movielens1m --seeds 3

A cell is a row and a seed. One that was trained before with the same settings, for this or for
another comparison, is not trained again; one that was stopped goes on from its newest checkpoint.
A storage comparison trains nothing: it plans tables; one of structures counts parameters and FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from launch.cells import CELLS, Cells
from launch.compare_storage import compare_storage_of
from launch.compare_towers import compare_towers_of
from launch.named import load_named, name_and_options
from launch.prepare import prepare
from launch.retrieval_rows import RetrievalRows
from launch.rows import trained_row
from launch.terminal import result_console
from sharding.compare import StorageComparison
from trainer.baselines.base import Baseline
from trainer.comparison import Comparison
from trainer.data.dataset import Dataset
from trainer.data.schema import Splits
from trainer.evaluation import EvaluationSplit
from trainer.geometry import measure_geometry
from trainer.report import (
    ReportRow,
    RowRun,
    build_report,
    print_report,
    write_report,
)
from trainer.run_folder import RunFolder, describe_machine, package_versions, write_json
from trainer.structure import StructureComparison


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How a comparison is run.

    Args:
        seeds: each row is trained with seeds 0 to `seeds` - 1; medians are shown.
        ranks: processes on this machine: of a training, or of as many retrievers at a time.
        folder: of the report; by default `runs/<comparison>`.
        cells: folder of trained cells, which comparisons share.
        json: file to write the report to, beside `report.json` in the folder.
    """

    seeds: int = 1
    ranks: int = 2
    folder: Path | None = None
    cells: Path = CELLS
    json: Path | None = None


def main(args: Sequence[str]) -> None:
    """Run `farewell compare` with the words that follow the verb."""
    name, words = name_and_options(args, verb="compare", description=__doc__)
    comparison = load_named(name, object)
    if isinstance(comparison, StorageComparison):
        compare_storage_of(comparison, words)
        return
    if isinstance(comparison, StructureComparison):
        compare_towers_of(comparison, words)
        return
    if not isinstance(comparison, Comparison):
        raise ValueError(
            f"{name} gives a value of type {type(comparison).__name__}, expected Comparison, "
            "StorageComparison or StructureComparison"
        )
    options = tyro.cli(
        CompareOptions, prog=f"farewell compare {name}", description=__doc__, args=words
    )
    compare(name, comparison, options)


def compare(name: str, comparison: Comparison, options: CompareOptions) -> None:
    """Train what is missing, evaluate, print and write the report of the comparison named so.

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
    cells = Cells(root=options.cells, ranks=options.ranks)
    runs = {
        row.title: cells.trained(
            row.experiment, seeds=options.seeds, title=row.title, console=console
        )
        for row in comparison.rows
    }
    rows = [
        *(_oracle(comparison, dataset, splits)),
        *(_baseline(baseline, dataset, splits, console) for baseline in comparison.baselines),
        *(
            trained_row(
                row.title,
                row.tower,
                runs[row.title],
                row.experiment,
                splits.test,
                RunFolder.predictions_of("test"),
            )
            for row in comparison.rows
        ),
    ]
    split = EvaluationSplit.from_dataset(dataset, splits, splits.test)
    retrieval = None
    if comparison.retrieval is not None:
        retrieval = RetrievalRows(
            study=comparison.retrieval,
            dataset=dataset,
            splits=splits,
            cells=options.cells,
            ranks=options.ranks,
            console=console,
        ).describe(comparison, runs, split)
    with console.status("evaluating the test rows"):
        report = build_report(
            experiment=comparison.name,
            dataset=dataset.schema.name,
            split=split,
            rows=rows,
            machine={key: str(value) for key, value in describe_machine().items()},
            versions=package_versions(),
            comparison=comparison,
            geometry=_geometry(comparison, runs),
            retrieval=retrieval,
            command=f"farewell compare {name} --seeds {options.seeds}",
        )
    print_report(report, console)
    write_report(folder, report)
    if options.json is not None:
        write_json(options.json, report)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _geometry(
    comparison: Comparison, runs: Mapping[str, Mapping[int, RunFolder]]
) -> list[dict[str, Any]]:
    """Embedding tables of every row over training, where the study asks for them."""
    if comparison.study is None or not comparison.study.geometry:
        return []
    return [
        {"row": row.title, "seed": seed, **measure_geometry(row.experiment, run)}
        for row in comparison.rows
        for seed, run in runs[row.title].items()
    ]


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
