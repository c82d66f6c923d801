"""Codes of an ID as columns of the log: any ID beside the item's can be tokenized (STORE 2.1).

Columns are named `<id>_code_1` to `<id>_code_K`; by these names models tell which features are the
codes of one ID (`coded_ids`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact
from trainer.data.errors import DataError, Place
from trainer.data.id_index import IdIndex
from trainer.data.parts import INTEGER, ParquetPart
from trainer.data.schema import Categorical, DatasetSchema, Entity, Source
from trainer.data.writer import MANIFEST, Progress

_CODE = re.compile(r"(?P<id>.+)_code_(?P<level>[1-9]\d*)")


def code_features(
    column: str,
    *,
    num_levels: int,
    num_codes: int,
    entity: Entity,
    source: Source = "interactions",
) -> tuple[Categorical, ...]:
    """Features of a schema for the codes of an ID.

    Args:
        column: of the ID.
        num_levels: K, codes of an ID.
        num_codes: V, values of a code.
        entity: whom the ID describes.
        source: file whose rows have the ID, as `add_codes` was told.
    """
    return tuple(
        Categorical(name=name, entity=entity, cardinality=num_codes, source=source)
        for name in _names(column, num_levels)
    )


def coded_ids(schema: DatasetSchema) -> dict[str, tuple[str, ...]]:
    """IDs of which the schema has codes -> names of these features, level by level.

    Raises:
        ValueError: when levels are missing.
    """
    levels: dict[str, set[int]] = {}
    for feature in schema.features:
        if isinstance(feature, Categorical) and (found := _CODE.fullmatch(feature.name)):
            levels.setdefault(found["id"], set()).add(int(found["level"]))
    for column, there in levels.items():
        if there != set(range(1, len(there) + 1)):
            raise ValueError(
                f"schema {schema.name!r}: codes of {column!r} have levels {sorted(there)}, "
                f"expected 1 to {max(there)}; name each `{column}_code_<level>`"
            )
    return {column: _names(column, len(there)) for column, there in levels.items()}


def add_codes(
    log: Path,
    folder: Path,
    *,
    column: str,
    tokens: TokenArtifact,
    source: Source = "interactions",
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write a copy of a data set folder with the codes of an ID beside it.

    Args:
        log: data set folder.
        folder: where the copy is put when it is complete; must not be there.
        column: of the ID, whose values are the ids of `tokens`.
        tokens: codes of every value.
        source: file, or files of the log, whose rows have the ID.
        progress: told about rows written.

    Returns:
        names of the new columns, int32.

    Raises:
        DataError: when the column is missing, not of integers or empty in a row, has an id that
            `tokens` lacks, or has codes already; when the log is no data set folder.
        ValueError: when `folder` is there.
    """
    if folder.exists():
        raise ValueError(f"{folder}: exists; choose another folder or remove it")
    paths = _files(log, source)
    names = _names(column, tokens.codes.shape[1])
    parts = [ParquetPart.open(path) for path in paths]
    for part in parts:
        part.require(column, INTEGER)
        if taken := sorted({*names} & {*part.schema.names}):
            raise Place(part.path, column).error(
                expected="no codes yet", found=f"columns {', '.join(taken)}", mend="drop them"
            )
    index = IdIndex(tokens.item_ids)
    num_rows, done = sum(part.metadata.num_rows for part in parts), 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        copy = Path(temporary) / "log"
        shutil.copytree(log, copy, ignore=lambda _, found: [n for n in found if n[0] == "."])
        for part in parts:
            target = copy / part.path.relative_to(log)
            target.unlink()
            schema = part.schema
            for name in names:
                schema = schema.append(pa.field(name, pa.int32()))
            with pq.ParquetWriter(target, schema, compression="zstd") as out:
                for table in _with_codes(part, column, names, index, tokens.codes):
                    out.write_table(table, row_group_size=max(1, table.num_rows))
                    done += table.num_rows
                    if progress is not None:
                        progress(done, num_rows)
        _note(copy, column, names, tokens, source)
        os.rename(copy, folder)
    return names


def _with_codes(
    part: ParquetPart,
    column: str,
    names: tuple[str, ...],
    index: IdIndex,
    codes_NL: NDArray[np.int32],
) -> Iterator[pa.Table]:
    """Row groups of a file with the codes of each row's ID."""
    first_row = 0
    for group in range(part.metadata.num_row_groups):
        table = part.read(part.schema.names, [group])
        place = Place(part.path, column, first_row)
        if table[column].null_count:
            row = int(np.flatnonzero(table[column].is_null().to_numpy())[0])
            raise place.error(expected="an id", found="null", mend="give it an id", row=row)
        ids = table[column].to_numpy()
        rows = index.rows(ids)
        if (rows < 0).any():
            row = int(np.flatnonzero(rows < 0)[0])
            raise place.error(
                expected="ids that the tokens have",
                found=f"{ids[row]}",
                mend="tokenize every id that the column has",
                row=row,
            )
        for level, name in enumerate(names):
            table = table.append_column(name, pa.array(codes_NL[rows, level], pa.int32()))
        yield table
        first_row += table.num_rows


def _files(log: Path, source: Source) -> list[Path]:
    """Files of the log whose rows have the ID."""
    if not (log / "interactions").is_dir():
        raise DataError(
            f"{log}: expected a data set folder with interactions/, found none; write it with "
            "`farewell data`"
        )
    if source == "interactions":
        return sorted((log / "interactions").glob("*.parquet"))
    return [log / f"{source}.parquet"]


def _note(
    folder: Path, column: str, names: tuple[str, ...], tokens: TokenArtifact, source: Source
) -> None:
    """Tell in the manifest, where the log has one, what the columns are."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    manifest: dict[str, Any] = json.loads(path.read_text())
    file = source if source == "interactions" else f"{source}.parquet"
    manifest["columns"].setdefault(file, {}).update(dict.fromkeys(names, "int32"))
    manifest["source"][f"codes of {column}"] = f"tokens {tokens.fingerprint}"
    manifest["num_bytes"] = sum(one.stat().st_size for one in folder.rglob("*.parquet"))
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def _names(column: str, num_levels: int) -> tuple[str, ...]:
    return tuple(f"{column}_code_{level}" for level in range(1, num_levels + 1))
