"""A batch as a safetensors file: looked at, or trained on again, without unpickling anything."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.batch import Batch

_KEYS = "keys"


def save_batch(batch: Batch, path: Path) -> None:
    """Write a batch; a KeyedJaggedTensor as `<field>.values` and `<field>.lengths`.

    Args:
        batch: on any device.
        path: to write, `.safetensors` by custom.
    """
    tensors: dict[str, Tensor] = {}
    keys: dict[str, list[str]] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, KeyedJaggedTensor):
            keys[field.name] = value.keys()
            tensors[f"{field.name}.values"] = value.values()
            tensors[f"{field.name}.lengths"] = value.lengths()
        else:
            tensors[field.name] = value
    # Clones: slices of one memory can't be told apart in a file.
    contiguous = {
        name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()
    }
    save_file(contiguous, path, metadata={_KEYS: json.dumps(keys)})


def load_batch(path: Path) -> Batch:
    """Read what `save_batch` wrote.

    Example::

        batch = load_batch(Path("runs/mine/non_finite_batch/rank_0.safetensors"))
        batch.dense_BF.isfinite().all(dim=0)
    """
    with safe_open(str(path), framework="pt") as file:
        keys = json.loads((file.metadata() or {}).get(_KEYS, "{}"))
        values = {
            field.name: KeyedJaggedTensor(
                keys=keys[field.name],
                values=file.get_tensor(f"{field.name}.values"),
                lengths=file.get_tensor(f"{field.name}.lengths"),
            )
            if field.name in keys
            else file.get_tensor(field.name)
            for field in fields(Batch)
        }
    return Batch(**values)
