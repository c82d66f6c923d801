"""The token artifact: a folder that says which tokens each item has, and how new ones get theirs.

A folder is written whole or not at all, and read only if its content still has the fingerprint
that its manifest states. `tokenization.artifact_files` says what lies in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenization.artifact_files import (
    TokenArtifactError,
    read_files,
    read_manifest,
    replace_folder,
    write_files,
)
from tokenization.base import Codebooks, Codes, Embeddings, SemanticTokenizer
from tokenization.mem_tokens import Merges
from tokenization.tokenizers import restore


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenArtifact:
    """Tokens of every item, and the codebooks and merges that they come from.

    Args:
        item_ids: int64 `(N,)`, each once.
        codes: gen codes, int32 `(N, L)` in `[0, K)`; with one more column than there are codebooks
            where collisions are resolved by an extra code.
        mem_values: mem-token ids, int64 in `[0, M)`.
        mem_offsets: int64 `(N + 1,)`: item `n` has `mem_values[mem_offsets[n]:mem_offsets[n + 1]]`.
        codebooks: float32 `(L, K, D)`.
        tensors: the tokenizer's other arrays by name, e.g. the networks of RQ-VAE.
        merges: the M merges that made the mem-tokens.
        manifest: settings, embedding fingerprint and versions; `save` adds counts and fingerprint.

    Raises:
        TokenArtifactError: parts that contradict each other.
    """

    item_ids: NDArray[np.int64]
    codes: Codes
    mem_values: NDArray[np.int64]
    mem_offsets: NDArray[np.int64]
    codebooks: Codebooks
    merges: Merges
    manifest: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        num_items = len(self.item_ids)
        num_books = len(self.codebooks)
        if self.codes.shape not in ((num_items, num_books), (num_items, num_books + 1)):
            raise TokenArtifactError(
                f"codes: expected shape {(num_items, num_books)}, or one column more with an extra "
                f"code, found {self.codes.shape}"
            )
        if self.merges.num_levels != self.num_levels:
            raise TokenArtifactError(
                f"merges: expected those of {self.num_levels} levels as the codes have, found "
                f"{self.merges.num_levels}"
            )
        if num_items and (self.codes.min() < 0 or self.codes.max() >= self.num_codes):
            raise TokenArtifactError(
                f"codes: expected values in [0, {self.num_codes}), found "
                f"{self.codes.min()} to {self.codes.max()}"
            )
        ids, counts = np.unique(self.item_ids, return_counts=True)
        if len(ids) < num_items:
            raise TokenArtifactError(
                f"item_ids: expected each item once, found {ids[counts.argmax()]} "
                f"{counts.max()} times; drop the duplicates"
            )
        offsets = self.mem_offsets
        if (
            offsets.shape != (num_items + 1,)
            or offsets[0] != 0
            or offsets[-1] != len(self.mem_values)
            or (np.diff(offsets) < 0).any()
        ):
            raise TokenArtifactError(
                f"mem_offsets: expected {num_items + 1} ascending values from 0 to "
                f"{len(self.mem_values)}, found shape {offsets.shape}"
            )
        if self.mem_values.size and not (
            self.mem_values.min() >= 0 and self.mem_values.max() < self.num_merges
        ):
            raise TokenArtifactError(
                f"mem_values: expected ids in [0, {self.num_merges}), found "
                f"{self.mem_values.min()} to {self.mem_values.max()}"
            )

    @property
    def num_items(self) -> int:
        """Items, N."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Codes per item: one a codebook, and the extra code where there is one."""
        return self.codes.shape[1]

    @property
    def num_codes(self) -> int:
        """Codes per level, K."""
        return self.codebooks.shape[1]

    @property
    def num_merges(self) -> int:
        """Mem-tokens, M."""
        return len(self.merges)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over items, codes, mem-tokens, codebooks and merges, not over the manifest."""
        return fingerprint_arrays(
            item_ids=self.item_ids,
            codes=self.codes,
            mem_values=self.mem_values,
            mem_offsets=self.mem_offsets,
            codebooks=self.codebooks,
            merges_left=self.merges.left,
            merges_right=self.merges.right,
            merges_count=self.merges.count,
            **{f"tensors.{name}": array for name, array in self.tensors.items()},
        )

    def take(self, rows: NDArray[np.integer]) -> TokenArtifact:
        """Return the artifact of some of its items, in the order of `rows`."""
        starts, lengths = self.mem_offsets[:-1][rows], np.diff(self.mem_offsets)[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return dataclasses.replace(
            self,
            item_ids=self.item_ids[rows],
            codes=self.codes[rows],
            mem_values=self.mem_values[places],
            mem_offsets=offsets,
        )

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """sha256 over codebooks, networks and merges: what gives the rows of tables their meaning.

        Artifacts that share it may follow one another under the same trained embeddings.
        """
        return fingerprint_arrays(
            codebooks=self.codebooks,
            merges_left=self.merges.left,
            merges_right=self.merges.right,
            **{f"tensors.{name}": array for name, array in self.tensors.items()},
        )

    def check_vocabulary(self, fingerprint: str, *, of: str) -> None:
        """Refuse an artifact whose rows mean something else than those that were trained.

        Args:
            fingerprint: `vocabulary_fingerprint` of the artifact that was trained with.
            of: what was trained, for the message, e.g. the checkpoint's path.

        Raises:
            TokenArtifactError: when they differ.
        """
        if self.vocabulary_fingerprint != fingerprint:
            raise TokenArtifactError(
                f"{of}: trained with tokens of vocabulary {fingerprint[:12]}, but these are of "
                f"{self.vocabulary_fingerprint[:12]}: the same row would mean another token; take "
                f"the artifact that it was trained with (or its --update), or carry embeddings "
                f"over with the row remap of `farewell tokenize --drift-from`"
            )

    @cached_property
    def tokenizer(self) -> SemanticTokenizer:
        """The fitted tokenizer.

        Raises:
            TokenArtifactError: a manifest without the tokenizer's settings.
        """
        try:
            return restore(
                self.manifest["tokenizer"], {**self.tensors, "codebooks": self.codebooks}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TokenArtifactError(
                f"manifest: expected the settings of a tokenizer, found {error!r}; make the "
                f"artifact again with `farewell tokenize`"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the artifact; an older artifact at `folder` is replaced as a whole.

        Raises:
            TokenArtifactError: `folder` exists and is something else.
        """
        manifest = {
            **self.manifest,
            "fingerprint": self.fingerprint,
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "num_items": self.num_items,
            "num_levels": self.num_levels,
            "num_codes": self.num_codes,
            "num_merges": self.num_merges,
            "embedding_dim": self.codebooks.shape[2],
        }
        replace_folder(
            folder,
            lambda partial: write_files(
                partial,
                item_ids=self.item_ids,
                codes=self.codes,
                mem_values=self.mem_values,
                mem_offsets=self.mem_offsets,
                merges=self.merges,
                tensors={**self.tensors, "codebooks": self.codebooks},
                manifest=manifest,
            ),
        )

    @classmethod
    def load(cls, folder: Path) -> TokenArtifact:
        """Read an artifact and check it against its fingerprint.

        Raises:
            TokenArtifactError: no such folder, a file missing or unreadable, another format, or
                content that does not have the fingerprint of the manifest.
        """
        manifest = read_manifest(folder)
        try:
            artifact = cls(**read_files(folder, manifest), manifest=manifest)
        except TokenArtifactError as error:
            raise TokenArtifactError(f"{folder}: {error}") from error
        if artifact.fingerprint != manifest.get("fingerprint"):
            raise TokenArtifactError(
                f"{folder}: the files were altered or mixed: the manifest states fingerprint "
                f"{manifest.get('fingerprint')}, the content has {artifact.fingerprint}; "
                f"make it again with `farewell tokenize`"
            )
        return artifact


def fingerprint_arrays(**arrays: NDArray[Any]) -> str:
    """Return the sha256 (hexadecimal) of named arrays: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {little.dtype.str} {little.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def fingerprint_blocks(blocks: Iterable[Embeddings], shape: tuple[int, int]) -> str:
    """Return what `fingerprint_arrays(embeddings=...)` gives for embeddings read block by block."""
    digest = hashlib.sha256(f"embeddings <f4 {shape}\n".encode())
    for block in blocks:
        digest.update(np.ascontiguousarray(block, dtype="<f4").tobytes())
    return digest.hexdigest()
