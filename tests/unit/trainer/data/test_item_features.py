from __future__ import annotations

import numpy as np
import pytest

from tokenization.artifact import TokenArtifact
from tokenization.mem_tokens import Merges
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.hashing import hash_buckets
from trainer.data.item_features import (
    Ragged,
    item_id_features,
    most_exposed_items,
    raw_item_ids,
    token_features,
)
from trainer.data.schema import RowRange

NUM_CODES, NUM_MERGES = 4, 20


def to_lists(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


@pytest.fixture
def artifact(dataset: Dataset) -> TokenArtifact:
    rng = np.random.default_rng(3)
    item_ids = rng.permutation(np.append(dataset.item_ids, [7, 8, 9]))
    lengths = rng.integers(0, 4, len(item_ids))
    return TokenArtifact(
        item_ids=item_ids,
        codes=rng.integers(0, NUM_CODES, (len(item_ids), 3)).astype(np.int32),
        mem_values=rng.integers(0, NUM_MERGES, lengths.sum()),
        mem_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        codebooks=np.zeros((3, NUM_CODES, 2), dtype=np.float32),
        merges=Merges(
            left=np.zeros(NUM_MERGES, dtype=np.int64),
            right=np.zeros(NUM_MERGES, dtype=np.int64),
            count=np.full(NUM_MERGES, 2),
            num_levels=3,
            num_codes=NUM_CODES,
        ),
    )


def test_item_ids(dataset: Dataset) -> None:
    plain = item_id_features(dataset, cardinality=1000, hashed=False).features["item_id"]
    assert to_lists(plain) == [[item_id] for item_id in dataset.item_ids.tolist()]
    hashed = item_id_features(dataset, cardinality=10, hashed=True).features["item_id"]
    assert hashed.values.tolist() == hash_buckets(dataset.item_ids, 10).tolist()
    with pytest.raises(DataError, match=r"items.parquet: column 'item_id': expected ids in \[0, 9"):
        item_id_features(dataset, cardinality=9, hashed=False)


def test_raw_item_ids_are_the_ids_as_they_stand(dataset: Dataset) -> None:
    assert to_lists(raw_item_ids(dataset)) == [[item_id] for item_id in dataset.item_ids.tolist()]


@pytest.mark.parametrize("num_rows", [1, 7, 29, 1000])
def test_the_most_exposed_items_keep_a_row(
    dataset: Dataset, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.item_features._COUNTED_ROWS", 13)  # read in pieces
    rows = RowRange(5, 60)
    shown = dataset.read(rows, ["item_id"])["item_id"].tolist()
    counts = [shown.count(item_id) for item_id in dataset.item_ids.tolist()]
    best = sorted(range(len(counts)), key=lambda n: (-counts[n], n))[:num_rows]
    keepers = sorted(n for n in best if counts[n])
    assert 0 in counts  # some item is never shown, so that a table of any size leaves it out
    found = to_lists(most_exposed_items(dataset, rows=rows, num_rows=num_rows))
    row_of = {item: row for row, item in enumerate(keepers)}
    assert found == [[row_of[n]] if n in row_of else [] for n in range(len(counts))]


def test_tokens_are_aligned_to_items(dataset: Dataset, artifact: TokenArtifact) -> None:
    found = token_features(dataset, artifact, mem_rows=NUM_MERGES)
    assert list(found.features) == ["gen_token", "mem_token"]
    place = {item_id: n for n, item_id in enumerate(artifact.item_ids.tolist())}
    codes, offsets = artifact.codes.tolist(), artifact.mem_offsets
    for row, item_id in enumerate(dataset.item_ids.tolist()):
        n = place[item_id]
        gen = [level * NUM_CODES + code for level, code in enumerate(codes[n])]
        mem = artifact.mem_values[offsets[n] : offsets[n + 1]].tolist()
        assert to_lists(found.features["gen_token"])[row] == gen
        assert to_lists(found.features["mem_token"])[row] == mem


def test_mem_tokens_are_hashed_into_a_smaller_table(
    dataset: Dataset, artifact: TokenArtifact
) -> None:
    whole = token_features(dataset, artifact, mem_rows=NUM_MERGES).features["mem_token"]
    small = token_features(dataset, artifact, mem_rows=6).features["mem_token"]
    assert small.values.tolist() == hash_buckets(whole.values, 6).tolist()
    assert small.offsets.tolist() == whole.offsets.tolist()


def test_an_item_without_tokens_is_named(dataset: Dataset, artifact: TokenArtifact) -> None:
    keep = artifact.item_ids != dataset.item_ids[4]
    lengths = np.diff(artifact.mem_offsets)
    partial = TokenArtifact(
        item_ids=artifact.item_ids[keep],
        codes=artifact.codes[keep],
        mem_values=artifact.mem_values[np.repeat(keep, lengths)],
        mem_offsets=np.concatenate([[0], np.cumsum(lengths[keep])]),
        codebooks=artifact.codebooks,
        merges=artifact.merges,
    )
    with pytest.raises(DataError, match=f"1 of 30 items without, the first {dataset.item_ids[4]};"):
        token_features(dataset, partial, mem_rows=NUM_MERGES)
