"""A managed table's map from ids to rows, as a checkpoint holds it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sharding.tables import TableSpec
from trainer.serving.folder import ServingError
from trainer.stored_state import StoredState

_UNUSED = np.iinfo(np.int64).max
"""What stands in a managed table's map where no id has the row."""


def managed_map(source: StoredState, table: TableSpec) -> dict[str, NDArray[np.int64]]:
    """Which id (hashed) has which row of a managed table; see `ManagedRows`.

    Raises:
        ServingError: when the checkpoint holds no whole map of it.
    """
    ending = f".{table.name}._mch_sorted_raw_ids"
    name = next((one for one in source.tensors if one.endswith(ending)), None)
    if name is None:
        raise ServingError(f"{source.path}: holds no map of the managed table {table.name!r}")
    hashes = source.whole(name).numpy()
    rows = source.whole(name.removesuffix("sorted_raw_ids") + "remapped_ids_mapping").numpy()
    boxes = sorted((chunk.box for chunk in source.tensors[name].chunks), key=lambda b: b.offsets)
    if len(boxes) != source.state["world_size"]:
        raise ServingError(
            f"{source.path}: the map of table {table.name!r} has {len(boxes)} shards, expected one "
            f"for each of {source.state['world_size']} ranks"
        )
    used_hashes, used_rows, shared = [], [], []
    for box in boxes:
        start, stop = box.offsets[0], box.offsets[0] + box.sizes[0]
        shared.append(stop - 1)
        part = slice(start, stop - 1)  # the last place of a shard is never matched
        used = hashes[part] != _UNUSED
        used_hashes.append(hashes[part][used])
        used_rows.append(rows[part][used])
    return {
        f"{table.name}/hashes": np.concatenate(used_hashes),
        f"{table.name}/rows": np.concatenate(used_rows),
        f"{table.name}/shared": np.asarray(shared),
    }
