"""The token artifact: a folder that says which tokens each item has, and how new ones get theirs.

| file | holds |
|---|---|
| `tokens.parquet` | `item_id` int64, `codes` and `mem_tokens` list<int32>; one row an item |
| `codebooks.safetensors` | `codebooks` float32 `(L, K, D)`, and what else the tokenizer has |
| `merges.parquet` | `left`, `right`, `count` int64; row `i` makes mem-token `i` |
| `manifest.json` | settings, counts, fingerprints, package versions |

A folder is written whole or not at all, and read only if its content still has the fingerprint
that its manifest states.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tokenization.base import Codebooks, Codes, Embeddings, SemanticTokenizer
from tokenization.mem_tokens import Merges
from tokenization.tokenizers import restore

FORMAT = 1
"""Raised whenever a reader of the older format would misread the folder."""

_MAX_MANIFEST_BYTES = 16 << 20

_FILES = ("tokens.parquet", "codebooks.safetensors", "merges.parquet", "manifest.json")


class TokenArtifactError(ValueError):
    """A token artifact that is missing, half-written, altered or inconsistent."""


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
        if folder.exists() and not (folder / "manifest.json").is_file():
            raise TokenArtifactError(
                f"{folder}: exists and is no token artifact (it holds no manifest.json); "
                f"choose another folder or remove it"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            self._write(partial)
            if folder.exists():
                old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
                folder.rename(old)
                partial.rename(folder)
                shutil.rmtree(old)
            else:
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        code_offsets = np.arange(self.num_items + 1, dtype=np.int64) * self.num_levels
        codes = _lists(self.codes.reshape(-1), code_offsets)
        mem = _lists(self.mem_values, self.mem_offsets)
        tokens = pa.table({"item_id": pa.array(self.item_ids), "codes": codes, "mem_tokens": mem})
        pq.write_table(tokens, folder / "tokens.parquet")
        merges = {"left": self.merges.left, "right": self.merges.right, "count": self.merges.count}
        pq.write_table(pa.table(merges), folder / "merges.parquet")
        arrays = {**self.tensors, "codebooks": self.codebooks}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            folder / "codebooks.safetensors",
        )
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "num_items": self.num_items,
            "num_levels": self.num_levels,
            "num_codes": self.num_codes,
            "num_merges": self.num_merges,
            "embedding_dim": self.codebooks.shape[2],
        }
        text = json.dumps({**self.manifest, **manifest}, indent=2) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TokenArtifact:
        """Read an artifact and check it against its fingerprint.

        Raises:
            TokenArtifactError: no such folder, a file missing or unreadable, another format, or
                content that does not have the fingerprint of the manifest.
        """
        if not folder.is_dir():
            raise TokenArtifactError(
                f"{folder}: no such folder; make the artifact with `farewell tokenize`"
            )
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise TokenArtifactError(
                f"{folder}: incomplete token artifact, {', '.join(missing)} missing; "
                f"make it again with `farewell tokenize`"
            )
        manifest = _read_manifest(folder / "manifest.json")
        try:
            _check_counts(folder, manifest)
            artifact = cls._read(folder, manifest)
        except (pa.ArrowException, SafetensorError, KeyError, OSError) as error:
            raise TokenArtifactError(
                f"{folder}: unreadable token artifact ({error}); "
                f"make it again with `farewell tokenize`"
            ) from error
        except TokenArtifactError as error:
            raise TokenArtifactError(f"{folder}: {error}") from error
        if artifact.fingerprint != manifest.get("fingerprint"):
            raise TokenArtifactError(
                f"{folder}: the files were altered or mixed: the manifest states fingerprint "
                f"{manifest.get('fingerprint')}, the content has {artifact.fingerprint}; "
                f"make it again with `farewell tokenize`"
            )
        return artifact

    @classmethod
    def _read(cls, folder: Path, manifest: dict[str, Any]) -> TokenArtifact:
        tokens = pq.read_table(folder / "tokens.parquet").combine_chunks()
        merges = pq.read_table(folder / "merges.parquet")
        tensors = load_file(folder / "codebooks.safetensors")
        codebooks = tensors.pop("codebooks")
        if codebooks.ndim != 3:
            raise TokenArtifactError(
                f"codebooks.safetensors: expected (levels, codes, dimensions), found shape "
                f"{codebooks.shape}"
            )
        code_values, code_offsets = _flat(tokens, "codes")
        num_levels = int(code_offsets[1]) if len(tokens) else len(codebooks)
        if (np.diff(code_offsets) != num_levels).any() or num_levels - len(codebooks) not in (0, 1):
            raise TokenArtifactError(
                f"tokens.parquet, column codes: expected {codebooks.shape[0]} codes an item as "
                f"codebooks.safetensors has levels (or one more everywhere), found others"
            )
        mem_values, mem_offsets = _flat(tokens, "mem_tokens")
        return cls(
            item_ids=_integers(tokens, "item_id"),
            codes=code_values.astype(np.int32).reshape(-1, num_levels),
            mem_values=mem_values,
            mem_offsets=mem_offsets,
            codebooks=codebooks,
            merges=Merges(
                left=_integers(merges, "left"),
                right=_integers(merges, "right"),
                count=_integers(merges, "count"),
                num_levels=num_levels,
                num_codes=codebooks.shape[1],
            ),
            manifest=manifest,
            tensors=tensors,
        )


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


def _check_counts(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the manifest's counts with what the files' footers say, before values are decoded.

    Columns may be packed so well that a small file holds more than memory; a manifest that agrees
    states how much it is.
    """
    tokens = pq.read_metadata(folder / "tokens.parquet")
    with safe_open(folder / "codebooks.safetensors", framework="numpy") as file:
        num_books, num_codes, dim = (*file.get_slice("codebooks").get_shape(), 0, 0)[:3]
    values: dict[str, int] = {}
    for group in range(tokens.num_row_groups):
        for at in range(tokens.num_columns):
            column = tokens.row_group(group).column(at)
            name = column.path_in_schema.split(".")[0]
            values[name] = values.get(name, 0) + column.num_values
    num_items, num_levels = manifest.get("num_items"), manifest.get("num_levels")
    found = {
        "num_items": tokens.num_rows,
        "num_merges": pq.read_metadata(folder / "merges.parquet").num_rows,
        "num_codes": num_codes,
        "embedding_dim": dim,
    }
    for name, count in found.items():
        if manifest.get(name) != count:
            raise TokenArtifactError(
                f"the files were altered or mixed: manifest.json states {name} "
                f"{manifest.get(name)!r}, the files have {count}"
            )
    if num_levels not in (num_books, num_books + 1):
        raise TokenArtifactError(
            f"manifest.json states num_levels {num_levels!r}, codebooks.safetensors has {num_books}"
        )
    # An empty list counts as one value; no combination of codes makes more than L * L of an item.
    limits = {"codes": num_items * num_levels, "mem_tokens": num_items * num_levels**2}
    for name, limit in limits.items():
        if values.get(name, 0) > limit:
            raise TokenArtifactError(
                f"tokens.parquet, column {name}: {values[name]} values, at most {limit} for "
                f"{num_items} items of {num_levels} levels"
            )


def _read_manifest(path: Path) -> dict[str, Any]:
    if (num_bytes := path.stat().st_size) > _MAX_MANIFEST_BYTES:
        raise TokenArtifactError(f"{path}: {num_bytes} bytes, at most {_MAX_MANIFEST_BYTES}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TokenArtifactError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise TokenArtifactError(f"{path}: expected format {FORMAT}, found {found}")
    return manifest


def _lists(values: NDArray[np.integer], offsets: NDArray[np.int64]) -> pa.Array[Any]:
    return pa.ListArray.from_arrays(
        pa.array(offsets, type=pa.int32()), pa.array(values, type=pa.int32())
    )


def _integers(table: pa.Table, column: str) -> NDArray[np.int64]:
    return table[column].to_numpy().astype(np.int64)


def _flat(table: pa.Table, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a list column's values and offsets, offsets from 0."""
    lengths = pc.list_value_length(table[column]).to_numpy()
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = pc.list_flatten(table[column]).to_numpy().astype(np.int64)
    return values, offsets
