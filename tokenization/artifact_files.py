"""The files of a token artifact, each read and written in one place.

| file | holds |
|---|---|
| `tokens.parquet` | `item_id` int64, `codes` and `mem_tokens` list<int32>; one row an item |
| `codebooks.safetensors` | `codebooks` float32 `(L, K, D)`, and what else the tokenizer has |
| `merges.parquet` | `left`, `right`, `count` int64; row `i` makes mem-token `i` |
| `manifest.json` | settings, counts, fingerprints, package versions |
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tokenization.base import Codes
from tokenization.list_columns import list_column
from tokenization.mem_tokens import Merges

FORMAT = 1
"""Raised whenever a reader of the older format would misread the folder."""

_MAX_MANIFEST_BYTES = 16 << 20

_FILES = ("tokens.parquet", "codebooks.safetensors", "merges.parquet", "manifest.json")


class TokenArtifactError(ValueError):
    """A token artifact that is missing, half-written, altered or inconsistent."""


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which then takes the place of an older artifact as a whole.

    Raises:
        TokenArtifactError: `folder` exists and is something else.
    """
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise TokenArtifactError(
            f"{folder}: exists and is no token artifact (it holds no manifest.json); "
            f"choose another folder or remove it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_files(
    folder: Path,
    *,
    item_ids: NDArray[np.int64],
    codes: Codes,
    mem_values: NDArray[np.int64],
    mem_offsets: NDArray[np.int64],
    merges: Merges,
    tensors: Mapping[str, NDArray[Any]],
    manifest: Mapping[str, Any],
) -> None:
    """Write all four files into `folder`; arguments as in `TokenArtifact`, codebooks a tensor."""
    num_items, num_levels = codes.shape
    code_offsets = np.arange(num_items + 1, dtype=np.int64) * num_levels
    tokens = {
        "item_id": pa.array(item_ids),
        "codes": list_column(codes.reshape(-1).astype(np.int32), code_offsets),
        "mem_tokens": list_column(mem_values.astype(np.int32), mem_offsets),
    }
    pq.write_table(pa.table(tokens), folder / "tokens.parquet")
    columns = {"left": merges.left, "right": merges.right, "count": merges.count}
    pq.write_table(pa.table(columns), folder / "merges.parquet")
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        folder / "codebooks.safetensors",
    )
    text = json.dumps({**manifest, "format": FORMAT}, indent=2) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact all of whose files are there.

    Raises:
        TokenArtifactError: no such folder, a file missing, no JSON, or another format.
    """
    if not folder.is_dir():
        raise TokenArtifactError(
            f"{folder}: no such folder; make the artifact with `farewell tokenize`"
        )
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise TokenArtifactError(
            f"{folder}: incomplete token artifact, {', '.join(missing)} missing; "
            f"make it again with `farewell tokenize`"
        )
    path = folder / "manifest.json"
    if (num_bytes := path.stat().st_size) > _MAX_MANIFEST_BYTES:
        raise TokenArtifactError(f"{path}: {num_bytes} bytes, at most {_MAX_MANIFEST_BYTES}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise TokenArtifactError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise TokenArtifactError(f"{path}: expected format {FORMAT}, found {found}")
    return manifest


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The other three files, as the arguments of `TokenArtifact` that are not the manifest.

    Raises:
        TokenArtifactError: unreadable, or other counts than the manifest states.
    """
    try:
        _check_counts(folder, manifest)
        return _read(folder)
    except (pa.ArrowException, SafetensorError, KeyError, OSError, UnicodeDecodeError) as error:
        raise TokenArtifactError(
            f"unreadable token artifact ({error}); make it again with `farewell tokenize`"
        ) from error


def _read(folder: Path) -> dict[str, Any]:
    tokens = pq.read_table(folder / "tokens.parquet").combine_chunks()
    merges = pq.read_table(folder / "merges.parquet")
    tensors = load_file(folder / "codebooks.safetensors")
    codebooks = tensors.pop("codebooks")
    if codebooks.ndim != 3:
        raise TokenArtifactError(
            f"codebooks.safetensors: expected (levels, codes, dimensions), found shape "
            f"{codebooks.shape}"
        )
    code_values, code_offsets = _flat(tokens, "codes")
    num_levels = int(code_offsets[1]) if len(tokens) else len(codebooks)
    if (np.diff(code_offsets) != num_levels).any() or num_levels - len(codebooks) not in (0, 1):
        raise TokenArtifactError(
            f"tokens.parquet, column codes: expected {codebooks.shape[0]} codes an item as "
            f"codebooks.safetensors has levels (or one more everywhere), found others"
        )
    mem_values, mem_offsets = _flat(tokens, "mem_tokens")
    return {
        "item_ids": _integers(tokens, "item_id"),
        "codes": code_values.astype(np.int32).reshape(-1, num_levels),
        "mem_values": mem_values,
        "mem_offsets": mem_offsets,
        "codebooks": codebooks,
        "merges": Merges(
            left=_integers(merges, "left"),
            right=_integers(merges, "right"),
            count=_integers(merges, "count"),
            num_levels=num_levels,
            num_codes=codebooks.shape[1],
        ),
        "tensors": tensors,
    }


def _check_counts(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the manifest's counts with what the files' footers say, before values are decoded.

    Columns may be packed so well that a small file holds more than memory; a manifest that agrees
    states how much it is.
    """
    tokens = pq.read_metadata(folder / "tokens.parquet")
    with safe_open(folder / "codebooks.safetensors", framework="numpy") as file:
        num_books, num_codes, dim = (*file.get_slice("codebooks").get_shape(), 0, 0)[:3]
    values: dict[str, int] = {}
    for group in range(tokens.num_row_groups):
        for at in range(tokens.num_columns):
            column = tokens.row_group(group).column(at)
            name = column.path_in_schema.split(".")[0]
            values[name] = values.get(name, 0) + column.num_values
    num_items, num_levels = manifest.get("num_items"), manifest.get("num_levels")
    found = {
        "num_items": tokens.num_rows,
        "num_merges": pq.read_metadata(folder / "merges.parquet").num_rows,
        "num_codes": num_codes,
        "embedding_dim": dim,
    }
    for name, count in found.items():
        if manifest.get(name) != count:
            raise TokenArtifactError(
                f"the files were altered or mixed: manifest.json states {name} "
                f"{manifest.get(name)!r}, the files have {count}"
            )
    if num_levels not in (num_books, num_books + 1):
        raise TokenArtifactError(
            f"manifest.json states num_levels {num_levels!r}, codebooks.safetensors has {num_books}"
        )
    # An empty list counts as one value; no combination of codes makes more than L * L of an item.
    limits = {"codes": num_items * num_levels, "mem_tokens": num_items * num_levels**2}
    for name, limit in limits.items():
        if values.get(name, 0) > limit:
            raise TokenArtifactError(
                f"tokens.parquet, column {name}: {values[name]} values, at most {limit} for "
                f"{num_items} items of {num_levels} levels"
            )


def _integers(table: pa.Table, column: str) -> NDArray[np.int64]:
    return table[column].to_numpy().astype(np.int64)


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a list column's values and offsets, offsets from 0."""
    lengths = pc.list_value_length(table[column]).to_numpy()
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = pc.list_flatten(table[column]).to_numpy().astype(np.int64)
    return values, offsets
