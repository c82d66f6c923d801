"""Alignment on MovieLens-1M: co-click neighbours of items that no pair knows.

Run::

    farewell demo    # once, for the data and its text embeddings
    python benchmarks/alignment_movielens.py --json alignment.json

A fifth of the items is held out: the alignment head sees no pair with one of them. Recall@10 is the
share of an item's ten best co-click neighbours (whole log) among its ten nearest by embedding, over
the whole catalogue. Beside it: the raw text embedding, the ten most clicked items, and for items
that are not held out, neighbours by co-click cosine in the first 80 % of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from record import compare_in_turn

from tokenization.alignment import Alignment
from tokenization.base import Embeddings
from tokenization.embedding_table import EmbeddingTable
from tokenization.pairs import ClickLog, Pairs, mine_co_clicks, top_neighbours
from trainer.run_folder import write_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Align, and look for the neighbours of held-out items.

    Args:
        data: data folder of MovieLens-1M with `item_embeddings.parquet`.
        held_out: share of the items.
        seeds: of which items are held out and of the head, a run each.
        alignment: the head.
        json: result file.
    """

    data: Path = Path("data/movielens1m")
    held_out: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2)
    alignment: Alignment = field(
        default_factory=lambda: Alignment(
            hidden=512,
            out_dim=128,
            num_epochs=6,
            batch_size=512,
            temperature=0.1,
            dropout=0.3,
            learning_rate=2e-3,
        )
    )
    json: Path | None = None


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


def only_best(pairs: Pairs, item_ids: NDArray[np.int64], num_best: int) -> Pairs:
    """Pairs of items that are among each other's best."""
    best = top_neighbours(pairs, item_ids, num_best)
    rows, places = np.nonzero(best >= 0)
    ends = np.sort(np.stack([item_ids[rows], item_ids[best[rows, places]]]), axis=0)
    stride = int(item_ids.max()) + 1
    wanted = np.unique(ends[0] * stride + ends[1])
    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    return take(pairs, np.isin(low * stride + high, wanted))


def take(pairs: Pairs, kept: NDArray[np.bool_]) -> Pairs:
    """Some of the pairs."""
    return Pairs(
        left=pairs.left[kept],
        right=pairs.right[kept],
        count=pairs.count[kept],
        score=pairs.score[kept],
    )


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
    ours, raws, seen_ours, seen_clicks, popularity = [], [], [], [], []
    for seed in settings.seeds:
        held = np.random.default_rng(seed).random(len(ids)) < settings.held_out
        known = ~(np.isin(pairs.left, ids[held]) | np.isin(pairs.right, ids[held]))
        train = only_best(take(pairs, known), ids, 20)
        head = settings.alignment.fit(ids, table.embeddings, train)
        aligned = head.encode(table.embeddings)
        rows = np.flatnonzero(held & (truth[:, 0] >= 0))
        seen = np.flatnonzero(~held & (truth[:, 0] >= 0))
        ours.append(recall(nearest_items(aligned, rows), truth, rows))
        raws.append(recall(nearest_items(table.embeddings, rows), truth, rows))
        popularity.append(recall(np.tile(popular, (len(rows), 1)), truth, rows))
        seen_ours.append(recall(nearest_items(aligned, seen), truth, seen))
        seen_clicks.append(recall(top_neighbours(pairs, ids, 10)[seen], truth, seen))
        print(
            f"seed {seed}: {len(rows)} held-out items: aligned {ours[-1]:.4f}, raw text "
            f"{raws[-1]:.4f}, popularity {popularity[-1]:.4f}; seen items: aligned "
            f"{seen_ours[-1]:.4f}, co-click cosine of the first 80 % {seen_clicks[-1]:.4f}",
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
            "the same", ours=ours, peer=popularity, peer_name="ten most clicked", at_least=None
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
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in records])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
