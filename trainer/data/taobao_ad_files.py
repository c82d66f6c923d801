"""What the small files of Taobao's ad log tell of ads and users.

`ad_feature.csv` and `user_profile.csv` fit in memory; ids stay as they are in the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.csv_chunks import CsvFile
from trainer.data.id_index import IdIndex, refuse_repeated
from trainer.data.log_levels import log_levels
from trainer.data.text_numbers import real_numbers, whole_numbers

NO_BRAND = -1
NUM_PRICES = 64
PROFILE_IDS = {
    "cms_segid": 98,
    "cms_group_id": 14,
    "final_gender_code": 4,
    "age_level": 8,
    "pvalue_level": 5,
    "shopping_level": 5,
    "occupation": 3,
    "new_user_class_level": 6,
}
"""Ids of each field of a profile: 0 for one that is not there, else 1 more than in the file."""
_AD_COLUMNS = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price")


def taobao_file(
    folder: Path, name: str, columns: tuple[str, ...], *, max_rows: int | None = None
) -> CsvFile:
    """One of the log's files, of which some columns are read."""
    return CsvFile(
        path=folder / name,
        columns=columns,
        delimiter=",",
        header=True,
        what=f"Taobao's {name}",
        max_rows=max_rows,
        wanted=True,
    )


@dataclass(frozen=True)
class Ads:
    """The catalogue of V ads, in the order of the file.

    Attributes:
        fields: int64 (V,) of each column but the price.
        price: float64 (V,).
        index: of the ads' ids.
    """

    fields: dict[str, NDArray[np.int64]]
    price: NDArray[np.float64]
    index: IdIndex

    @classmethod
    def read(cls, folder: Path) -> Ads:
        """Read `ad_feature.csv`.

        Raises:
            ValueError: naming file and column, when one is missing or holds another kind of value.
        """
        file = taobao_file(folder, "ad_feature.csv", _AD_COLUMNS)
        text = pa.concat_tables(list(file.chunks()))
        fields = {
            name: whole_numbers(
                text[name], place=file.place(name), absent=NO_BRAND if name == "brand" else None
            )
            for name in _AD_COLUMNS[:-1]
        }
        refuse_repeated(fields["adgroup_id"], file.place("adgroup_id"))
        return cls(
            fields=fields,
            price=real_numbers(text["price"], place=file.place("price")),
            index=IdIndex(fields["adgroup_id"]),
        )

    def table(self, first_time: NDArray[np.int64]) -> pa.Table:
        """An items.parquet of the ads that were shown.

        Args:
            first_time: int64 (V,) seconds of the first impression; -1 for an ad without any.
        """
        shown = np.flatnonzero(first_time >= 0)
        fields = {name: values[shown] for name, values in self.fields.items()}
        columns: dict[str, Any] = {
            "item_id": fields.pop("adgroup_id"),
            "created_at": first_time[shown],
            **fields,
            "price": self.price[shown].astype(np.float32),
            "price_level": log_levels(self.price[shown], NUM_PRICES),
        }
        return pa.table(columns)


def read_profiles(folder: Path, users: NDArray[np.int64]) -> pa.Table:
    """A users.parquet of some users; those without a profile have 0 in every column.

    Args:
        folder: of `user_profile.csv`.
        users: distinct ids.

    Raises:
        ValueError: naming file and column, when one is missing or holds another kind of value.
    """
    file = taobao_file(folder, "user_profile.csv", ("userid", *PROFILE_IDS))
    text = pa.concat_tables(list(file.chunks()))
    ids = whole_numbers(text["userid"], place=file.place("userid"))
    refuse_repeated(ids, file.place("userid"))
    row = IdIndex(ids).rows(users)
    columns: dict[str, Any] = {"user_id": users, "has_profile": (row >= 0).astype(np.int8)}
    for name, size in PROFILE_IDS.items():
        values = whole_numbers(text[name], place=file.place(name), absent=-1) + 1
        if len(values) and not 0 <= values.min() <= values.max() < size:
            raise ValueError(
                f"{file.place(name)}: expected 0 to {size - 2} or nothing, found "
                f"{values.min() - 1} to {values.max() - 1}"
            )
        columns[name] = np.append(values, 0)[row].astype(np.int32)
    return pa.table(columns)
