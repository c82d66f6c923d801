"""What `farewell tokenize` can be asked for."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tokenization.collisions import Collisions
from tokenization.combinations import AnyMem
from tokenization.mem_tokens import MemTokens
from tokenization.rq_kmeans import RQKMeans
from tokenization.tokenizers import AnyTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizeArgs:
    """What `farewell tokenize` reads and writes.

    Args:
        embeddings: parquet file with `item_id` and a list column of floats.
        out: folder of the token artifact; an older artifact there is replaced.
        embedding_column: name of the list column.
        collaborative: parquet file with `item_id` and the list column `embedding`, put beside
            `embeddings` for a tokenizer that learns from behaviour too (letter, das, dos), whose
            `collaborative_dim` is the length of its lists. Without it `embeddings` holds both.
        tokenizer: settings of the gen-tokens.
        mem: settings of the mem-tokens.
        collisions: what becomes of items with equal codes: they stay together, get an extra code,
            or move to the next nearest free codeword of the last level.
        stream: read embeddings block by block instead of holding them; always so under torchrun.
        exposures: log (parquet file, or folder of parts) with a row an impression; mem-tokens are
            then taken by impressions instead of by items.
        exposure_share: of that log's rows that count, from the first on.
        mem_rows: rows of the mem table that a model will have; where that is less than the
            mem-tokens, they are hashed into its rows, and how many then share one is measured.
        report: folder for the quality report (`quality.html`, `quality.json`, `quality.png`).
        items: parquet file with `item_id` and titles, for the report's examples.
        title_column: of that file.
        log: file or folder of interactions, for the report's co-click neighbours.
        log_positive: column of the log that is above 0 for a click; every row is one without it.
        log_share: of that log's rows that are read, from the first on.
        smoothness: L_eta of the report's floor bound, where it is known (TRM Eq. 9).
        update: artifact whose vocabulary is kept: items that it does not know are added, nothing
            is fitted, and settings of tokenizer, mem-tokens and collisions are its own. Quality
            is measured on the items that `embeddings` holds.
        drift_from: artifact to compare the result with; writes `drift.json`, `gen_rows.npy` and
            `mem_rows.npy` to the folder `<out>.drift`.
        json: file to write the quality figures to.
    """

    embeddings: Path
    out: Path
    embedding_column: str = "embedding"
    collaborative: Path | None = None
    tokenizer: AnyTokenizer = field(default_factory=RQKMeans)
    mem: AnyMem = field(default_factory=MemTokens)
    collisions: Collisions = "keep"
    stream: bool = False
    exposures: Path | None = None
    exposure_share: float = 0.8
    mem_rows: int | None = None
    report: Path | None = None
    items: Path | None = None
    title_column: str = "title"
    log: Path | None = None
    log_positive: str | None = None
    log_share: float = 0.8
    smoothness: float | None = None
    update: Path | None = None
    drift_from: Path | None = None
    json: Path | None = None


def command(args: TokenizeArgs) -> str:
    """The words that do the same on the command line."""
    words = ["farewell", "tokenize", "--embeddings", str(args.embeddings), "--out", str(args.out)]
    if args.embedding_column != "embedding":
        words += ["--embedding-column", args.embedding_column]
    if args.collaborative is not None:
        words += ["--collaborative", str(args.collaborative)]
    for part, config in (("tokenizer", args.tokenizer), ("mem", args.mem)):
        default = type(config)()
        if config.kind not in (RQKMeans.kind, MemTokens.kind):
            words += [f"--{part}", config.kind]
        for entry in dataclasses.fields(config):
            value = getattr(config, entry.name)
            if value != getattr(default, entry.name):
                values = value if isinstance(value, tuple) else (value,)
                option = entry.name.replace("_", "-")
                words += [f"--{part}.{option}", *map(str, values)]
    if args.collisions != "keep":
        words += ["--collisions", args.collisions]
    if args.stream:
        words += ["--stream"]
    return shlex.join(words)
