"""Contents to embeddings, chunk by chunk: an interrupted run goes on where it stopped.

Under torchrun the ranks take chunks in turn; each finished one is a file that all of them see.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenization.base import Embeddings
from tokenization.captioning import encode_contents, is_generative
from tokenization.catalogue import Content
from tokenization.embedding_table import EmbeddingTable
from tokenization.shares import is_first
from tokenization.text_encoder import TextEncoder

_PARTS = ".parts"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How contents are encoded.

    Args:
        folder: of an encoder, a causal or a vision-language model of transformers.
        batch_size: contents encoded at a time.
        max_length: tokens kept of a text.
        device: where the encoder runs.
        chunk_items: contents of a file of finished ones.
    """

    folder: Path
    batch_size: int
    max_length: int
    device: str
    chunk_items: int

    def encode(
        self, ids: NDArray[np.int64], contents: Sequence[Content], *, beside: Path
    ) -> Embeddings:
        """Return one embedding of length 1 for each content, on every rank.

        Args:
            ids: of the contents, int64 `(N,)`.
            contents: of N items or queries.
            beside: file next to which the finished chunks are kept; call `forget_parts` once it is
                written.

        Raises:
            ValueError: see `TextEncoder.encode` and `encode_contents`.
        """
        parts = self._parts_folder(ids, contents, beside)
        world = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
        starts = range(0, len(contents), self.chunk_items)
        chunks = [slice(start, start + self.chunk_items) for start in starts[rank::world]]
        columns = (
            TextColumn("encoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, quiet=not is_first())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("encode", total=sum(len(contents[c]) for c in chunks))
            for chunk in chunks:
                path = parts / f"from-{chunk.start}.parquet"
                if path.exists():
                    progress.advance(task, len(contents[chunk]))
                    continue
                embeddings = self._encode(
                    contents[chunk], lambda encoded: progress.advance(task, encoded)
                )
                EmbeddingTable(item_ids=ids[chunk], embeddings=embeddings).save(path)
        if dist.is_initialized():
            dist.barrier()
        tables = [EmbeddingTable.load(parts / f"from-{start}.parquet") for start in starts]
        if dist.is_initialized():
            dist.barrier()
        return np.concatenate([table.embeddings for table in tables])

    def _encode(self, contents: Sequence[Content], progress: Callable[[int], None]) -> Embeddings:
        options = {"batch_size": self.batch_size, "max_length": self.max_length}
        if is_generative(self.folder):
            return encode_contents(
                self.folder, contents, device=self.device, progress=progress, **options
            )
        if any(content.image is not None for content in contents):
            raise ValueError(
                f"{self.folder}: this encoder reads texts alone, but the catalogue has images; "
                "take a vision-language model, or leave --image-column out"
            )
        encoder = TextEncoder(folder=self.folder, device=self.device, **options)
        return encoder.encode([content.text for content in contents], progress=progress)

    def _parts_folder(
        self, ids: NDArray[np.int64], contents: Sequence[Content], beside: Path
    ) -> Path:
        """Folder of finished chunks, named after everything that they depend on."""
        digest = hashlib.sha256(ids.tobytes())
        for content in contents:
            digest.update(content.text.encode() + b"\0")
            image = content.image
            digest.update(image if isinstance(image, bytes) else str(image).encode())
        digest.update(repr((str(self.folder), self.max_length, self.chunk_items)).encode())
        return beside.with_name(f"{beside.name}.{digest.hexdigest()[:16]}{_PARTS}")


def forget_parts(beside: Path) -> None:
    """Remove the finished chunks beside a file that is written."""
    for parts in beside.parent.glob(f"{glob.escape(beside.name)}.*{_PARTS}"):
        shutil.rmtree(parts)
