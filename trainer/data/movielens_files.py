"""The MovieLens files as RecBole ships them, read into tables with dense ids.

Each file is tab-separated, one header line `name:kind`; MovieLens-1M names films by their title
and users by `1m_<number>`, 100K uses numbers. Both become places in the item and user tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from trainer.data.ragged import Ragged
from trainer.data.writer import ragged_column

Columns = dict[str, Any]

GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
    *("Thriller", "War", "Western", "unknown"),
)
AGE_EDGES = (18, 25, 35, 45, 50, 56)
"""The age classes of MovieLens-1M; the exact ages of 100K are put into the same."""
NUM_OCCUPATIONS = 21
FIRST_YEAR, LAST_YEAR = 1919, 2000
NUM_YEARS = LAST_YEAR - FIRST_YEAR + 2
"""Year ids: 0 for none, else 1 + year - 1919."""
NUM_ZIP_REGIONS = 1_001
"""Zip ids: 0 for a code that does not start with three digits, else 1 + these digits."""


@dataclass(frozen=True)
class MovieLensFiles:
    """Ratings in time order, films and people.

    Ratings of one second keep the order of the source. All arrays are int64 of the number of
    ratings unless said otherwise.

    Attributes:
        users: place of the user in `user_table`.
        items: place of the film in `item_table`.
        timestamps: seconds.
        stars: 1 to 5.
        item_table: rated films, in the order of the source's item file.
        user_table: users, in the order of the source's user file.
        genres: places in `GENRES`, a list per film.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    stars: NDArray[np.int64]
    item_table: pa.Table
    user_table: pa.Table
    genres: Ragged

    @classmethod
    def read(cls, folder: Path, stem: str) -> MovieLensFiles:
        """Read `<stem>.inter`, `<stem>.item` and `<stem>.user`.

        Raises:
            ValueError: when a file is missing or ratings name unknown users or films.
        """
        ratings = _read(folder / f"{stem}.inter")
        films = _read(folder / f"{stem}.item")
        people = _read(folder / f"{stem}.user")
        order = np.argsort(_integers(ratings["timestamp"]), kind="stable")
        timestamps = _integers(ratings["timestamp"])[order]
        film_rows = _positions(ratings["item_id"], films["item_id"], folder / f"{stem}.item")
        rated, first_row, items = np.unique(
            film_rows[order], return_index=True, return_inverse=True
        )
        films = {name: column.take(rated) for name, column in films.items()}
        genres = _genres(films)
        return cls(
            users=_positions(ratings["user_id"], people["user_id"], folder / f"{stem}.user")[order],
            items=items,
            timestamps=timestamps,
            stars=_integers(ratings["rating"])[order],
            item_table=_item_table(films, timestamps[first_row], genres),
            user_table=_user_table(people),
            genres=genres,
        )

    def within(self, windows: Sequence[tuple[int, int]]) -> MovieLensFiles:
        """The ratings of some times alone, as if there were no others.

        Users and films without a rating there are left out, and places count those that remain.

        Args:
            windows: first and last second of each, both included.
        """
        kept = np.zeros(len(self.timestamps), np.bool_)
        for first, last in windows:
            kept |= (self.timestamps >= first) & (self.timestamps <= last)
        seen, users = np.unique(self.users[kept], return_inverse=True)
        rated, first_row, items = np.unique(
            self.items[kept], return_index=True, return_inverse=True
        )
        timestamps = self.timestamps[kept]
        return MovieLensFiles(
            users=users,
            items=items,
            timestamps=timestamps,
            stars=self.stars[kept],
            item_table=_with_columns(
                self.item_table.take(rated),
                {"item_id": np.arange(len(rated)), "created_at": timestamps[first_row]},
            ),
            user_table=_with_columns(self.user_table.take(seen), {"user_id": np.arange(len(seen))}),
            genres=self.genres.gather(rated),
        )


def _with_columns(table: pa.Table, columns: dict[str, NDArray[np.int64]]) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def _genres(films: Columns) -> Ragged:
    lists: Any = pc.split_pattern(_genre_names(films), pattern=" ")
    ids = pc.index_in(lists.flatten(), value_set=pa.array(GENRES))
    if ids.null_count:
        unknown = lists.flatten().filter(pc.is_null(ids)).unique().to_pylist()
        raise ValueError(f"item file: genres {unknown} are not among {', '.join(GENRES)}")
    return Ragged(ids.to_numpy().astype(np.int64), lists.offsets.to_numpy().astype(np.int64))


def _genre_names(films: Columns) -> Any:
    return films["class"] if "class" in films else films["genre"]


def _item_table(films: Columns, created_at: NDArray[np.int64], genres: Ragged) -> pa.Table:
    dated = pc.match_substring_regex(films["release_year"], r"^\d{4}$")
    years = _integers(pc.if_else(dated, films["release_year"], "0"))
    shown = pc.if_else(dated, films["release_year"], "year unknown")
    names = pc.replace_substring(_genre_names(films), pattern=" ", replacement=", ")
    title: Any = films["movie_title"]
    ids = np.where(years > 0, np.clip(years, FIRST_YEAR, LAST_YEAR) - FIRST_YEAR + 1, 0)
    columns: dict[str, Any] = {
        "item_id": np.arange(len(years)),
        "created_at": created_at,
        "year": ids.astype(np.int32),
        "genres": ragged_column(genres),
        "title": title,
        "text": pc.binary_join_element_wise(title, " (", shown, "). Genres: ", names, ""),
        "source_id": films["item_id"],
    }
    return pa.table(columns)


def _user_table(people: Columns) -> pa.Table:
    jobs = people["occupation"].to_numpy(zero_copy_only=False).astype(str)
    age = np.searchsorted(AGE_EDGES, _integers(people["age"]), side="right")
    zip_code = people["zip_code"].to_numpy(zero_copy_only=False).astype("U3")
    # An empty or foreign code has no region.
    plain = np.char.isdigit(zip_code) & (np.char.str_len(zip_code) == 3)
    region = np.where(plain, np.where(plain, zip_code, "0").astype(np.int64) + 1, 0)
    male: NDArray[np.bool_] = people["gender"].to_numpy(zero_copy_only=False) == "M"
    columns: dict[str, Any] = {
        "user_id": np.arange(len(jobs)),
        "gender": male.astype(np.int32),
        "age": age.astype(np.int32),
        "occupation": np.unique(jobs, return_inverse=True)[1].astype(np.int32),
        "zip_region": region.astype(np.int32),
        "source_id": people["user_id"],
    }
    return pa.table(columns)


def _read(path: Path) -> Columns:
    """Read all columns as text, under the names before the colon."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; the cached copy is damaged, remove it and try again")
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\r\n").split("\t")
    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    ).combine_chunks()
    return {name.split(":")[0]: table[name].chunk(0) for name in header}


def _integers(column: pa.Array[Any]) -> NDArray[np.int64]:
    return column.cast(pa.float64()).to_numpy().astype(np.int64)


def _positions(keys: pa.Array[Any], known: pa.Array[Any], file: Path) -> NDArray[np.int64]:
    """Place of each key in `known`."""
    positions = pc.index_in(keys, value_set=known)
    if positions.null_count:
        example = keys.filter(pc.is_null(positions))[0].as_py()
        raise ValueError(f"{file}: no row for {example!r}, which a rating refers to")
    return positions.to_numpy().astype(np.int64)
