"""Alignment on MovieLens-1M: co-click neighbours of items that no pair knows.

Run::

    farewell demo    # once, for the data and its text embeddings
    python benchmarks/alignment_movielens.py --json alignment.json

The items fall into five folds; those of one are held out: the alignment head sees no pair with one
of them. Settings were chosen on folds 0 and 1 (`--folds 0 1`), folds 2 to 4 are reported. Recall@10
is the share of an item's ten best co-click neighbours (whole log) among its ten nearest by
embedding, over the whole catalogue. Beside it: the raw text embedding, the same head without the
columns `year` and `genres` (which the text names too), the ten most clicked items, and for items
that are not held out, neighbours by co-click cosine in the first 80 % of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from record import compare_in_turn, records_table, write_results

from tokenization.alignment import Alignment
from tokenization.base import Embeddings
from tokenization.embedding_table import EmbeddingTable
from tokenization.item_features import read_features, standard
from tokenization.pairs import ClickLog, mine_co_clicks, top_neighbours
from trainer.run_folder import write_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Align, and look for the neighbours of held-out items.

    Args:
        data: data folder of MovieLens-1M with `item_embeddings.parquet`.
        folds: of five, each held out in a run of its own.
        feature_column: columns of items.parquet that the head reads beside the text embedding.
        alignment: the head.
        json: result file.
        write_note: leave a dated note under benchmarks/results.
    """

    data: Path = Path("data/movielens1m")
    folds: tuple[int, ...] = (2, 3, 4)
    feature_column: tuple[str, ...] = ("year", "genres")
    alignment: Alignment = field(
        default_factory=lambda: Alignment(
            heads=("spectral", "contrastive", "contrastive"),
            hidden=256,
            out_dim=160,
            num_epochs=5,
            batch_size=512,
            temperature=0.1,
            dropout=0.3,
            learning_rate=2e-3,
        )
    )
    json: Path | None = None
    write_note: bool = False


def recall(nearest: NDArray[np.int64], truth: NDArray[np.int64], rows: NDArray[np.intp]) -> float:
    """Share of true neighbours among the nearest, mean over items."""
    hits = (nearest[:, :, None] == truth[rows][:, None, :]) & (nearest >= 0)[:, :, None]
    return float((hits.any(axis=2).sum(axis=1) / (truth[rows] >= 0).sum(axis=1)).mean())


def nearest_items(embeddings: Embeddings, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """Ten nearest by cosine, the item itself left out."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = unit[rows] @ unit.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-scores, 10, axis=1)[:, :10]


def main(settings: Settings) -> None:
    """Measure, print and write."""
    table = EmbeddingTable.load(settings.data / "item_embeddings.parquet")
    ids = table.item_ids
    path = settings.data / "interactions"
    truth = top_neighbours(mine_co_clicks(ClickLog(path=path, positive="like")), ids, 10)
    early = ClickLog(path=path, positive="like", share=0.8)
    pairs = mine_co_clicks(early)
    clicks = np.zeros(len(ids), dtype=np.int64)
    row_of = {int(item): row for row, item in enumerate(ids)}
    for block in early.clicks():
        found, counts = np.unique(block["item_id"], return_counts=True)
        clicks[[row_of[int(item)] for item in found]] += counts
    popular = np.argsort(-clicks)[:10]
    content = standard(table.embeddings)
    inputs = np.concatenate(
        [content, read_features(settings.data / "items.parquet", settings.feature_column, ids)],
        axis=1,
    )
    fold_of = np.random.default_rng(2026).permutation(len(ids)) % 5
    ours, raws, text_alone, popularity, seen_ours, seen_clicks = [], [], [], [], [], []
    for fold in settings.folds:
        held = fold_of == fold
        known = ~(np.isin(pairs.left, ids[held]) | np.isin(pairs.right, ids[held]))
        train = pairs.take(known)
        aligned = settings.alignment.fit(ids, inputs, train).encode(inputs)
        by_text = settings.alignment.fit(ids, content, train).encode(content)
        rows = np.flatnonzero(held & (truth[:, 0] >= 0))
        seen = np.flatnonzero(~held & (truth[:, 0] >= 0))
        ours.append(recall(nearest_items(aligned, rows), truth, rows))
        raws.append(recall(nearest_items(table.embeddings, rows), truth, rows))
        text_alone.append(recall(nearest_items(by_text, rows), truth, rows))
        popularity.append(recall(np.tile(popular, (len(rows), 1)), truth, rows))
        seen_ours.append(recall(nearest_items(aligned, seen), truth, seen))
        seen_clicks.append(recall(top_neighbours(pairs, ids, 10)[seen], truth, seen))
        print(
            f"fold {fold}: {len(rows)} held-out items: aligned {ours[-1]:.4f}, without columns "
            f"{text_alone[-1]:.4f}, raw text {raws[-1]:.4f}, popularity {popularity[-1]:.4f}; seen "
            f"items: aligned {seen_ours[-1]:.4f}, co-click cosine of the first 80 % "
            f"{seen_clicks[-1]:.4f}",
            flush=True,
        )
    records = [
        compare_in_turn(
            "recall@10 of co-click neighbours, held-out items, MovieLens-1M",
            ours=ours,
            peer=raws,
            peer_name="raw text embedding",
            at_least=2.0,
        ),
        compare_in_turn(
            "the same, head over the text embedding alone",
            ours=text_alone,
            peer=raws,
            peer_name="raw text embedding",
            at_least=None,
        ),
        compare_in_turn(
            "the first", ours=ours, peer=popularity, peer_name="ten most clicked", at_least=None
        ),
        compare_in_turn(
            "recall@10 of co-click neighbours, seen items",
            ours=seen_ours,
            peer=seen_clicks,
            peer_name="co-click cosine, first 80 % of the log",
            at_least=None,
        ),
    ]
    for record in records:
        holds = "" if not record.target else "holds" if record.holds else "MISSED"
        print(
            f"{record.benchmark}: {record.ours:.4f} against {record.peer:.4f} "
            f"({record.peer_name}), ratio {record.ratio:.2f} {record.target} {holds}"
        )
    values = [record.to_dict() for record in records]
    if settings.json is not None:
        write_json(settings.json, values)
    if settings.write_note:
        write_results(
            "alignment_movielens",
            title="Alignment on MovieLens-1M: co-click neighbours of held-out items",
            command="python benchmarks/alignment_movielens.py --write-note",
            notes=__doc__.split("\n\n")[-1].replace("`", "").strip()
            + f" Settings of the head: {settings.alignment}.",
            body=records_table(values),
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
