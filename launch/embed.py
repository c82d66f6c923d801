r"""Turn a catalogue into one embedding an item.

    farewell embed --items data/movielens1m/items.parquet --text-column text \
        --encoder minilm --out data/movielens1m/item_embeddings.parquet

An interrupted run goes on where it stopped; under torchrun the ranks share the work. Where the
catalogue brings embeddings of its own, `--embedding-column NAME` checks and copies them.
`--sasrec-log LOG` takes behaviour alone: the item table of SASRec, as STORE does; items without
clicks then get nothing. `--co-click-log LOG` puts vectors of what is clicked together beside the
embeddings, in closed form, within seconds; items without clicks have zeros there.

Aligned with what users do (TRM section 3.1), items without clicks included:

* `--align-log LOG` trains a head over the embeddings on items that are clicked together;
* `--tuned FOLDER` trains the model of `--encoder` itself, a causal or vision-language one, to
  caption items (`--caption-column`, Eq. 1) and on the pairs of `--align-log` (Eq. 3), jointly
  (Eq. 4) or either part alone; it is saved to FOLDER and then encodes the catalogue:

    torchrun --nproc-per-node 8 -m launch.cli embed --items items.parquet \
        --text-column title asr ocr --image-column cover --caption-column caption \
        --encoder models/my-vlm --tuned models/tuned --tuning.lora-rank 16 \
        --align-log interactions --align-positive click --out embeddings.parquet

With `--queries FILE` the texts of queries are read too, and pairs of a query and what was clicked
for it are trained on beside the pairs of items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from launch.embed_options import EmbedArgs
from launch.encoding import Encoding, forget_parts
from tokenization.catalogue import Catalogue, read_catalogue
from tokenization.embedding_table import EmbeddingTable, read_items
from tokenization.item_features import read_features, standard
from tokenization.pairs import ClickLog, query_id, rows_of
from tokenization.shares import is_first, joined_ranks
from trainer.data.pypi_source import minilm_folder

_MADE = "farewell.json"  # in the folder of a tuned model: what it knows


def embed(args: EmbedArgs) -> EmbeddingTable:
    """Read the catalogue, embed it, write the result and return it.

    Raises:
        ValueError: see `EmbeddingTable.load`, `read_catalogue` and `TextEncoder.encode`.
    """
    if args.sasrec_log is not None:
        log = args.clicks(args.sasrec_log)
        table = _of_catalogue(args, args.sasrec.fit(log))
        made = {
            "sasrec": dataclasses.asdict(args.sasrec),
            "missing": args.sasrec_missing,
            "log_rows": log.num_rows,
        }
        table = dataclasses.replace(table, made=made)
    elif args.embedding_column is not None:
        table = EmbeddingTable.load(args.items, column=args.embedding_column)
        if not table.made:
            table = dataclasses.replace(table, made={"embedding_column": args.embedding_column})
        if args.align_log is not None:
            table = _align(args, args.clicks(args.align_log), table)
    else:
        table = _encode(args)
    if args.co_click_log is not None:
        table = _beside_co_clicks(args, args.clicks(args.co_click_log), table)
    if is_first():
        table.save(args.out)
        forget_parts(args.out)
    return table


def _encode(args: EmbedArgs) -> EmbeddingTable:
    """Encode the contents of the catalogue, tuned or aligned where that is asked for."""
    catalogue = read_catalogue(
        args.items,
        text_columns=args.text_column,
        image_column=args.image_column,
        caption_column=args.caption_column,
    )
    queries = None
    if args.queries is not None:
        queries = read_catalogue(
            args.queries, text_columns=(args.query_text_column,), id_column=args.query_column
        )
    folder = minilm_folder() if args.encoder == "minilm" else Path(args.encoder)
    if args.tuned is not None:
        _tune(args, folder, catalogue, queries)
        folder = args.tuned
    encoding = Encoding(
        folder=folder,
        batch_size=args.batch_size,
        max_length=args.max_length,
        device=args.device,
        chunk_items=args.chunk_items,
    )
    made = {"encoder": args.encoder, "text_column": list(args.text_column)}
    if args.image_column is not None:
        made["image_column"] = args.image_column
    if (folder / _MADE).is_file():
        made |= json.loads((folder / _MADE).read_text(encoding="utf-8"))
    table = EmbeddingTable(
        item_ids=catalogue.item_ids,
        embeddings=encoding.encode(catalogue.item_ids, catalogue.contents, beside=args.out),
        made=made,
    )
    if args.align_log is None or args.tuned is not None:
        return table
    log = args.clicks(args.align_log)
    if queries is None:
        return _align(args, log, table)
    both = EmbeddingTable(
        item_ids=np.concatenate([table.item_ids, query_id(queries.item_ids)]),
        embeddings=np.concatenate(
            [
                table.embeddings,
                encoding.encode(queries.item_ids, queries.contents, beside=args.out),
            ]
        ),
        made=made,
    )
    aligned = _align(args, log, both)
    num_items = len(table.item_ids)
    return dataclasses.replace(
        aligned, item_ids=aligned.item_ids[:num_items], embeddings=aligned.embeddings[:num_items]
    )


def _align(args: EmbedArgs, log: ClickLog, table: EmbeddingTable) -> EmbeddingTable:
    """Train the head on the log's pairs and pass the table through it."""
    inputs = table.embeddings
    if args.feature_column:
        features = read_features(args.features or args.items, args.feature_column, table.item_ids)
        inputs = np.concatenate([standard(inputs), features], axis=1)
    head = args.alignment.fit(table.item_ids, inputs, args.pairs(log))
    made = {
        **table.made,
        "alignment": dataclasses.asdict(args.alignment),
        "feature_column": list(args.feature_column),
        "positive": args.align_positive,
        "queries": args.queries is not None,
        "log_rows": log.num_rows,
    }
    embeddings = head.encode(inputs)
    return EmbeddingTable(item_ids=table.item_ids, embeddings=embeddings, made=made)


