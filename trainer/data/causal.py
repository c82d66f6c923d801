"""Features of an impression's past, computed in one pass over a time-ordered log.

Strictly causal: a row sees the events whose timestamp is smaller than its own, and no others.
Rows that share a timestamp therefore see the same past, in whatever order they stand and
wherever the log is cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from trainer.data.ragged import Ragged
from trainer.data.writer import needs_int64, ragged_column

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

GAP_BUCKET_EDGES = (60, 600, 1_800, 21_600, 86_400, 604_800, 2_592_000)
"""Seconds: a minute, ten, thirty, six hours, a day, a week, thirty days."""
MOST_NARROW = 1 << 30
"""Items up to which `2 * item + positive` fits into int32."""
NUM_GAP_BUCKETS = len(GAP_BUCKET_EDGES) + 2
"""One bucket for "no past", and one more than there are edges."""


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Settings of `CausalFeatures`.

    Args:
        max_history: last positive items, and last items of any kind, kept per user.
        session_gap: seconds without an event after which a new session begins.
        prior: weight, in events, of the mean that a smoothed mean is pulled to.
    """

    max_history: int = 50
    session_gap: int = 1_800
    prior: float = 10.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: when one is not positive.
        """
        for name in ("max_history", "session_gap", "prior"):
            if getattr(self, name) <= 0:
                raise ValueError(f"CausalConfig.{name} is {getattr(self, name)}, must be positive")


@dataclass(frozen=True)
class CausalColumns:
    """Features of R rows, all from events strictly before each row's timestamp.

    A mean is `(positives + prior * pull) / (events + prior)`. User and item means are pulled to
    the mean of the whole log so far (itself `(positives + 1) / (events + 2)`); the user-genre
    mean is pulled to the user's own smoothed mean, so that it says what the genre adds.

    Attributes:
        history: R lists, positions of the user's last positive items, oldest first.
        history_rest: R lists, positions of the items that were not positive among the user's last
            ones of any kind, oldest first; its length tells how the user's taste stands lately.
        user_count: events of the user.
        user_mean: smoothed positive share of the user.
        user_recency: seconds since the user's last event; 0 for a user without a past, which
            `user_count == 0` and `gap_bucket == 0` tell apart.
        gap_bucket: int64, 0 without a past, else 1 + the number of `GAP_BUCKET_EDGES` reached.
        item_count: events of the item.
        item_mean: smoothed positive share of the item.
        user_genre_count: events of the user summed over the item's genres.
        user_genre_mean: smoothed positive share of those.
        session_id: int64, counted up over the log; not a feature (it only groups).
    """

    history: Ragged
    history_rest: Ragged
    user_count: Ints
    user_mean: Floats
    user_recency: Ints
    gap_bucket: Ints
    item_count: Ints
    item_mean: Floats
    user_genre_count: Ints
    user_genre_mean: Floats
    session_id: Ints

    def table_columns(self, item_ids: Ints | None = None) -> dict[str, Any]:
        """Columns as they stand in a data set folder.

        Args:
            item_ids: id of each item position; None where ids are positions.
        """

        def ids(history: Ragged) -> Any:
            items = history.values if item_ids is None else item_ids[history.values]
            return ragged_column(Ragged(items, history.offsets), is_wide=is_wide)

        # Of all ids, so that every chunk of a log has the same type.
        ids_held = np.zeros(1, np.int64) if item_ids is None else item_ids
        is_wide = len(ids_held) > 0 and needs_int64(ids_held.min(), ids_held.max())

        return {
            "session_id": self.session_id,
            "gap_bucket": self.gap_bucket.astype(np.int32),
            "history": ids(self.history),
            "history_rest": ids(self.history_rest),
            "user_count": self.user_count,
            "user_mean": self.user_mean,
            "user_recency": self.user_recency,
            "item_count": self.item_count,
            "item_mean": self.item_mean,
            "user_genre_count": self.user_genre_count,
            "user_genre_mean": self.user_genre_mean,
        }


class CausalFeatures:
    """Streaming transformer: feed it the log chunk by chunk, in time order.

    State grows with users and items, never with rows. Users and items are given by position.

    Args:
        num_users: users have positions in `[0, num_users)`.
        item_genres: genres (or categories) of each item.
        num_genres: genres lie in `[0, num_genres)`.
        config: settings.
    """

    def __init__(
        self,
        *,
        num_users: int,
        item_genres: Ragged,
        num_genres: int,
        config: CausalConfig | None = None,
    ) -> None:
        self._config = config or CausalConfig()
        num_items = len(item_genres)
        self._genre_values = item_genres.values.astype(np.int64)
        self._genre_offsets = item_genres.offsets.astype(np.int64)
        # Second axis: events, positives.
        self._users = np.zeros((num_users, 2), np.int64)
        self._items = np.zeros((num_items, 2), np.int64)
        self._user_genres = np.zeros((num_users, num_genres, 2), np.int32)
        self._totals = np.zeros(2, np.int64)
        # Columns: time of the last event, current session, time at which it was opened.
        self._clock = np.full((num_users, 3), -1, np.int64)
        # Second axis: last items of any kind as `2 * item + positive`, last positive items.
        held = np.int32 if num_items <= MOST_NARROW else np.int64
        self._ring = np.zeros((num_users, 2, self._config.max_history), held)
        self._num_sessions = 0
        # Rows at the newest timestamp, which no row has been allowed to see yet.
        self._pending = tuple(np.zeros(0, np.int64) for _ in range(4))

    def transform(
        self, *, users: Ints, items: Ints, timestamps: Ints, positives: NDArray[np.bool_]
    ) -> CausalColumns:
        """Return the features of the next R rows and remember their events.

        Args:
            users: (R,) user positions.
            items: (R,) item positions.
            timestamps: (R,) seconds, not before the rows seen so far.
            positives: (R,) whether the event counts as positive.

        Raises:
            ValueError: when times fall, or a position is out of range.
        """
        self._check(users, items, timestamps)
        given = (users, items, timestamps, positives)
        rows = tuple(
            np.concatenate([old, new.astype(np.int64)])
            for old, new in zip(self._pending, given, strict=True)
        )
        num_pending = len(self._pending[0])
        num_rows = len(users)
        ints = np.empty((5, num_rows), np.int64)
        means = np.empty((3, num_rows), np.float32)
        histories = np.empty((2, num_rows * self._config.max_history), np.int64)
        offsets = np.zeros((2, num_rows + 1), np.int64)
        start, self._num_sessions = _stream(
            *rows,
            num_pending,
            self._genre_values,
            self._genre_offsets,
            self._users,
            self._items,
            self._user_genres,
            self._totals,
            self._clock,
            self._ring,
            self._num_sessions,
            self._config.session_gap,
            self._config.prior,
            ints,
            means,
            histories,
            offsets,
        )
        self._pending = tuple(column[start:] for column in rows)
        user_count, recency, item_count, genre_count, session = ints
        bucket = 1 + np.searchsorted(np.array(GAP_BUCKET_EDGES), recency, side="right")
        return CausalColumns(
            history=Ragged(histories[1, : offsets[1, -1]].copy(), offsets[1]),
            history_rest=Ragged(histories[0, : offsets[0, -1]].copy(), offsets[0]),
            user_count=user_count,
            user_mean=means[0],
            user_recency=recency,
            gap_bucket=np.where(user_count > 0, bucket, 0).astype(np.int64),
            item_count=item_count,
            item_mean=means[1],
            user_genre_count=genre_count,
            user_genre_mean=means[2],
            session_id=session,
        )

    def _check(self, users: Ints, items: Ints, timestamps: Ints) -> None:
        for name, positions, size in (
            ("user", users, len(self._users)),
            ("item", items, len(self._items)),
        ):
            if len(positions) and not 0 <= positions.min() <= positions.max() < size:
                raise ValueError(
                    f"{name} positions span {positions.min()}..{positions.max()}, "
                    f"expected 0..{size - 1}"
                )
        newest = self._pending[2]
        late = len(newest) > 0 and len(timestamps) > 0 and timestamps[0] < newest[0]
        if late or np.any(np.diff(timestamps) < 0):
            raise ValueError("timestamps fall; causal features need the log in time order")


def _stream_rows(
    users: Ints,
    items: Ints,
    timestamps: Ints,
    positives: Ints,
    num_pending: int,
    genre_values: Ints,
    genre_offsets: Ints,
    user_state: Ints,
    item_state: Ints,
    user_genre_state: NDArray[np.int32],
    totals: Ints,
    clock: Ints,
    ring: NDArray[np.integer],
    num_sessions: int,
    session_gap: int,
    prior: float,
    ints: Ints,
    means: Floats,
    histories: Ints,
    offsets: Ints,
) -> tuple[int, int]:
    """Emit every row after the pending ones; return where the newest timestamp starts.

    Rows wait between emitting and being added to the state until the time moves on.
    """
    size = ring.shape[2]
    applied = 0
    for row in range(num_pending, len(users)):
        time = timestamps[row]
        while applied < row and timestamps[applied] < time:
            user, item, positive = users[applied], items[applied], positives[applied]
            ring[user, 0, user_state[user, 0] % size] = 2 * item + positive
            if positive:
                ring[user, 1, user_state[user, 1] % size] = item
            user_state[user, 0] += 1
            user_state[user, 1] += positive
            item_state[item, 0] += 1
            item_state[item, 1] += positive
            totals[0] += 1
            totals[1] += positive
            for at in range(genre_offsets[item], genre_offsets[item + 1]):
                user_genre_state[user, genre_values[at], 0] += 1
                user_genre_state[user, genre_values[at], 1] += positive
            clock[user, 0] = timestamps[applied]
            applied += 1

        out = row - num_pending
        user, item = users[row], items[row]
        events, liked = user_state[user]
        recency = time - clock[user, 0] if events > 0 else 0
        # The second of two rows at one time continues the session that the first has opened.
        if (events == 0 or recency > session_gap) and (
            clock[user, 1] < 0 or clock[user, 2] != time
        ):
            clock[user, 1] = num_sessions
            clock[user, 2] = time
            num_sessions += 1
        genre_events, genre_liked = 0, 0
        for at in range(genre_offsets[item], genre_offsets[item + 1]):
            genre_events += user_genre_state[user, genre_values[at], 0]
            genre_liked += user_genre_state[user, genre_values[at], 1]
        base = (totals[1] + 1.0) / (totals[0] + 2.0)
        user_mean = (liked + prior * base) / (events + prior)
        means[0, out] = user_mean
        means[1, out] = (item_state[item, 1] + prior * base) / (item_state[item, 0] + prior)
        means[2, out] = (genre_liked + prior * user_mean) / (genre_events + prior)
        ints[0, out] = events
        ints[1, out] = recency
        ints[2, out] = item_state[item, 0]
        ints[3, out] = genre_events
        ints[4, out] = clock[user, 1]
        end = offsets[0, out]
        for at in range(events - min(events, size), events):
            if ring[user, 0, at % size] % 2 == 0:
                histories[0, end] = ring[user, 0, at % size] // 2
                end += 1
        offsets[0, out + 1] = end
        end = offsets[1, out]
        for at in range(liked - min(liked, size), liked):
            histories[1, end] = ring[user, 1, at % size]
            end += 1
        offsets[1, out + 1] = end
    return applied, num_sessions


_stream = numba.njit(cache=True)(_stream_rows)
