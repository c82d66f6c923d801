"""A checkpoint on disk: what it promises, checked before anything of it is used.

A checkpoint is a folder of

* `rank_<5 digits>.safetensors`: the boxes that one rank wrote, one after another;
* `index.json`: for every logical tensor its shape and which box lies where;
* `state.json`, `config.json`, `plan.json`: step, place in the data, schedule; experiment; plan;
* `manifest.json`: size and SHA-256 of every other file, written last: without it there is no
  checkpoint.

Nothing in it is pickled. torch.distributed.checkpoint keeps its `.metadata` as a pickle, takes
row-wise optimizer state for a tensor of its own shape in every plan, and asks a rank without
shards for keys that it has not; safetensors with an index of boxes has none of that, any slice of
it can be mapped into memory, and its files open with the `safetensors` package alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.state_parts import Box

FORMAT = 1
MANIFEST = "manifest.json"
_FILE_NAME = re.compile(r"rank_\d{5}\.safetensors|index\.json|state\.json|config\.json|plan\.json")
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_JSON_BYTES = 1 << 30
_MAX_DIMENSIONS = 8
_BLOCK_BYTES = 16 << 20

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names of what a checkpoint may hold."""

_VALUE_BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint that can't be used or written, and why."""


@dataclass(frozen=True)
class Chunk:
    """One box on disk.

    Attributes:
        file: name within the checkpoint's folder.
        key: name within the file.
        box: of the whole.
    """

    file: str
    key: str
    box: Box


@dataclass(frozen=True)
class StoredTensor:
    """One logical tensor on disk.

    Attributes:
        dtype: as safetensors names it.
        shape: of the whole.
        per_row: one value stands for all columns of a row of a box.
        chunks: that make it up.
    """

    dtype: str
    shape: tuple[int, ...]
    per_row: bool
    chunks: tuple[Chunk, ...]


class TensorFile:
    """Writes tensors one after another in the layout of safetensors, hashing as it goes.

    safetensors' own writer wants all tensors of a file at once; this one needs a block.

    Args:
        path: to write.
        entries: (key, dtype, shape) of each tensor, in the order in which they will be written.
    """

    def __init__(
        self, path: Path, entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]
    ) -> None:
        header: dict[str, Any] = {}
        end = 0
        for key, dtype, shape in entries:
            num_bytes = Box.whole(shape).num_values * dtype.itemsize
            header[key] = {
                "dtype": DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [end, end + num_bytes],
            }
            end += num_bytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.path = path
        self.num_bytes = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self._write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """Write the next tensor, block by block; tensors of a device are copied by blocks too."""
        values = tensor.detach().reshape(-1)
        step = max(1, _BLOCK_BYTES // values.element_size())
        for start in range(0, values.numel(), step):
            block = values[start : start + step].cpu().contiguous()
            self._write(block.view(torch.uint8).numpy().data)

    def close(self) -> str:
        """Force the file to the disk; its SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Close without more writing; what the disk did not take is lost anyway."""
        with suppress(OSError):
            self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)


