"""All tokenizers on Amazon Beauty, before and after collisions are resolved.

Run::

    python benchmarks/amazon_beauty_tokens.py --data ../shared/data/amazon_beauty --json beauty.json

12,101 items; title and category path are encoded by all-MiniLM-L6-v2. Co-click neighbours are those
of the users' sequences without their last two items. Published codes of LETTER (4 x 256): 99.89 %
unique tuples, 197 of 256 first-level codes in use.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray
from record import write_results

from launch.embed import embed
from launch.embed_options import EmbedArgs
from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.base import Codes, Embeddings
from tokenization.collisions import resolve_collisions
from tokenization.embedding_table import EmbeddingTable
from tokenization.opmq import OPMQ
from tokenization.opq import OPQ
from tokenization.pairs import ClickLog, mine_co_clicks, top_neighbours
from tokenization.report import neighbour_recall
from tokenization.rq_kmeans import RQKMeans
from tokenization.rq_vae import RQVAE
from tokenization.tokenizers import AnyTokenizer
from trainer.run_folder import describe_machine, package_versions, write_json

LETTER_UNIQUE = 0.9989
LETTER_FIRST_CODES = 197 / 256
SIZES = {"num_levels": 4, "num_codes": 256}
TOKENIZERS: dict[str, AnyTokenizer] = {
    "rq_kmeans 4 x 256": RQKMeans(**SIZES),
    "balanced_rq_kmeans 4 x 256": BalancedRQKMeans(**SIZES),
    "rq_vae 4 x 256": RQVAE(**SIZES),
    "opq 4 x 256": OPQ(**SIZES),
    "opmq 4 x 256": OPMQ(**SIZES),
    "opmq 3 x 16": OPMQ(num_levels=3, num_codes=16),
    "opmq 32 x 300": OPMQ(num_levels=32, num_codes=300, num_epochs=20),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fit every tokenizer on Amazon Beauty.

    Args:
        data: folder with `items.json` and `sequences.txt`.
        work: where items, embeddings and clicks go as parquet.
        only: names of tokenizers, all without it.
        json: result file, written after every tokenizer.
        write_note: leave a dated note under benchmarks/results.
    """

    data: Path
    work: Path = Path("runs/amazon_beauty")
    only: tuple[str, ...] = tuple(TOKENIZERS)
    json: Path | None = None
    write_note: bool = False


def prepare(settings: Settings) -> EmbeddingTable:
    """Write items, clicks and embeddings, unless they are there."""
    work = settings.work
    work.mkdir(parents=True, exist_ok=True)
    items = json.loads((settings.data / "items.json").read_text())
    texts = [
        ". ".join([item["title"], *(", ".join(path) for path in item["categories"][:1])])
        for item in items.values()
    ]
    ids = pa.array([int(item_id) for item_id in items], type=pa.int64())
    pq.write_table(pa.table({"item_id": ids, "text": texts}), work / "items.parquet")
    lines = (settings.data / "sequences.txt").read_text().splitlines()
    sequences = [[int(word) for word in line.split()] for line in lines]
    users = np.repeat([s[0] for s in sequences], [len(s) - 3 for s in sequences])
    clicks = np.concatenate([s[1:-2] for s in sequences])
    pq.write_table(pa.table({"user_id": users, "item_id": clicks}), work / "clicks.parquet")
    if not (work / "embeddings.parquet").exists():
        embed(EmbedArgs(items=work / "items.parquet", out=work / "embeddings.parquet"))
    return EmbeddingTable.load(work / "embeddings.parquet")


def describe_codes(codes: Codes, num_codes: int, neighbours: NDArray[np.int64]) -> dict[str, Any]:
    """Use, uniqueness and neighbours of codes."""
    recall = neighbour_recall(codes, neighbours)
    used = [len(np.unique(column)) / num_codes for column in codes.T]
    return {
        "first_codes_used": used[0],
        "least_used_level": min(used),
        "unique_tuples": len(np.unique(codes, axis=0)) / len(codes),
        "neighbour_recall": [entry["recall"] for entry in recall],
        "chance": [entry["chance"] for entry in recall],
    }


