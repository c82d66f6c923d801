"""What becomes of SIDs while their tokenizer trains.

Legend: N items, L levels, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SidTracker:
    """Follows the SIDs of the catalogue while a model trains.

    Args:
        num_codes: K.

    Attributes:
        last: of the last look, float32 scalars: `collision_rate`, the share of items whose SID
            another item has too; `dead_codes`, codes of all levels that no item has; and, from the
            second look on, `drift`, the share of items whose SID is another than at the look
            before, and `drift_1` to `drift_L`, of those whose code of that level is.
    """

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self.last: dict[str, Tensor] = {}
        self._codes_NL: Tensor | None = None

    def outcome(self, codes_NL: Tensor) -> dict[str, float | None]:
        """Look once more, when training is over.

        Returns:
            `collision_rate`, `dead_codes`, and `drift` since the last look; None without one.
        """
        self.look(codes_NL)
        names = ("collision_rate", "dead_codes", "drift")
        return {name: float(self.last[name]) if name in self.last else None for name in names}

    def look(self, codes_NL: Tensor) -> None:
        """Note the SIDs of all items."""
        used = sum(len(torch.unique(code_N)) for code_N in codes_NL.T)
        self.last = {
            "collision_rate": collision_rate(codes_NL),
            "dead_codes": torch.tensor(float(codes_NL.shape[1] * self.num_codes - used)),
        }
        if self._codes_NL is not None:
            has_moved_NL = codes_NL != self._codes_NL
            self.last["drift"] = has_moved_NL.any(dim=1).float().mean()
            for level, has_moved_N in enumerate(has_moved_NL.T, start=1):
                self.last[f"drift_{level}"] = has_moved_N.float().mean()
        self._codes_NL = codes_NL


def collision_rate(codes_NL: Tensor) -> Tensor:
    """Share of items whose SID another item has too."""
    _, place_N, count = torch.unique(codes_NL, dim=0, return_inverse=True, return_counts=True)
    return (count[place_N] > 1).float().mean()
