"""The verbs of `farewell data` for files that their publishers hand out, to be fetched there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.data_summary import print_summary, rows_written
from trainer.data.avazu import write_avazu
from trainer.data.criteo import write_criteo
from trainer.data.kuairec import Matrix, write_kuairec
from trainer.data.taobao_ad import write_taobao_ad
from trainer.data.unordered_log import PartsBy
from trainer.data.writer import Manifest


def avazu(source: Path, folder: Path = Path("data/avazu"), max_rows: int | None = None) -> None:
    """Turn Avazu's file (kaggle.com/c/avazu-ctr-prediction) into a data set: 40,428,967 rows.

    Example: farewell data avazu --source train.gz --max-rows 9000000

    Args:
        source: The competition's train.gz, or what it unpacks to.
        folder: Where the data set is written; an older one there is replaced.
        max_rows: The first rows of the file alone.
    """
    _published(write_avazu, source, folder, max_rows=max_rows)


def criteo(source: Path, folder: Path = Path("data/criteo"), max_rows: int | None = None) -> None:
    """Turn Criteo's file (display advertising challenge) into a data set: 45,840,617 rows.

    Example: farewell data criteo --source train.txt

    Args:
        source: The challenge's train.txt; .gz is read as well.
        folder: Where the data set is written; an older one there is replaced.
        max_rows: The first rows of the file alone.
    """
    _published(write_criteo, source, folder, max_rows=max_rows)


def kuairec(
    source: Path,
    folder: Path | None = None,
    matrix: Matrix = "big",
    parts_by: PartsBy = "last_click",
    max_rows: int | None = None,
) -> None:
    """Turn KuaiRec's files (kuairec.com, version 2.0) into a data set: 12,530,806 views.

    Example: farewell data kuairec --source "KuaiRec 2.0/data" --matrix small

    Args:
        source: Folder with the csv files.
        folder: Where the data set is written, by default data/kuairec_MATRIX; an older one there
            is replaced.
        matrix: The big one, or the small one (4,676,570 views).
        parts_by: Train, validation and test by each user's last positive views, or by time.
        max_rows: The first rows of the matrix alone: those of the first users.
    """
    folder = folder or Path(f"data/kuairec_{matrix}")
    options = {"matrix": matrix, "parts_by": parts_by, "max_rows": max_rows}
    _published(write_kuairec, source, folder, **options)


def taobao_ad(
    source: Path,
    folder: Path = Path("data/taobao_ad"),
    parts_by: PartsBy = "last_click",
    max_rows: int | None = None,
) -> None:
    """Turn Taobao's ad log (tianchi.aliyun.com, data set 56) into a data set: 26,557,961 rows.

    Example: farewell data taobao-ad --source FOLDER

    Args:
        source: Folder with raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv.
        folder: Where the data set is written; an older one there is replaced.
        parts_by: Train, validation and test by each user's last clicks, or by time.
        max_rows: The first rows of raw_sample.csv alone.
    """
    _published(write_taobao_ad, source, folder, parts_by=parts_by, max_rows=max_rows)


def _published(write: Callable[..., Manifest], source: Path, folder: Path, **options: Any) -> None:
    """Write the folder of what its publisher hands out."""
    with rows_written(source.name, before="reading") as advance:
        manifest = write(source, folder, progress=advance, **options)
    print_summary(manifest, folder)