def measure(
    name: str, config: AnyTokenizer, embeddings: Embeddings, neighbours: NDArray[np.int64]
) -> dict[str, Any]:
    """Fit one tokenizer and resolve its collisions in both ways."""
    start = time.perf_counter()
    tokenizer = config.fit(embeddings)
    seconds = time.perf_counter() - start
    codes = tokenizer.encode(embeddings)
    errors = np.square(embeddings - tokenizer.decode(codes)).sum(axis=1).mean()
    variance = np.square(embeddings - embeddings.mean(axis=0)).sum(axis=1).mean()
    result: dict[str, Any] = {
        "name": name,
        "seconds": seconds,
        "variance_left": float(errors / variance),
        "keep": describe_codes(codes, config.num_codes, neighbours),
    }
    for how in ("next_nearest", "extra_code"):
        try:
            resolved = resolve_collisions(codes, embeddings, tokenizer, how=how)
        except ValueError as error:
            result[how] = {"refused": str(error)}
        else:
            result[how] = describe_codes(resolved, config.num_codes, neighbours)
    result["as_good_as_letter"] = (
        result["next_nearest"]["unique_tuples"] >= LETTER_UNIQUE
        and result["keep"]["first_codes_used"] >= LETTER_FIRST_CODES
    )
    return result


def main(settings: Settings) -> None:
    """Measure, print and write."""
    table = prepare(settings)
    log = ClickLog(path=settings.work / "clicks.parquet")
    neighbours = top_neighbours(mine_co_clicks(log, min_count=2), table.item_ids, 10)
    print(f"{(neighbours[:, 0] >= 0).sum()} of {len(table.item_ids)} items have neighbours")
    print("name | first codes used | unique: kept, next nearest, extra code | variance left |")
    print("  neighbours sharing 1 code (chance), 2 codes | seconds")
    results = []
    for name in settings.only:
        result = measure(name, TOKENIZERS[name], table.embeddings, neighbours)
        results.append(result)
        kept = result["keep"]
        unique = [
            f"{result[how]['unique_tuples']:.2%}" if "unique_tuples" in result[how] else "refused"
            for how in ("keep", "next_nearest", "extra_code")
        ]
        print(
            f"{name} | {kept['first_codes_used']:.1%} | {', '.join(unique)} | "
            f"{result['variance_left']:.1%} | {kept['neighbour_recall'][0]:.2%} "
            f"({kept['chance'][0]:.2%}), {kept['neighbour_recall'][1]:.2%} | "
            f"{result['seconds']:.0f} s | as good as LETTER: {result['as_good_as_letter']}",
            flush=True,
        )
        if settings.json is not None:
            write_json(settings.json, record_of(results))
    if settings.write_note:
        names = " ".join(f'"{name}"' for name in settings.only)
        every = set(settings.only) == set(TOKENIZERS)
        write_results(
            "amazon_beauty_tokens",
            title="Tokenizers on Amazon Beauty",
            command="python benchmarks/amazon_beauty_tokens.py --data FOLDER "
            + ("" if every else f"--only {names} ")
            + "--write-note",
            notes=(
                "12,101 items; every tokenizer gets the same MiniLM embeddings of title and "
                "category path, one fit with one seed. Neighbours are co-clicks of the sequences "
                "without their last two items; chance is two random items. LETTER's published "
                "codes were made from other embeddings (LLaMA, with collaborative regularisation) "
                "and are those after its own handling of collisions, so they stand beside both of "
                "our columns. Seconds are of a machine shared with other work."
            ),
            body=table_of(results),
        )


def record_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Values for JSON."""
    return {
        "benchmark": "tokenizers on Amazon Beauty",
        "letter": {"unique_tuples": LETTER_UNIQUE, "first_codes_used": LETTER_FIRST_CODES},
        "results": results,
        "machine": describe_machine(),
        "versions": package_versions(),
    }


def table_of(results: list[dict[str, Any]]) -> str:
    """Results as a table in markdown."""
    lines = [
        "| tokenizer | first codes used | least used level | unique tuples | after next nearest | "
        "after extra code | variance left | neighbours sharing 1 code (chance) | 2 codes | "
        "seconds | as good as LETTER |",
        "| --- " * 11 + "|",
    ]
    for result in results:
        kept = result["keep"]
        unique = [
            f"{result[how]['unique_tuples']:.2%}" if "unique_tuples" in result[how] else "refused"
            for how in ("keep", "next_nearest", "extra_code")
        ]
        lines.append(
            f"| {result['name']} | {kept['first_codes_used']:.1%} | "
            f"{kept['least_used_level']:.1%} | {' | '.join(unique)} | "
            f"{result['variance_left']:.1%} | {kept['neighbour_recall'][0]:.2%} "
            f"({kept['chance'][0]:.2%}) | {kept['neighbour_recall'][1]:.2%} | "
            f"{result['seconds']:.0f} | {'yes' if result['as_good_as_letter'] else 'no'} |"
        )
    lines.append(
        f"| LETTER 4 x 256, published | {LETTER_FIRST_CODES:.1%} | | {LETTER_UNIQUE:.2%} | | | | | "
        "| | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
