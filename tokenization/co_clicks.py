"""What users click together, as item vectors beside what items say.

Pairs are mined as for TRM's collaborative item embeddings (its section 3.1); what a contrastive
encoder would learn of them is solved for in closed form (`tokenization.spectral`), within seconds,
for a catalogue that a computer's memory holds.

Shape suffixes: N items, P pairs, D dimensions of the content.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tokenization.base import Embeddings, check_at_least, check_embeddings
from tokenization.pairs import ClickLog, Pairs, mine_co_clicks, rows_of
from tokenization.spectral import spectral_vectors


@dataclass(frozen=True, kw_only=True)
class CoClicks:
    """Settings of co-click vectors.

    Args:
        dim: of the vectors, of length 1; an item without a co-click has zeros.
        window: clicks of a user within which two items belong together.
        content_weight: length of the content beside them.
    """

    dim: int = 128
    window: int = 5
    content_weight: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        check_at_least(self.dim, 1, name="dim")
        check_at_least(self.window, 1, name="window")
        if self.content_weight <= 0:
            raise ValueError(f"content_weight is {self.content_weight}, expected above 0")

    def mine(self, log: ClickLog) -> Pairs:
        """Return every pair of a log, single ones too.

        Raises:
            ValueError: see `mine_co_clicks`.
        """
        return mine_co_clicks(log, window=self.window, min_count=1, max_pairs=None)

    def beside(
        self, embeddings: NDArray[np.floating], item_ids: NDArray[np.integer], pairs: Pairs
    ) -> Embeddings:
        """Return co-click vectors and, beside them, the content: float32 `(N, dim + D)`.

        Args:
            embeddings: content, floating `(N, D)`, row `n` is that of `item_ids[n]`.
            item_ids: integers `(N,)`.
            pairs: of items; those of items without content are left out.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or no pair of items that have
                some.
        """
        content_ND = torch.tensor(check_embeddings(embeddings))
        vectors = torch.from_numpy(self.vectors(item_ids, pairs))
        return torch.cat([vectors, self.content_weight * normalize(content_ND)], dim=1).numpy()

    def vectors(self, item_ids: NDArray[np.integer], pairs: Pairs) -> Embeddings:
        """Return co-click vectors alone, float32 `(N, dim)`.

        Items that a catalogue gains later have zeros, and leave the others' vectors as they are.

        Raises:
            ValueError: no pair of these items.
        """
        rows_P2, known = rows_of(pairs, item_ids)
        if not len(rows_P2):
            raise ValueError(
                f"co-clicks: no user clicked two of these items within {self.window} clicks of one "
                "another; take a longer log"
            )
        # Items that were clicked alone, in the order of their ids: what else the catalogue holds
        # must not move their vectors.
        ids, places = np.unique(item_ids[rows_P2], return_inverse=True)
        found = spectral_vectors(
            places.reshape(-1, 2), pairs.score[known], size=len(ids), out_dim=self.dim
        )
        vectors = np.zeros((len(item_ids), self.dim), np.float32)
        places_N = np.searchsorted(ids, item_ids).clip(max=len(ids) - 1)
        held_N = ids[places_N] == item_ids
        vectors[held_N] = normalize(torch.from_numpy(found)).numpy()[places_N[held_N]]
        return vectors
