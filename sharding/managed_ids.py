"""Rows that ids are given and lose while a model trains: zero-collision hashing (ZCH)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

EvictionPolicy = Literal["lru", "lfu", "distance_lfu"]
"""Who keeps a row: ids seen last, ids seen most, or most counts per step of absence."""

_MAP_COLUMNS: dict[EvictionPolicy, int] = {"lru": 3, "lfu": 3, "distance_lfu": 4}
"""int64 numbers that TorchRec keeps for each row: the id, its row, and what the policy counts."""


@dataclass(frozen=True, kw_only=True)
class ManagedIds:
    """How a managed table gives its rows to ids of any size.

    Every `eviction_interval` steps the ids seen since then compete with those that have rows; the
    losers' rows, and their optimizer state, begin anew. Ids without a row share the last row of
    their shard. A step's ids are those that a rank receives; nothing changes during evaluation.

    Args:
        policy: who keeps a row.
        eviction_interval: steps between two rounds.
        decay: exponent of the distance in `distance_lfu`: counts / distance ** decay.
    """

    policy: EvictionPolicy = "distance_lfu"
    eviction_interval: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.policy not in get_args(EvictionPolicy):
            raise ValueError(
                f"managed.policy is {self.policy!r}, expected one of "
                f"{', '.join(get_args(EvictionPolicy))}"
            )
        if self.eviction_interval < 1:
            raise ValueError(
                f"managed.eviction_interval is {self.eviction_interval}, expected at least 1 step"
            )
        if self.decay <= 0:
            raise ValueError(f"managed.decay is {self.decay}, expected above 0")
        if self.policy != "distance_lfu" and self.decay != 1.0:
            raise ValueError(
                f"managed.decay is {self.decay}, but only policy 'distance_lfu' weighs distance "
                f"against counts; {self.policy!r} gives the same order with any exponent"
            )

    def map_bytes(self, rows: int) -> int:
        """Bytes that remember which id has which of `rows` rows.

        Ids seen since the last round are kept besides: 16 bytes for each id of a rank's steps.
        """
        return 8 * _MAP_COLUMNS[self.policy] * rows
