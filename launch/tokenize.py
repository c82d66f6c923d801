r"""Fit gen-tokens and mem-tokens to item embeddings, save them and print how good they are.

    farewell tokenize --embeddings data/movielens1m/item_embeddings.parquet --out tokens/ \
        --tokenizer.num-levels 3 --tokenizer.num-codes 128 --mem.num-merges 2000

The defaults of tokenizer and mem-tokens are the paper's sizes, for catalogues of millions; a small
catalogue needs smaller ones (gen rows + mem rows well below the number of items).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tokenization.artifact import TokenArtifact
from tokenization.embedding_table import EmbeddingTable
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.quality import TokenQuality, measure_quality
from tokenization.rq_kmeans import RQKMeans


@dataclass(frozen=True, kw_only=True)
class TokenizeArgs:
    """What `farewell tokenize` reads and writes.

    Args:
        embeddings: parquet file with `item_id` and a list column of floats.
        out: folder of the token artifact; an older artifact there is replaced.
        embedding_column: name of the list column.
        tokenizer: settings of the gen-tokens.
        mem: settings of the mem-tokens.
        json: file to write the quality figures to.
    """

    embeddings: Path
    out: Path
    embedding_column: str = "embedding"
    tokenizer: RQKMeans = field(default_factory=RQKMeans)
    mem: MemTokens = field(default_factory=MemTokens)
    json: Path | None = None


def tokenize(args: TokenizeArgs) -> tuple[TokenArtifact, TokenQuality]:
    """Read embeddings, fit tokens, save the artifact; return it with its quality.

    Raises:
        ValueError: see `EmbeddingTable.load`, `fit_tokens` and `TokenArtifact.save`.
    """
    table = EmbeddingTable.load(args.embeddings, column=args.embedding_column)
    artifact = fit_tokens(table.item_ids, table.embeddings, tokenizer=args.tokenizer, mem=args.mem)
    quality = measure_quality(artifact, table.embeddings)
    artifact.save(args.out)
    if args.json is not None:
        _write_json(args.json, artifact, quality)
    return artifact, quality


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


def quality_tables(quality: TokenQuality) -> tuple[Table, Table]:
    """Return the figures of `quality` as two tables: by level, and of the whole vocabulary."""
    levels = Table(title="gen-tokens by level")
    for name in ("level", "utilization", "dead codes", "perplexity", "distortion", "of variance"):
        levels.add_column(name, justify="right")
    for level in quality.levels:
        levels.add_row(
            str(level.level),
            f"{level.utilization:.1%}",
            f"{level.dead_codes:,}",
            f"{level.perplexity:,.1f}",
            f"{level.distortion:.4g}",
            f"{level.distortion_share:.1%}",
        )
    whole = Table(title="vocabulary", show_header=False)
    whole.add_column("what")
    whole.add_column("value", justify="right")
    formats = {"row_share": ".1%", "collision_rate": ".1%", "mem_tokens_per_item": ".2f"}
    for entry in dataclasses.fields(quality):
        if entry.name != "levels":
            value = getattr(quality, entry.name)
            whole.add_row(entry.name.replace("_", " "), format(value, formats.get(entry.name, ",")))
    return levels, whole


def main(args: Sequence[str]) -> None:
    """Run `farewell tokenize` with the words that follow the verb."""
    parsed = tyro.cli(TokenizeArgs, prog="farewell tokenize", description=__doc__, args=args)
    artifact, quality = tokenize(parsed)
    console = Console()
    for table in quality_tables(quality):
        console.print(table)
    console.print(f"{parsed.out}: fingerprint {artifact.fingerprint}", soft_wrap=True)
