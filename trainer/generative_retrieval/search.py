"""From histories to items: beam search over the tuples that items have, then their items.

Legend: R rows, W beams of a row, C candidates, L levels, K codes, D dim, M found items, k items
wanted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.generation import TupleTrie
from trainer.generative_retrieval.generator import EncodedHistories, Generator, KeysValues
from trainer.generative_retrieval.sequences import codes_of
from trainer.item_index import ItemIndex
from trainer.prefix_search import prefix_search

_SEARCHED_TOKENS = 1 << 15  # of all beams or histories of a batch


class Prefixes(NamedTuple):
    """Beams as the scorer keeps them.

    Attributes:
        score_RW: log-probability of each whole prefix.
        output_RWD: outputs that predict the next code.
        generated: keys and values of the beams' own tokens.
    """

    score_RW: Tensor
    output_RWD: Tensor
    generated: list[KeysValues]


class GeneratorScorer:
    """Scores prefixes by their log-probability, the sum over their codes.

    Only the prefixes that are kept go through the transformer.

    Args:
        generator: in evaluation mode.
        histories: of R rows.
    """

    def __init__(self, generator: Generator, histories: EncodedHistories) -> None:
        self._generator = generator
        self._histories = histories

    def start(self) -> Prefixes:
        """The empty prefix of each row."""
        output_R1D = self._histories.last_RD.unsqueeze(1)
        return Prefixes(output_R1D.new_zeros(output_R1D.shape[:2]), output_R1D, [])

    def score(self, level: int, state: Prefixes, parent_RC: Tensor, code_RC: Tensor) -> Tensor:
        """Log-probabilities (R, C) of prefixes with one code more."""
        chance_RWK = self._generator.logits(state.output_RWD, level).float().log_softmax(dim=2)
        own_RC = chance_RWK.flatten(1).gather(1, parent_RC * self._generator.num_codes + code_RC)
        return state.score_RW.gather(1, parent_RC) + own_RC

    def advance(
        self, level: int, state: Prefixes, parent_RW: Tensor, code_RW: Tensor, score_RW: Tensor
    ) -> Prefixes:
        """Pass the prefixes that are kept through the transformer; whole tuples need not go."""
        if level + 1 == self._generator.num_levels:
            return Prefixes(score_RW, state.output_RWD[:, :0], [])
        row_R1 = torch.arange(len(parent_RW), device=parent_RW.device).unsqueeze(1)
        generated = [
            (_beams(key, row_R1, parent_RW), _beams(value, row_R1, parent_RW))
            for key, value in state.generated
        ]
        output_RWD, generated = self._generator.follow(
            self._histories, generated, code_RW, level=level
        )
        return Prefixes(score_RW, output_RWD, generated)


def _beams(own_RHWNh: Tensor, row_R1: Tensor, parent_RW: Tensor) -> Tensor:
    return own_RHWNh.transpose(1, 2)[row_R1, parent_RW].transpose(1, 2)


class TupleSearch:
    """The catalogue as the generator finds items in it.

    Items with equal tuples stand side by side in a list, the more popular one first (by positive
    training impressions; equally popular ones in the order of items.parquet).

    Args:
        codes: int (N, L) of item rows 0 to N - 1.
        num_codes: K.
        popularity: (N,).
        device: of the search.
    """

    def __init__(
        self,
        codes: NDArray[np.integer],
        *,
        num_codes: int,
        popularity: NDArray[np.floating],
        device: torch.device,
    ) -> None:
        # An index keeps items of one tuple in the order in which they come.
        self._item_row = np.argsort(-popularity, kind="stable")
        self._index = ItemIndex(
            item_ids=self._item_row,
            codes=codes[self._item_row].astype(np.int32),
            num_codes=num_codes,
            tokens="",
        )
        self._trie = TupleTrie(codes, num_codes=num_codes, device=device)
        self._codes_NL = torch.from_numpy(codes.astype(np.int64)).to(device)

    @property
    def num_tuples(self) -> int:
        """Different tuples that items have."""
        return self._trie.num_nodes[-1]

    @torch.no_grad()
    def best(
        self, generator: Generator, items_RT: NDArray[np.int64], k: int, *, width: int
    ) -> NDArray[np.int64]:
        """The first `k` items of each history's beams.

        Args:
            generator: in evaluation mode, on this search's device.
            items_RT: item rows int64, oldest first, -1 behind the end; at most `max_items`.
            k: items wanted.
            width: tuples that are kept after each level.

        Returns:
            item rows int64 (R, k), best first, -1 behind the last.
        """
        tokens = max(width, (1 + items_RT.shape[1]) * generator.num_levels)
        part = max(1, _SEARCHED_TOKENS // tokens)
        found = [np.full((0, k), -1, dtype=np.int64)]
        for start in range(0, len(items_RT), part):
            codes_RTL, there_RT = codes_of(self._codes_NL, items_RT[start : start + part])
            histories = generator.encode(codes_RTL, there_RT.sum(dim=1))
            beams = prefix_search(
                GeneratorScorer(generator, histories),
                num_rows=len(codes_RTL),
                num_levels=generator.num_levels,
                num_codes=generator.num_codes,
                width=width,
                trie=self._trie,
                device=self._codes_NL.device,
            )
            found.append(self._items(beams.leaf_RW, beams.scores_RW > float("-inf"), k))
        return np.concatenate(found)

    def _items(self, leaf_RW: Tensor, exists_RW: Tensor, k: int) -> NDArray[np.int64]:
        beam_M = exists_RW.flatten().nonzero().squeeze(1)
        of, position = self._index.positions(leaf_RW.flatten()[beam_M])
        row = (beam_M[of] // leaf_RW.shape[1]).cpu().numpy()
        # Beams are sorted by row and score, and each beam's items by popularity.
        number_R = np.bincount(row, minlength=len(leaf_RW))
        column = np.arange(len(row)) - (np.cumsum(number_R) - number_R)[row]
        fits = column < k
        lists = np.full((len(leaf_RW), k), -1, dtype=np.int64)
        lists[row[fits], column[fits]] = self._item_row[position.cpu().numpy()[fits]]
        return lists