def write_document(path: Path, value: Any) -> dict[str, Any]:
    """Write JSON to the disk; what the manifest says of it."""
    data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class StoredState:
    """A checkpoint opened for reading. Call `verify` before anything is taken from it.

    Args:
        path: folder of the checkpoint.

    Raises:
        CheckpointError: when the folder is no complete checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = _read_json(path / MANIFEST, _MAX_MANIFEST_BYTES)
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: {MANIFEST} is of format {manifest.get('format')!r}, expected {FORMAT}"
            )
        self.files = self._listed(manifest.get("files"))
        self._open: dict[str, Any] = {}
        self._verified: set[str] = set()

    @cached_property
    def state(self) -> dict[str, Any]:
        """Step, place in the data, fingerprints.

        Raises:
            CheckpointError: when it is not what was saved.
        """
        self.verify(["state.json"])
        state = _read_json(self.path / "state.json", _MAX_JSON_BYTES)
        for field in ("step", "world_size"):
            if not isinstance(state.get(field), int) or state[field] < 0:
                raise CheckpointError(
                    f"{self.path}: state.json has {field}={state.get(field)!r}, expected a number "
                    "of at least 0"
                )
        return state

    @cached_property
    def config(self) -> dict[str, Any]:
        """The experiment that was trained, as `Experiment.to_dict` describes it."""
        self.verify(["config.json"])
        return _read_json(self.path / "config.json", _MAX_JSON_BYTES)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every logical tensor by name.

        Raises:
            CheckpointError: when the index is not what was saved, or makes no sense.
        """
        self.verify(["index.json"])
        entries = _read_json(self.path / "index.json", _MAX_JSON_BYTES)
        try:
            return {name: self._stored(entry) for name, entry in entries.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: index.json can't be read ({error!r})") from error

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Compare files with the manifest, byte for byte.

        Args:
            names: files to look at; None for all.

        Raises:
            CheckpointError: naming the file that is missing, of another size, or changed.
        """
        for name in self.files if names is None else names:
            if name in self._verified:
                continue
            path = self.path / name
            if name not in self.files:
                raise CheckpointError(f"{self.path}: {MANIFEST} lists no {name}")
            expected = self.files[name]
            try:
                found = path.stat().st_size
            except OSError as error:
                raise CheckpointError(
                    f"{path}: missing or unreadable ({error.strerror}); {self._cure}"
                ) from error
            if found != expected["bytes"]:
                raise CheckpointError(
                    f"{path}: {found} bytes, expected {expected['bytes']}: cut off, or of another "
                    f"checkpoint; {self._cure}"
                )
            if (digest := _sha256(path)) != expected["sha256"]:
                raise CheckpointError(
                    f"{path}: SHA-256 {digest[:12]}, expected {expected['sha256'][:12]}: damaged, "
                    f"or of another checkpoint; {self._cure}"
                )
            self._verified.add(name)

    def whole(self, name: str) -> Tensor:
        """All of a tensor, in memory of its own; the files that it lies in are verified first.

        Raises:
            CheckpointError: when there is no such tensor, or its boxes don't make it up.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: holds no tensor {name!r}")
        stored = self.tensors[name]
        self.verify(sorted({chunk.file for chunk in stored.chunks}))
        num_values = sum(chunk.box.num_values for chunk in stored.chunks)
        if num_values != Box.whole(stored.shape).num_values or stored.per_row:
            raise CheckpointError(f"{self.path}: the boxes of {name!r} do not make up a tensor")
        pieces = [
            (chunk, self.read(stored, chunk, chunk.box.inside(chunk.box)))
            for chunk in stored.chunks
        ]
        value = torch.empty(stored.shape, dtype=pieces[0][1].dtype)
        for chunk, piece in pieces:
            value[chunk.box.inside(Box.whole(stored.shape))] = piece
        return value

    def read(self, stored: StoredTensor, chunk: Chunk, where: tuple[slice, ...]) -> Tensor:
        """A part of a box, copied from the file that is mapped into memory.

        Args:
            stored: the tensor that the box belongs to.
            chunk: the box.
            where: what to take of it, by dimension.

        Raises:
            CheckpointError: when file and index disagree.
        """
        sizes = chunk.box.sizes[:1] if stored.per_row else chunk.box.sizes
        try:
            if chunk.file not in self._open:
                self._open[chunk.file] = safe_open(str(self.path / chunk.file), framework="pt")
            lazy = self._open[chunk.file].get_slice(chunk.key)
            found = (lazy.get_dtype(), tuple(lazy.get_shape()))
            if found == (stored.dtype, sizes):
                value: Tensor = (
                    lazy[where] if where else self._open[chunk.file].get_tensor(chunk.key)
                )
                return value
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path / chunk.file}: {chunk.key} can't be read ({error})"
            ) from error
        raise CheckpointError(
            f"{self.path / chunk.file}: {chunk.key} is {found[0]} {list(found[1])}, index.json "
            f"says {stored.dtype} {list(sizes)}"
        )

    @property
    def _cure(self) -> str:
        return "bring the file back, or remove this checkpoint to go on from an earlier one"

    def _listed(self, files: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(files, dict) or "state.json" not in files or "index.json" not in files:
            raise CheckpointError(f"{self.path}: {MANIFEST} lists no files of a checkpoint")
        for name, entry in files.items():
            fits = (
                _FILE_NAME.fullmatch(name) is not None
                and isinstance(entry, dict)
                and isinstance(entry.get("bytes"), int)
                and isinstance(entry.get("sha256"), str)
            )
            if not fits:
                raise CheckpointError(
                    f"{self.path}: {MANIFEST} lists {name!r} as {entry!r}, expected bytes and "
                    "sha256 of a file of a checkpoint"
                )
        return files

    def _stored(self, entry: Mapping[str, Any]) -> StoredTensor:
        shape = _sizes(entry["shape"])
        chunks = []
        for chunk in entry["chunks"]:
            if chunk["file"] not in self.files:
                raise ValueError(f"unknown file {chunk['file']!r}")
            box = Box(_sizes(chunk["offsets"]), _sizes(chunk["sizes"]))
            ends = [o + s for o, s in zip(box.offsets, box.sizes, strict=True)]
            if any(end > size for end, size in zip(ends, shape, strict=True)):
                raise ValueError(f"{box} lies outside of {shape}")
            chunks.append(Chunk(chunk["file"], str(chunk["key"]), box))
        stored = StoredTensor(str(entry["dtype"]), shape, bool(entry["per_row"]), tuple(chunks))
        self._check_bytes(stored)
        return stored

    def _check_bytes(self, stored: StoredTensor) -> None:
        """Compare sizes with the bytes of files, before anyone makes room for such a tensor."""
        value_bytes = _VALUE_BYTES[stored.dtype]
        for chunk in stored.chunks:
            sizes = chunk.box.sizes[:1] if stored.per_row else chunk.box.sizes
            if Box.whole(sizes).num_values * value_bytes > self.files[chunk.file]["bytes"]:
                raise ValueError(f"{chunk.box} is larger than {chunk.file}")
        total_bytes = sum(entry["bytes"] for entry in self.files.values())
        sizes = stored.shape[:1] if stored.per_row else stored.shape
        if Box.whole(sizes).num_values * value_bytes > total_bytes:
            raise ValueError(
                f"{len(stored.chunks)} boxes do not make up a tensor of shape {stored.shape}"
            )


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(values)
    if len(sizes) > _MAX_DIMENSIONS or not all(type(v) is int and v >= 0 for v in sizes):
        raise ValueError(f"{str(sizes)[:100]} is no shape")
    return sizes


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > limit:
            raise CheckpointError(f"{path}: {num_bytes} bytes, more than the {limit} allowed")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be read ({error.strerror}); the folder is no complete checkpoint"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return values


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
