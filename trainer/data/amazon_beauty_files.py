"""The two files of Amazon Beauty, read into arrays."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.ragged import Ragged
from trainer.data.writer import ragged_column

Ints = NDArray[np.int64]

NUM_USERS, NUM_CATEGORIES = 22_364, 288
"""One more user than there are, since ids begin at 1; somewhat more categories."""
DEPTHS = (2, 3, 4)
"""Levels of the category path that are compared with the history; all have the first in common."""


@dataclass(frozen=True)
class BeautyItems:
    """The catalogue of I items, in the order of the file.

    Attributes:
        ids: int64 (I,).
        titles: I of them.
        paths: the first category path of each.
        categories: ids of all prefixes of an item's paths but the first level.
        prefix: int64 (I, depths): the id of the first path's prefix of each depth, or of the whole
            path where it is shorter.
        num_categories: distinct prefixes.
    """

    ids: Ints
    titles: list[str]
    paths: list[tuple[str, ...]]
    categories: Ragged
    prefix: Ints
    num_categories: int

    @classmethod
    def read(cls, path: Path) -> BeautyItems:
        """Read `items.json`.

        Raises:
            ValueError: when it is missing or of another form.
        """
        described = _json(path)
        titles, paths = [], []
        for item, one in described.items():
            try:
                titles.append(html.unescape(one["title"]))
                paths.append([tuple(map(str, levels)) for levels in one["categories"]])
                if not paths[-1]:
                    raise KeyError("a category path")
            except (TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: item {item!r}: expected a title and categories (a list of paths), "
                    f"found {one!r}"
                ) from error
        known = sorted({p[:n] for item in paths for p in item for n in range(1, len(p) + 1)})
        if len(known) > NUM_CATEGORIES:
            raise ValueError(
                f"{path}: expected at most {NUM_CATEGORIES} categories as in Amazon Beauty, found "
                f"{len(known)}"
            )
        number = {prefix: at for at, prefix in enumerate(known)}
        bags = [
            sorted({number[p[:n]] for p in item for n in range(2, len(p) + 1)}) for item in paths
        ]
        return cls(
            ids=_integers(list(described), path),
            titles=titles,
            paths=[item[0] for item in paths],
            categories=Ragged.from_lengths(
                np.array([one for bag in bags for one in bag], dtype=np.int64),
                np.array([len(bag) for bag in bags], dtype=np.int64),
            ),
            prefix=np.array([[number[item[0][:depth]] for depth in DEPTHS] for item in paths]),
            num_categories=len(known),
        )

    def table(self) -> pa.Table:
        """items.parquet; `text` is the title and the first category path."""
        texts = [
            f"{title}. {', '.join(map(html.unescape, path))}"
            for title, path in zip(self.titles, self.paths, strict=True)
        ]
        columns: dict[str, Any] = {
            "item_id": self.ids,
            "categories": ragged_column(self.categories),
            "title": self.titles,
            "text": texts,
        }
        return pa.table(columns)


@dataclass(frozen=True)
class BeautyReviews:
    """R reviews, one user after the other.

    Attributes:
        user: int64 (R,) ids.
        item: int64 (R,) item rows.
        position: int64 (R,) in the user's sequence.
        part: int64 (R,): 2 for each user's last, 1 for the last but one, else 0.
    """

    user: Ints
    item: Ints
    position: Ints
    part: Ints

    @classmethod
    def read(cls, path: Path, item_ids: Ints) -> BeautyReviews:
        """Read `sequences.txt`.

        Raises:
            ValueError: when it is missing or of another form, or names an unknown item.
        """
        lines = _text(path).splitlines()
        lengths = np.array([len(line.split()) - 1 for line in lines], dtype=np.int64)
        if not len(lengths) or lengths.min() < 1:
            at = int(np.argmin(lengths)) + 1 if len(lengths) else 1
            raise ValueError(
                f"{path}: line {at}: expected a user id and at least one item id, found fewer"
            )
        words = _integers([word for line in lines for word in line.split()], path)
        starts = np.cumsum(lengths + 1) - lengths - 1
        users = words[starts]
        if len(np.unique(users)) < len(users) or users.min() < 0 or users.max() >= NUM_USERS:
            raise ValueError(
                f"{path}: expected a line for each user and ids from 0 to {NUM_USERS - 1}, found "
                f"{len(users)} lines, {len(np.unique(users))} ids up to {users.max()}"
            )
        items = np.delete(words, starts)
        order = np.argsort(item_ids)
        rows = order[np.searchsorted(item_ids, items, sorter=order).clip(max=len(order) - 1)]
        if (item_ids[rows] != items).any():
            unknown = items[item_ids[rows] != items]
            raise ValueError(f"{path}: item {unknown[0]} is not in items.json; add it there")
        position = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        to_come = np.repeat(lengths, lengths) - position
        return cls(np.repeat(users, lengths), rows, position, 3 - np.minimum(to_come, 3))


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; expected Amazon Beauty's items.json and sequences.txt in the "
            "source folder"
        )
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, but: {error}") from error
    if not isinstance(described, dict) or not described:
        raise ValueError(f"{path}: expected an object with an entry for each item, found none")
    return described


def _integers(words: list[str], path: Path) -> Ints:
    try:
        return np.array(words, dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"{path}: expected integer ids, but: {error}") from error