def _beside_co_clicks(args: EmbedArgs, log: ClickLog, table: EmbeddingTable) -> EmbeddingTable:
    """Co-click vectors and the table side by side."""
    pairs = args.co_clicks.mine(log)
    made = {
        **table.made,
        "co_clicks": dataclasses.asdict(args.co_clicks),
        "positive": args.align_positive,
        "log_rows": max(log.num_rows, table.made.get("log_rows", 0)),
    }
    embeddings = args.co_clicks.beside(table.embeddings, table.item_ids, pairs)
    return EmbeddingTable(item_ids=table.item_ids, embeddings=embeddings, made=made)


def _tune(args: EmbedArgs, folder: Path, catalogue: Catalogue, queries: Catalogue | None) -> None:
    """Train the model: Eq. 1, Eq. 3, or both at once (Eq. 4)."""
    assert args.tuned is not None
    if args.tuned.exists():
        raise ValueError(
            f"{args.tuned}: exists; encode with it by --encoder {args.tuned} and without --tuned, "
            "or choose another folder"
        )
    ids, contents = catalogue.item_ids, list(catalogue.contents)
    if queries is not None:
        ids = np.concatenate([ids, query_id(queries.item_ids)])
        contents += queries.contents
    made: dict[str, Any] = {"tuning": dataclasses.asdict(args.tuning)}
    rows: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
    weights = None
    if args.align_log is not None:
        log = args.clicks(args.align_log)
        pairs = args.pairs(log)
        rows, known = rows_of(pairs, ids)
        weights = pairs.score[known]
        made |= {"positive": args.align_positive, "log_rows": log.num_rows}
    columns = (
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=not is_first())) as bar:
        task = bar.add_task("tune", total=args.tuning.num_steps, loss=float("nan"))
        args.tuning.fit(
            folder,
            args.tuned,
            contents=contents,
            captions=catalogue.captions,
            pairs=rows,
            weights=weights,
            progress=lambda step, loss: bar.update(task, completed=step, loss=loss),
        )
    if is_first():
        (args.tuned / _MADE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _of_catalogue(args: EmbedArgs, table: EmbeddingTable) -> EmbeddingTable:
    """Leave out what the catalogue does not hold."""
    ids = read_items(args.items, "item_id")["item_id"].to_numpy()
    kept = np.isin(table.item_ids, ids)
    if not kept.any():
        raise ValueError(f"{args.items}: none of its items occurs in {args.sasrec_log}")
    seen = EmbeddingTable(item_ids=table.item_ids[kept], embeddings=table.embeddings[kept])
    if args.sasrec_missing == "leave_out":
        return seen
    missing = np.setdiff1d(ids, seen.item_ids)
    mean = seen.embeddings.mean(axis=0, keepdims=True)
    return EmbeddingTable(
        item_ids=np.concatenate([seen.item_ids, missing]),
        embeddings=np.concatenate([seen.embeddings, np.repeat(mean, len(missing), axis=0)]),
    )


def main(args: Sequence[str]) -> None:
    """Run `farewell embed` with the words that follow the verb."""
    parsed = tyro.cli(EmbedArgs, prog="farewell embed", description=__doc__, args=args)
    disable_progress_bar()  # of transformers, which shows one for a fraction of a second
    with joined_ranks():
        table = embed(parsed)
        if is_first():
            num_items, dim = table.embeddings.shape
            Console().print(f"{parsed.out}: {num_items:,} items x {dim} dimensions", soft_wrap=True)
