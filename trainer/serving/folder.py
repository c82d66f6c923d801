"""An exported model on disk: written whole or not at all, and checked before it is used.

| file | holds |
|---|---|
| `model.json` | schema, network, tables, precision: what the predictor is built from |
| `experiment.json` | experiment and checkpoint that it was exported from: a record, never read |
| `tables.safetensors` | rows of every table, quantised, with their scales |
| `network.safetensors` | weights of the network |
| `identity.safetensors` | rows of items, where neither tokens nor ids tell; items encoded by DIG |
| `items.parquet`, `users.parquet` | static features, where the schema has some |
| `tokens/` | the token artifact, for models that read tokens |
| `manifest.json` | size and SHA-256 of every other file, written last |

Nothing in it is pickled, and no file but these is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.json"
EXPERIMENT = "experiment.json"
TABLES = "tables.safetensors"
NETWORK = "network.safetensors"
IDENTITY = "identity.safetensors"
ITEMS = "items.parquet"
USERS = "users.parquet"
TOKENS = "tokens"
_TOKEN_FILES = ("tokens.parquet", "codebooks.safetensors", "merges.parquet", "manifest.json")
REQUIRED = (MODEL, EXPERIMENT, TABLES, NETWORK)
FILES = (*REQUIRED, IDENTITY, ITEMS, USERS, *(f"{TOKENS}/{name}" for name in _TOKEN_FILES))
MAX_JSON_BYTES = 16 << 20


class ServingError(ValueError):
    """An exported model that can't be written or used, and why."""


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write to; at the end it is sealed and takes `folder`'s place at once.

    When anything fails, nothing is left, and an older export stays as it was.

    Raises:
        ServingError: when `folder` exists and is no export.
    """
    if folder.exists() and not ((folder / MANIFEST).is_file() and (folder / MODEL).is_file()):
        raise ServingError(
            f"{folder}: exists and is no exported model (it holds no {MANIFEST} and {MODEL}); "
            "choose another folder or remove it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def seal(folder: Path) -> None:
    """Force every file to the disk and write the manifest."""
    files = {}
    for name in FILES:
        path = folder / name
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_document(folder / MANIFEST, {"format": FORMAT, "files": files})


def write_document(path: Path, value: Any) -> None:
    """Write JSON to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def verify(folder: Path) -> dict[str, int]:
    """Compare all files with the manifest, byte for byte; bytes by file.

    Raises:
        ServingError: naming the file that is missing, of another size, or changed.
    """
    if not folder.is_dir():
        raise ServingError(f"{folder}: no such folder; write it with `farewell export`")
    manifest = read_document(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ServingError(
            f"{folder / MANIFEST}: format {manifest.get('format')!r}, expected {FORMAT}; export "
            "the run again"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not set(REQUIRED) <= set(files):
        raise ServingError(f"{folder / MANIFEST}: lists no files of an exported model")
    for name, entry in files.items():
        if name not in FILES or not isinstance(entry, dict):
            raise ServingError(f"{folder / MANIFEST}: lists {name[:100]!r}, no file of an export")
        path = folder / name
        try:
            found: tuple[Any, Any] = (path.stat().st_size, None)
            if found[0] == entry.get("bytes"):  # a file of another size is not read at all
                found = (found[0], _sha256(path))
        except OSError as error:
            raise ServingError(f"{path}: can't be read ({error.strerror})") from error
        if found != (entry.get("bytes"), entry.get("sha256")):
            raise ServingError(
                f"{path}: expected {entry.get('bytes')} bytes with SHA-256 "
                f"{str(entry.get('sha256'))[:12]}, found {found[0]} bytes with "
                f"{str(found[1])[:12]}: cut off, damaged, or of another export; export again"
            )
    return {name: int(entry["bytes"]) for name, entry in files.items()}


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises:
        ServingError: when there is none.
    """
    try:
        num_bytes = path.stat().st_size
        data = b"" if num_bytes > MAX_JSON_BYTES else path.read_bytes()
    except OSError as error:
        raise ServingError(
            f"{path}: can't be read ({error.strerror}); the folder is no complete export"
        ) from error
    if num_bytes > MAX_JSON_BYTES:
        raise ServingError(f"{path}: {num_bytes} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise ServingError(f"{path}: is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ServingError(f"{path}: holds no JSON object")
    return values


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
