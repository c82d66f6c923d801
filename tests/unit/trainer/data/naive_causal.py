"""Causal features by looking at all earlier rows, one by one."""

from collections import defaultdict

import pytest

from trainer.data.causal import GAP_BUCKET_EDGES, CausalConfig

HISTORIES = ("history", "history_rest")


def naive_rows(log, genres, config=None):
    """What stands in each row.

    Args:
        log: `users`, `items`, `timestamps` and `positives` of the rows, in order of time.
        genres: of each item.
        config: settings.
    """
    config = config or CausalConfig()
    prior, most = config.prior, config.max_history
    names = ("users", "items", "timestamps", "positives")
    events = list(zip(*(map(int, log[name]) for name in names), strict=True))
    sessions, session_of = {}, defaultdict(list)
    rows = []
    for user, item, time, _ in events:
        past = [event for event in events if event[2] < time]
        mine = [event for event in past if event[0] == user]
        same_item = [event for event in past if event[1] == item]
        base = (sum(e[3] for e in past) + 1) / (len(past) + 2)
        user_mean = (sum(e[3] for e in mine) + prior * base) / (len(mine) + prior)
        genre_events = [e for e in mine for g in genres[e[1]] if g in genres[item]]
        recency = time - mine[-1][2] if mine else 0
        known = session_of[user]
        if (user, time) not in sessions:
            if not mine or recency > config.session_gap:
                known.append(len({s for all_ in session_of.values() for s in all_}))
            sessions[user, time] = known[-1]
        of_item = sum(e[3] for e in same_item)
        rows.append(
            {
                "session_id": sessions[user, time],
                "gap_bucket": 1 + sum(recency >= e for e in GAP_BUCKET_EDGES) if mine else 0,
                "history": [e[1] for e in mine if e[3]][-most:],
                "history_rest": [e[1] for e in mine[-most:] if not e[3]],
                "user_count": len(mine),
                "user_mean": user_mean,
                "user_recency": recency,
                "item_count": len(same_item),
                "item_mean": (of_item + prior * base) / (len(same_item) + prior),
                "user_genre_count": len(genre_events),
                "user_genre_mean": (sum(e[3] for e in genre_events) + prior * user_mean)
                / (len(genre_events) + prior),
            }
        )
    return rows


def assert_same(found, expected, names=None):
    """Compare rows; with `names`, these columns of theirs alone."""
    assert len(found) == len(expected)
    for row, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert names is not None or got.keys() == want.keys()
        for name in names or want:
            if name in HISTORIES:
                assert got[name] == want[name], (row, name)
            else:
                assert got[name] == pytest.approx(want[name], rel=1e-6), (row, name)
