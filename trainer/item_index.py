"""From SIDs back to items: the inverted index that retrieval ends in (DIG section 3.4).

Legend: N items, L levels, K codes, P distinct tuples.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tokenization.base import check_codes
from trainer.generation import TupleTrie

_ARRAYS, _MANIFEST = "index.safetensors", "index.json"
_REMEDY = "remove the folder and `farewell retrieve` makes it anew, or name another with --index"


class IndexMismatchError(ValueError):
    """An index is damaged, or belongs to other tokens than the model has."""


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """Items by SID; items may share one.

    Args:
        item_ids: int64 (N,).
        codes: int32 (N, L).
        num_codes: K.
        tokens: fingerprint of the tokenizer that assigned the codes.
    """

    item_ids: NDArray[np.int64]
    codes: NDArray[np.int32]
    num_codes: int
    tokens: str

    def __post_init__(self) -> None:
        """Check ids and codes.

        Raises:
            ValueError: when they are not as many, ids repeat, or a code is out of range.
        """
        check_codes(self.codes, num_levels=self.codes.shape[1], num_codes=self.num_codes)
        if len(self.item_ids) != len(self.codes):
            raise ValueError(f"index: {len(self.item_ids)} items, but {len(self.codes)} SIDs")
        if len(np.unique(self.item_ids)) < len(self.item_ids):
            raise ValueError("index: expected each item once, found an item twice")

    def trie(self, device: torch.device | None = None) -> TupleTrie:
        """The prefixes that exist."""
        return TupleTrie(self.codes, num_codes=self.num_codes, device=device)

    @cached_property
    def _by_tuple(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of items in lexicographic order of SIDs, and where each tuple's begin."""
        order = np.lexsort(self.codes.T[::-1])
        ordered = self.codes[order]
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return order, np.append(np.flatnonzero(is_new), len(order))

    def positions(self, leaf_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The items of tuples.

        Args:
            leaf_M: int64 nodes of the trie's last level.

        Returns:
            For each item, int64: which of the M leaves it is of, its position in the index.
        """
        order, starts = self._by_tuple
        leaves = leaf_M.cpu().numpy()
        number = np.diff(starts)[leaves]
        of = np.repeat(np.arange(len(leaves)), number)
        begin = np.cumsum(number) - number
        at = order[np.arange(len(of)) + np.repeat(starts[leaves] - begin, number)]
        return torch.from_numpy(of).to(leaf_M.device), torch.from_numpy(at).to(leaf_M.device)

    def changes_since(self, before: ItemIndex) -> str:
        """In words, which items came, went, or have another SID than in an earlier index."""
        stays = np.isin(before.item_ids, self.item_ids)
        came = ~np.isin(self.item_ids, before.item_ids)
        old, new = (np.argsort(ids) for ids in (before.item_ids[stays], self.item_ids[~came]))
        moved = (before.codes[stays][old] != self.codes[~came][new]).any(axis=1)
        return (
            f"{came.sum():,} items new, {(~stays).sum():,} gone, {moved.sum():,} with another SID"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over items, codes and tokens."""
        digest = hashlib.sha256(f"{self.num_codes} {self.tokens}".encode())
        for array in (self.item_ids, self.codes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write a folder, whole or not at all; one that is there is replaced."""
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        arrays = {"item_ids": self.item_ids, "codes": np.ascontiguousarray(self.codes)}
        save_file(arrays, partial / _ARRAYS)
        manifest = {
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "num_items": len(self.item_ids),
            "num_levels": self.codes.shape[1],
            "num_codes": self.num_codes,
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: Path, *, tokens: str | None = None) -> ItemIndex:
        """Read what `save` wrote.

        Args:
            folder: of the index.
            tokens: fingerprint of the tokenizer that will be asked; None for any.

        Raises:
            IndexMismatchError: when files are missing or damaged, or of another tokenizer.
        """
        try:
            manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
            arrays = load_file(folder / _ARRAYS)
            index = cls(
                arrays["item_ids"], arrays["codes"], manifest["num_codes"], manifest["tokens"]
            )
        except Exception as error:
            raise IndexMismatchError(
                f"{folder}: expected an index of SIDs, found {error}; {_REMEDY}"
            ) from error
        if index.fingerprint != manifest["fingerprint"]:
            raise IndexMismatchError(
                f"{folder}: expected content of fingerprint {manifest['fingerprint'][:12]}, found "
                f"{index.fingerprint[:12]}; the files are damaged, {_REMEDY}"
            )
        if tokens is not None and tokens != index.tokens:
            raise IndexMismatchError(
                f"{folder}: its SIDs are of tokenizer {index.tokens[:12]}, but the model's is "
                f"{tokens[:12]}; {_REMEDY}"
            )
        return index
