"""A checkpoint written by the test itself, with safetensors' own writer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.float64: "F64", torch.uint8: "U8"}


def write_checkpoint(folder: Path, tensors: dict, *, state: dict | None = None) -> Path:
    """`tensors`: name -> (shape, per_row, [(rank, offsets, sizes, values)])."""
    folder.mkdir(parents=True)
    files, index = {}, {}
    for name, (shape, per_row, boxes) in tensors.items():
        chunks = []
        for rank, offsets, sizes, values in boxes:
            file, key = f"rank_{rank:05d}.safetensors", f"{name} at {offsets}"
            files.setdefault(file, {})[key] = values.contiguous()
            chunks.append(
                {"file": file, "key": key, "offsets": list(offsets), "sizes": list(sizes)}
            )
        index[name] = {
            "dtype": NAMES[boxes[0][3].dtype],
            "shape": list(shape),
            "per_row": per_row,
            "chunks": chunks,
        }
    for file, values in files.items():
        save_file(values, folder / file)
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "state.json").write_text(
        json.dumps({"step": 7, "world_size": 1, "validation": {}, **(state or {})})
    )
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    """List the folder's files as they are."""
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def whole(values: torch.Tensor, *, per_row: bool = False, columns: int | None = None):
    """One box that is all of a tensor."""
    shape = (len(values), columns) if per_row else tuple(values.shape)
    return shape, per_row, [(0, (0,) * len(shape), shape, values)]
