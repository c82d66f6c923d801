r"""Retrieve items with a trained DIG model, or measure how well it retrieves.

    farewell retrieve dig.movielens1m --folder runs/dig/20260101-120000 --split test
    farewell retrieve dig.movielens1m --folder runs/mine --users users.parquet --out items.parquet
    farewell retrieve dig.movielens1m --folder runs/mine --users users.parquet --out items.parquet \
        --cross pairs.parquet

The file of users has one row a request: user id, histories, and the features of user and request
that the log has. The index of SIDs is kept beside the run; see docs/dig.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from launch.experiment_command import experiment_command
from launch.terminal import result_console
from trainer.checkpoint_choice import AUTO
from trainer.experiment import Experiment
from trainer.loop import SplitName
from trainer.retrieval_run import Retrieval, TrainedRetriever
from trainer.run_folder import write_json


@dataclass(frozen=True, kw_only=True)
class RetrieveCommand:
    """For whom, and where the items go.

    Args:
        folder: run folder of `farewell train`.
        users: parquet file of requests.
        out: parquet file for their items.
        cross: parquet file with cross features of pairs (request, item), with which candidates are
            ranked; other pairs are ranked with what MLP_u2t predicts.
        split: measure on this part of the log, in place of answering requests.
        json: file to write the measurement to.
        checkpoint: `newest`, `best` by the run's train.keep_best, a step, or `auto` for the best
            where the run has such, else the newest.
        retrieval: beam, list, index.
        experiment: that was trained.
    """

    folder: Path
    users: Path | None = None
    out: Path | None = None
    cross: Path | None = None
    split: SplitName | None = None
    json: Path | None = None
    checkpoint: str = AUTO
    retrieval: Annotated[Retrieval, tyro.conf.arg(name="")] = field(default_factory=Retrieval)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: Sequence[str]) -> None:
    """Run `farewell retrieve` with the words that follow the verb."""
    command = experiment_command(
        lambda experiment: RetrieveCommand(folder=tyro.MISSING, experiment=experiment),
        args,
        verb="retrieve",
        description=__doc__,
    )
    retrieve(command, result_console())


def retrieve(command: RetrieveCommand, console: Console) -> None:
    """Answer requests, or measure.

    Raises:
        ValueError: when the options ask for neither or both, or for something without effect.
    """
    if (command.users is None) == (command.split is None):
        raise ValueError("farewell retrieve: expected exactly one of --users and --split")
    if (command.users is None) != (command.out is None):
        raise ValueError("farewell retrieve: --users and --out go together; name both")
    if command.cross is not None and command.users is None:
        raise ValueError("farewell retrieve: --cross has no effect without --users")
    if command.json is not None and command.split is None:
        raise ValueError("farewell retrieve: --json has no effect without --split")
    for path in (command.users, command.cross):
        if path is not None and not path.is_file():
            raise ValueError(f"{path}: no such file")
    if not command.folder.is_dir():
        raise ValueError(f"{command.folder}: no such run folder")
    model = TrainedRetriever(
        command.experiment, command.folder, command.retrieval, command.checkpoint
    )
    console.print(f"checkpoint of step {model.chosen.step} ({model.chosen.why})", markup=False)
    if model.index_changes is not None:
        console.print(f"index brought up to date: {model.index_changes}")
    if command.users is not None:
        assert command.out is not None
        with console.status(f"retrieving for {command.users}"):
            number = model.for_requests(command.users, command.out, command.cross)
        console.print(f"{command.out}: items of {number:,} requests")
        return
    assert command.split is not None
    with console.status(f"retrieving for {command.split}"):
        found = model.measure(getattr(model.trainer.splits, command.split))
    console.print(measurement_table(found))
    if command.json is not None:
        write_json(
            command.json,
            {"split": command.split, "checkpoint_step": model.chosen.step, **found},
        )


def measurement_table(found: Mapping[str, Any]) -> Table:
    """Recall, NDCG and both paths' AUC, as `TrainedRetriever.measure` found them."""
    table = Table(
        title=f"{found['targets']:,} positive impressions, {found['items']:,} items, beam "
        f"{found['beam_width']}"
    )
    table.add_column("measure")
    table.add_column("value", justify="right")
    for order, title in (("recall_order", "beam search"), ("rank_order", "then ranked")):
        if order in found:
            for measure in ("recall", "ndcg"):
                value = f"{found[order][measure]:.4f}"
                table.add_row(f"{measure}@{found['at']}, {title}", value)
    if "gap" in found:
        table.add_row("AUC of the ranking path", f"{found['rank_auc']:.4f}")
        table.add_row("AUC of the retrieval path", f"{found['recall_auc']:.4f}")
        table.add_row("gap", f"{found['gap']:+.4f}")
    return table
