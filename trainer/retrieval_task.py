"""The common ground of retrieval comparisons: what retrievers are fitted on and asked for.

Legend: U users with positives in the training rows, C cases, N items of items.parquet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.ragged import Ragged
from trainer.data.schema import RowRange, Splits


@dataclass(frozen=True, kw_only=True)
class RetrievalCases:
    """Last positive impressions of each user in a part of the log: one, or several.

    Attributes:
        user: int64 (C,) ids, ascending; one with several cases stands several times.
        row: int64 (C,) rows of the log, so that rankers can read the request's features.
        history: C lists of item rows (int64), oldest first, strictly before the case. They are the
            log's own history column, which rankers read too, as long as the schema keeps it.
        target: int64 (C,) item row of the one right answer.
    """

    user: NDArray[np.int64]
    row: NDArray[np.int64]
    history: Ragged
    target: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of cases C."""
        return len(self.user)

    def take(self, cases: NDArray[np.integer]) -> RetrievalCases:
        """Some of the cases, in that order."""
        return RetrievalCases(
            user=self.user[cases],
            row=self.row[cases],
            history=self.history.gather(cases),
            target=self.target[cases],
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Sequences to fit on, and cases whose right answers are to be retrieved.

    The same rule serves both protocols: with a split by time the cases are each user's last click
    (last-click), in a log that is cut by last clicks (`trainer.data.last_click`, leave-one-out)
    the one positive that a part holds of each user.

    Attributes:
        num_items: N; every one of them may be retrieved.
        users: int64 (U,) ids, ascending.
        train: U lists of item rows (int64), the positive impressions of the training rows, oldest
            first, of any length from 1 on, items as often as they occur.
        valid: cases to choose settings by.
        test: cases to report.
        leave_out_history: whether items of a case's history are left out of its list. Retrievers
            hold to it. Cases whose right answer is in their own history are then left out too.
    """

    num_items: int
    users: NDArray[np.int64]
    train: Ragged
    valid: RetrievalCases
    test: RetrievalCases
    leave_out_history: bool = False

    @classmethod
    def of_log(
        cls,
        dataset: Dataset,
        splits: Splits,
        *,
        label: str | None = None,
        history: str | None = None,
        leave_out_history: bool = False,
        cases_per_user: int = 1,
    ) -> RetrievalTask:
        """Read the task from a log.

        Args:
            dataset: opened.
            splits: `dataset.split(...)`.
            label: column that is 1 for positive impressions; None for the schema's first label.
            history: column of the positives before an impression; None for the schema's first
                history.
            leave_out_history: see the class.
            cases_per_user: last positives of each user that are asked for, where there are as many.

        Raises:
            ValueError: when the schema has no such label or history, or for no case a user.
            DataError: when training or test rows hold no positive impression.
        """
        schema = dataset.schema
        label = label or schema.labels[0]
        names = [one.name for one in schema.histories]
        history = history or next(iter(names), "")
        if label not in schema.labels or history not in names:
            raise ValueError(
                f"retrieval task: expected a label of {', '.join(schema.labels)} and a history of "
                f"{', '.join(names) or 'none (the schema names no history)'}; found label "
                f"{label!r}, history {history!r}"
            )
        if cases_per_user < 1:
            raise ValueError(f"cases_per_user is {cases_per_user}, expected at least 1")
        users, items, _ = _positives(dataset, splits.train, label)
        order = np.argsort(users, kind="stable")
        users, lengths = np.unique(users, return_counts=True)
        kind = names.index(history)
        valid, test = (
            _cases(dataset, rows, label, kind, leave_out_history, cases_per_user)
            for rows in (splits.valid, splits.test)
        )
        for part, number in (("training", len(users)), ("test", len(test))):
            if not number:
                raise DataError(
                    f"{dataset.folder}, column {label!r}: expected positives in the {part} rows, "
                    "found none to retrieve; choose another label or split"
                )
        return cls(
            num_items=dataset.num_items,
            users=users.astype(np.int64),
            train=Ragged.from_lengths(items[order], lengths.astype(np.int64)),
            valid=valid,
            test=test,
            leave_out_history=leave_out_history,
        )


def _positives(
    dataset: Dataset, rows: RowRange, label: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """User ids, item rows and rows of the log of positive impressions, in the log's order."""
    schema = dataset.schema
    log = dataset.read(rows, [schema.user, schema.item, label])
    at = np.flatnonzero(log[label] > 0.5)
    items = dataset.item_rows(log[schema.item][at])
    return log[schema.user][at].astype(np.int64), items, rows.start + at


def _cases(
    dataset: Dataset,
    rows: RowRange,
    label: str,
    kind: int,
    leave_out_history: bool,
    cases_per_user: int,
) -> RetrievalCases:
    users, items, row = _positives(dataset, rows, label)
    by_user = np.argsort(users, kind="stable")
    users = users[by_user]
    to_come = np.searchsorted(users, users, side="right") - np.arange(len(users))
    kept = to_come <= cases_per_user
    users, last = users[kept], by_user[kept]
    cases = RetrievalCases(
        user=users, row=row[last], history=_histories(dataset, row[last], kind), target=items[last]
    )
    if not leave_out_history:
        return cases
    lengths = cases.history.lengths
    knows = cases.history.values == np.repeat(cases.target, lengths)
    known = np.zeros(len(cases), dtype=np.bool_)
    known[np.repeat(np.arange(len(cases)), lengths)[knows]] = True
    return cases.take(np.flatnonzero(~known))


def _histories(dataset: Dataset, rows: NDArray[np.int64], kind: int) -> Ragged:
    """One history's items (item rows) of some rows of the log, in the order of `rows`."""
    if not len(rows):
        return Ragged(np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
    order = np.argsort(rows)
    ascending = rows[order]
    parts = []
    for piece in dataset.parts.pieces(RowRange(int(rows.min()), int(rows.max()) + 1)):
        first, stop = np.searchsorted(ascending, [piece.rows.start, piece.rows.stop])
        if first == stop:
            continue
        history = dataset.block(piece.rows).history
        assert history is not None  # the schema has one
        parts.append(history.gather(ascending[first:stop] - piece.rows.start))
    every = Ragged.concatenate(parts).gather(np.argsort(order))
    # A block names item and kind of history in one number.
    num_kinds = len(dataset.schema.histories)
    kept = every.values % num_kinds == kind
    offsets = np.concatenate([[0], np.cumsum(kept)])[every.offsets]
    return Ragged(every.values[kept] // num_kinds, offsets.astype(np.int64))
