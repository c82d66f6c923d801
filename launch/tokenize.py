r"""Fit gen-tokens and mem-tokens to item embeddings, save them and print how good they are.

    farewell tokenize --embeddings data/movielens1m/item_embeddings.parquet --out tokens/ \
        --tokenizer.num-levels 3 --tokenizer.num-codes 128 --mem.num-merges 2000

Other tokenizers: `--tokenizer KIND` with rq_kmeans (default), rq_vae, balanced_rq_kmeans, opq or
opmq; letter, das and dos read `--collaborative` too. Other combinations of codes: `--mem KIND` with
bpe (default), prefix_ngrams or k_grams. Each has settings of its own, which
`--tokenizer KIND --help` lists.

Larger than memory: `--stream` reads the embeddings block by block in every pass; under torchrun
each rank reads its share of the items (rq_kmeans in both cases):

    torchrun --nproc-per-node 8 -m launch.cli tokenize --embeddings items.parquet --out tokens/

A living catalogue: `--update OLD` gives new items tokens from the artifact OLD, without fitting;
`--drift-from OLD` says how far the result is from OLD and writes, beside `--out`, which old row
each new row takes over.

The defaults of tokenizer and mem-tokens are the paper's sizes, for catalogues of millions; a small
catalogue needs smaller ones (gen rows + mem rows well below the number of items).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist
import tyro
from numpy.typing import NDArray
from rich.table import Table

from launch.terminal import result_console
from launch.token_tables import quality_tables, row_collisions
from launch.tokenize_options import TokenizeArgs
from tokenization.artifact import TokenArtifact
from tokenization.base import Embeddings, TokenizerConfig
from tokenization.collaborative import CollaborativeRQVAE, join_collaborative
from tokenization.combinations import MEM_KINDS
from tokenization.drift import Drift, measure_drift
from tokenization.embedding_table import EmbeddingTable, read_items
from tokenization.exposures import count_exposures, exposed_rows
from tokenization.mem_tokens import MemTokens
from tokenization.pairs import ClickLog, mine_co_clicks, top_neighbours
from tokenization.pipeline import fit_tokens, fit_tokens_on_disk
from tokenization.points import EmbeddingSource, ParquetFile
from tokenization.quality import TokenQuality, measure_quality
from tokenization.report import ReportInputs, write_report
from tokenization.rq_kmeans import RQKMeans
from tokenization.shares import joined_ranks
from tokenization.tokenizers import CONFIGS
from tokenization.update import update_tokens


def tokenize(args: TokenizeArgs) -> tuple[TokenArtifact, TokenQuality] | None:
    """Read embeddings, fit tokens, save the artifact; return it with its quality.

    Returns:
        None on all ranks but the first.

    Raises:
        ValueError: see `EmbeddingTable.load`, `fit_tokens` and `TokenArtifact.save`.
    """
    measured: TokenArtifact
    embeddings: Embeddings | EmbeddingSource
    if args.stream or dist.is_initialized():
        on_disk = _fit_on_disk(args)
        if on_disk is None:
            return None
        artifact = measured = on_disk
        embeddings = ParquetFile(args.embeddings, column=args.embedding_column)
    elif args.update is not None:
        table = _read(args)
        if args.exposures is not None:
            raise ValueError(
                "--exposures has no effect with --update: mem-tokens are those of the artifact "
                "that is updated; leave it out"
            )
        parent = TokenArtifact.load(args.update)
        artifact = update_tokens(parent, table.item_ids, table.embeddings)
        if artifact.num_items > parent.num_items:
            artifact = _with_known_rows(artifact, table.made.get("log_rows", 0))
        held, _, rows = np.intersect1d(table.item_ids, artifact.item_ids, return_indices=True)
        order = np.argsort(table.item_ids)
        own = order[np.searchsorted(table.item_ids, held, sorter=order)]
        measured, embeddings = artifact.take(rows), table.embeddings[own]
    else:
        table = _read(args)
        artifact = measured = _fit(args, table)
        embeddings = table.embeddings
    quality = measure_quality(measured, embeddings)
    if args.report is not None:
        _report(args, args.report, measured, embeddings)
    if args.exposures is not None:
        known = exposed_rows(args.exposures, args.exposure_share)
        artifact = _with_known_rows(artifact, known)
    artifact.save(args.out)
    if args.json is not None:
        _write_json(args.json, artifact, quality)
    return artifact, quality


def _read(args: TokenizeArgs) -> EmbeddingTable:
    table = EmbeddingTable.load(args.embeddings, column=args.embedding_column)
    if args.collaborative is None:
        return table
    collaborative = EmbeddingTable.load(args.collaborative)
    tokenizer: TokenizerConfig = args.tokenizer
    if args.update is not None:
        tokenizer = TokenArtifact.load(args.update).tokenizer.config
    dim = collaborative.embeddings.shape[1]
    if not isinstance(tokenizer, CollaborativeRQVAE):
        raise ValueError(
            f"collaborative: expected a tokenizer that learns from behaviour too (letter, das, "
            f"dos), found {tokenizer.kind}, which would take its columns for content"
        )
    if tokenizer.collaborative_dim != dim:
        raise ValueError(
            f"{args.collaborative}: expected lists of {tokenizer.collaborative_dim} values as "
            f"tokenizer.collaborative_dim says, found {dim}; set it to {dim}"
        )
    return join_collaborative(table, collaborative)


def _report(
    args: TokenizeArgs,
    folder: Path,
    artifact: TokenArtifact,
    embeddings: Embeddings | EmbeddingSource,
) -> None:
    titles = neighbours = None
    if args.items is not None:
        items = read_items(args.items, args.title_column)
        ids = items["item_id"].to_numpy()
        order = np.argsort(ids)
        place = order[np.searchsorted(ids, artifact.item_ids, sorter=order).clip(max=len(ids) - 1)]
        if (ids[place] != artifact.item_ids).any():
            raise ValueError(f"{args.items}: expected a title for every item, found some missing")
        titles = items[args.title_column].to_numpy()[place].tolist()
    if args.log is not None:
        log = ClickLog(path=args.log, positive=args.log_positive, share=args.log_share)
        neighbours = top_neighbours(mine_co_clicks(log), artifact.item_ids, 10)
    write_report(
        artifact,
        ReportInputs(
            embeddings=embeddings,
            titles=titles,
            neighbours=neighbours,
            holder_constant=args.smoothness,
        ),
        folder,
    )


def _weights(args: TokenizeArgs, item_ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if args.exposures is None:
        return None
    return count_exposures(args.exposures, item_ids, share=args.exposure_share)


def _with_known_rows(artifact: TokenArtifact, log_rows: int) -> TokenArtifact:
    """Note rows of a log that the tokens know, beside those of the embeddings of their fit."""
    known = max(log_rows, artifact.manifest.get("log_rows", 0))
    if not known:
        return artifact
    return dataclasses.replace(artifact, manifest={**artifact.manifest, "log_rows": known})


def _fit_on_disk(args: TokenizeArgs) -> TokenArtifact | None:
    if args.collaborative is not None:
        raise ValueError("stream: expected no collaborative embeddings, which are held in memory")
    if not isinstance(args.tokenizer, RQKMeans) or args.update is not None:
        asked = "--update" if args.update is not None else args.tokenizer.kind
        raise ValueError(
            f"stream: expected a fit of rq_kmeans, found {asked}, which holds the embeddings in "
            "memory; run it without --stream and torchrun"
        )
    return fit_tokens_on_disk(
        args.embeddings,
        column=args.embedding_column,
        tokenizer=args.tokenizer,
        mem=args.mem,
        weights_of=lambda item_ids: _weights(args, item_ids),
        collisions=args.collisions,
    )


def _fit(args: TokenizeArgs, table: EmbeddingTable) -> TokenArtifact:
    return fit_tokens(
        table.item_ids,
        table.embeddings,
        tokenizer=args.tokenizer,
        mem=args.mem,
        weights=_weights(args, table.item_ids),
        collisions=args.collisions,
        made=table.made,
    )


def write_drift(old: TokenArtifact, new: TokenArtifact, folder: Path) -> Drift:
    """Compare two artifacts; write the figures and the row remap to `folder`."""
    drift, remap = measure_drift(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "gen_rows.npy", remap.gen_rows)
    np.save(folder / "mem_rows.npy", remap.mem_rows)
    record = {
        "old": old.fingerprint,
        "new": new.fingerprint,
        "old_vocabulary": old.vocabulary_fingerprint,
        "new_vocabulary": new.vocabulary_fingerprint,
        **drift.to_dict(),
    }
    (folder / "drift.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return drift


def _write_json(path: Path, artifact: TokenArtifact, quality: TokenQuality) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "fingerprint": artifact.fingerprint,
        "manifest": dict(artifact.manifest),
        "quality": quality.to_dict(),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def parse(args: Sequence[str]) -> TokenizeArgs:
    """Read the words that follow the verb; the kinds decide which other settings there are."""
    kinds = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    kinds.add_argument("--tokenizer", choices=CONFIGS, default=RQKMeans.kind)
    kinds.add_argument("--mem", choices=MEM_KINDS, default=MemTokens.kind)
    chosen, rest = kinds.parse_known_args(list(args))
    default = TokenizeArgs(
        embeddings=tyro.MISSING,
        out=tyro.MISSING,
        tokenizer=CONFIGS[chosen.tokenizer](),
        mem=MEM_KINDS[chosen.mem](),
    )
    return tyro.cli(
        TokenizeArgs,
        prog="farewell tokenize",
        description=__doc__,
        args=rest,
        default=default,
        config=(tyro.conf.AvoidSubcommands,),
    )


def main(args: Sequence[str]) -> None:
    """Run `farewell tokenize` with the words that follow the verb."""
    parsed = parse(args)
    with joined_ranks():
        made = tokenize(parsed)
    if made is None:
        return
    artifact, quality = made
    console = result_console()
    for table in quality_tables(quality):
        console.print(table)
    if parsed.mem_rows is not None:
        share = row_collisions(artifact.num_merges, parsed.mem_rows)
        console.print(
            f"{artifact.num_merges:,} mem-tokens in {parsed.mem_rows:,} rows: {share:.1%} share "
            f"their row with another"
        )
    if parsed.drift_from is not None:
        folder = parsed.out.with_name(f"{parsed.out.name}.drift")
        drift = write_drift(TokenArtifact.load(parsed.drift_from), artifact, folder)
        shown = Table(title=f"drift from {parsed.drift_from}", show_header=False)
        for name, value in drift.to_dict().items():
            values = value if isinstance(value, tuple) else (value,)
            text = ", ".join(f"{v:.1%}" if isinstance(v, float) else str(v) for v in values)
            shown.add_row(name.replace("_", " "), text)
        console.print(shown)
        console.print(f"{folder}: drift.json, gen_rows.npy, mem_rows.npy", soft_wrap=True)
    if parsed.report is not None:
        console.print(f"{parsed.report / 'quality.html'}", soft_wrap=True)
    console.print(f"{parsed.out}: fingerprint {artifact.fingerprint}", soft_wrap=True)
