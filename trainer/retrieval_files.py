"""Requests and pairs from files: what `farewell retrieve` reads.

Legend: M pairs, F width of cross features (d_c), R requests.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data import decode
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError, Place
from trainer.data.parts import ParquetPart
from trainer.data.schema import Bag, DatasetSchema, Dense
from trainer.models.dig import DigNetwork


def write_request_log(requests: Path, folder: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Requests as a log, so that they are read and checked as impressions are.

    A request has no item: item, labels and Type III features are filled with what nothing of a
    request depends on. Time stays as it is where the file has it.

    Args:
        requests: parquet file with a row a request: user id, histories, and the features of request
            and user that come from interactions.
        folder: new folder for the log.
        dataset: whose items and users the requests are about.

    Returns:
        For each row of the log, in order of time, the request's row in the file, int64 (R,).

    Raises:
        DataError: on a missing column or an empty file.
    """
    schema = dataset.schema
    table = _whole(requests)
    if table.num_rows == 0:
        raise DataError(f"{requests}: expected at least one request, found no rows")
    wanted = [schema.user, *(history.name for history in schema.histories)]
    wanted += [
        one.name
        for one in schema.features
        if one.source == "interactions" and one.entity in ("user", "request")
    ]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(
            f"{requests}, column {missing[0]!r}: expected it for every request, found "
            f"{', '.join(table.column_names)}; write the columns {', '.join(wanted)}"
        )
    number = table.num_rows
    zeros = pa.array(np.zeros(number, dtype=np.int64))
    filled = {
        schema.time: zeros,
        schema.item: pa.array(np.full(number, dataset.item_ids[0])),
        schema.user_group: table[schema.user],
        schema.query_group: pa.array(np.arange(number)),
        **dict.fromkeys(schema.labels, zeros),
    }
    for one in schema.features:
        if one.source == "interactions" and one.entity not in ("user", "request"):
            empty = pa.array([[]] * number, type=pa.list_(pa.int64()))
            filled[one.name] = empty if isinstance(one, Bag) else zeros
    for name, values in filled.items():
        if name not in table.column_names:
            table = table.append_column(name, values)
        elif name in schema.labels or name == schema.item:
            table = table.set_column(table.column_names.index(name), name, values)
    order = np.argsort(table[schema.time].to_numpy(), kind="stable")
    (folder / "interactions").mkdir(parents=True)
    pq.write_table(table.take(order), folder / "interactions" / "part-00000.parquet")
    shutil.copy(dataset.items.part.path, folder / "items.parquet")
    if dataset.users is not None:
        shutil.copy(dataset.users.part.path, folder / "users.parquet")
    return order.astype(np.int64)


class PairFeatures:
    """Cross features of pairs from a parquet file: `request`, the item's id, Type III columns.

    Args:
        path: of the file; `request` counts the rows of the requests' file.
        dataset: with the items.
        network: that encodes the features.
        order: of the requests as they are retrieved for, see :func:`write_request_log`.

    Raises:
        DataError: on a missing column, a pair that stands twice, or an item that is unknown.
        ValueError: when the model has Type III features that are no numbers, or was trained
            without them.
    """

    def __init__(
        self, path: Path, dataset: Dataset, network: DigNetwork, order: NDArray[np.int64]
    ) -> None:
        if network.types.cross:
            raise ValueError(
                f"--cross: the model's cross features {', '.join(network.types.cross)} are ids; "
                "pairs from a file can bring numbers alone, leave --cross out"
            )
        if network.config.cross_share == 0:
            raise ValueError(
                "--cross: the model was trained without cross features (model.cross_share is 0), "
                "so it does not know what they mean; leave --cross out"
            )
        self._network = network
        schema: DatasetSchema = dataset.schema
        dense: list[Dense] = [schema.dense_features[at] for at in network.types.cross_dense]
        table = _whole(path)
        names = ["request", schema.item, *(one.name for one in dense)]
        for name in names:
            if name not in table.column_names:
                raise DataError(
                    f"{path}, column {name!r}: expected it, found "
                    f"{', '.join(table.column_names)}; write the columns {', '.join(names)}"
                )
        place_of = np.empty(len(order), dtype=np.int64)
        place_of[order] = np.arange(len(order))
        request = decode.scalars(table["request"], Place(path, "request"))
        if request.size and (request.min() < 0 or request.max() >= len(order)):
            raise DataError(
                f"{path}, column 'request': expected rows of the requests' file, 0 to "
                f"{len(order) - 1}, found {request.min()} to {request.max()}"
            )
        item = dataset.item_rows(decode.scalars(table[schema.item], Place(path, schema.item)))
        key = place_of[request] * dataset.num_items + item
        by_key = np.argsort(key, kind="stable")
        if (np.diff(key[by_key]) == 0).any():
            raise DataError(f"{path}: expected each pair once, found a pair twice")
        values = [
            decode.dense_values(
                decode.scalars(table[one.name], Place(path, one.name)),
                Place(path, one.name),
                transform=one.transform,
            )
            for one in dense
        ]
        self._num_items = dataset.num_items
        self._key = torch.from_numpy(key[by_key])
        self._values = torch.from_numpy(np.stack(values, axis=1)[by_key])

    def of(self, request_M: Tensor, item_row_M: Tensor) -> tuple[Tensor, Tensor]:
        """Cross features (M, F) as the network encodes them, and whether each pair is known."""
        network = self._network
        key_M = request_M * self._num_items + item_row_M
        dense_MF = torch.zeros(len(key_M), len(network.dense_encoding.edges_FE))
        if not len(self._key):
            is_known_M = torch.zeros(len(key_M), dtype=torch.bool)
        else:
            at_M = torch.searchsorted(self._key, key_M.cpu()).clamp_max(len(self._key) - 1)
            is_known_M = self._key[at_M] == key_M.cpu()
            dense_MF[:, network.types.cross_dense] = self._values[at_M]
        encoded = network.dense_encoding(dense_MF.to(key_M.device))
        encoded_MFQ = encoded.unflatten(1, (-1, network.dense_encoding.num_bins))
        return encoded_MFQ[:, network.types.cross_dense].flatten(1), is_known_M.to(key_M.device)


def _whole(path: Path) -> pa.Table:
    """All columns of a parquet file."""
    part = ParquetPart.open(path)
    return part.read(part.schema.names)
