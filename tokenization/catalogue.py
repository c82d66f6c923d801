"""What a catalogue tells of its items: texts, images, captions; and the texts of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Content:
    """What an encoder reads of an item or a query.

    Args:
        text: title, ASR, OCR, description, or the query's words.
        image: encoded image (PNG, JPEG, ...), or the file that holds it; None without one.
    """

    text: str
    image: bytes | Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """Items of a parquet file.

    Attributes:
        item_ids: int64 `(N,)`.
        contents: of each item.
        captions: of each item, where a column of captions was named; empty otherwise.
    """

    item_ids: NDArray[np.int64]
    contents: list[Content]
    captions: list[str]


def read_catalogue(
    path: Path,
    *,
    text_columns: Sequence[str],
    image_column: str | None = None,
    caption_column: str | None = None,
    id_column: str = "item_id",
) -> Catalogue:
    """Read texts, images and captions.

    Args:
        path: parquet file with `id_column` and the columns below.
        text_columns: strings, joined by `. ` in this order; nulls and empty ones are left out.
        image_column: bytes of encoded images, or paths to them (relative ones start at the folder
            of `path`); null for an item without image.
        caption_column: strings.
        id_column: integers, each once.

    Raises:
        ValueError: no such file or column, a column of another type, ids that repeat, an image
            file that is not there.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    names = [
        name
        for name in (id_column, *text_columns, image_column, caption_column)
        if name is not None
    ]
    schema = pq.read_schema(path)
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise ValueError(f"{path}: expected column {missing[0]!r}, found {', '.join(schema.names)}")
    table = pq.read_table(path, columns=list(dict.fromkeys(names)))
    if table.num_rows == 0:
        raise ValueError(f"{path}: expected at least one row, found none")
    id_type = schema.field(id_column).type
    ids = table[id_column]
    if not pa.types.is_integer(id_type) or ids.null_count:
        raise ValueError(
            f"{path}, column {id_column}: expected integers without nulls, found {id_type} with "
            f"{ids.null_count} nulls"
        )
    repeated = table.num_rows - pc.count_distinct(ids).as_py()
    if repeated:
        raise ValueError(f"{path}, column {id_column}: expected each once, found {repeated} again")
    texts = [_strings(table, path, name) for name in text_columns]
    joined = [". ".join(part for part in parts if part) for parts in zip(*texts, strict=True)]
    images = _images(table, path, image_column)
    captions = [] if caption_column is None else _strings(table, path, caption_column)
    return Catalogue(
        item_ids=ids.to_numpy().astype(np.int64),
        contents=[
            Content(text=text, image=image) for text, image in zip(joined, images, strict=True)
        ],
        captions=captions,
    )


def _strings(table: pa.Table, path: Path, name: str) -> list[str]:
    kind = table.schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(
            f"{path}, column {name}: expected strings, found {kind}; for a column of embeddings "
            f"use --embedding-column {name}"
        )
    return [value or "" for value in table[name].to_pylist()]


def _images(table: pa.Table, path: Path, name: str | None) -> list[bytes | Path | None]:
    if name is None:
        return [None] * table.num_rows
    kind = table.schema.field(name).type
    values = table[name].to_pylist()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return values
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(
            f"{path}, column {name}: expected bytes of images or paths to them, found {kind}"
        )
    files = [None if value is None else path.parent / value for value in values]
    for file in files:
        if file is not None and not file.is_file():
            raise ValueError(f"{path}, column {name}: {file}: no such image file")
    return list(files)
