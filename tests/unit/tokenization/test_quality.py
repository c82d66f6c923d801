from __future__ import annotations

import json

import numpy as np
import pytest

from tokenization.artifact import TokenArtifact
from tokenization.base import describe
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.quality import measure_quality
from tokenization.rq_kmeans import RQKMeans


def by_hand():
    codes = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 2, 1], [1, 2, 3]], dtype=np.int32)
    merges = MemTokens(num_merges=10).fit(codes, num_codes=4)
    values, offsets = merges.encode(codes, cover="finest")
    codebooks = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    return TokenArtifact(
        item_ids=np.arange(5),
        codes=codes,
        mem_values=values,
        mem_offsets=offsets,
        codebooks=codebooks,
        merges=merges,
        manifest={"tokenizer": describe(RQKMeans(num_levels=3, num_codes=4))},
    )


def test_figures_of_a_case_worked_by_hand():
    artifact = by_hand()
    embeddings = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    quality = measure_quality(artifact, embeddings)
    # Merges: (0,0) of levels 0-1, three items; (1,2), two; then ((0,0),0), two.
    assert (quality.num_items, quality.gen_rows, quality.mem_rows) == (5, 12, 3)
    assert quality.row_share == 3.0
    assert quality.distinct_gen_tuples == quality.distinct_token_bags == 4
    assert quality.collision_rate == 2 / 5
    assert quality.distinct_mem_bags == 3
    assert (quality.mem_rows_used, quality.mem_rows_single) == (3, 1)
    assert quality.items_without_mem == 0
    assert quality.mem_tokens_per_item == 1.0
    assert [level.dead_codes for level in quality.levels] == [2, 2, 1]
    assert quality.levels[0].utilization == 0.5
    counts = [3, 2, 0, 0]  # mean difference of all pairs over twice the mean
    gini = sum(abs(a - b) for a in counts for b in counts) / (2 * 4 * 4 * 5 / 4)
    assert quality.levels[0].gini == pytest.approx(gini)
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert quality.levels[0].perplexity == pytest.approx(np.exp(entropy))
    decoded = (
        artifact.codebooks[0][artifact.codes[:, 0]] + artifact.codebooks[1][artifact.codes[:, 1]]
    )
    distortion = ((embeddings - decoded) ** 2).sum(axis=1).mean()
    assert quality.levels[1].distortion == pytest.approx(distortion, rel=1e-5)
    fall = 1 - quality.levels[1].distortion / quality.levels[0].distortion
    assert quality.levels[1].distortion_fall == pytest.approx(fall)
    variance = ((embeddings - embeddings.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert quality.levels[1].distortion_share == pytest.approx(distortion / variance, rel=1e-5)
    assert json.loads(json.dumps(quality.to_dict()))["levels"][2]["level"] == 2


def test_an_item_without_mem_tokens_has_an_empty_bag():
    codes = np.array([[0, 0], [0, 0], [1, 1], [2, 2]], dtype=np.int32)
    merges = MemTokens(num_merges=10).fit(codes, num_codes=4)
    values, offsets = merges.encode(codes, cover="finest")
    artifact = TokenArtifact(
        item_ids=np.arange(4),
        codes=codes,
        mem_values=values,
        mem_offsets=offsets,
        codebooks=np.zeros((2, 4, 2), dtype=np.float32),
        merges=merges,
        manifest={"tokenizer": describe(RQKMeans(num_levels=2, num_codes=4))},
    )
    quality = measure_quality(artifact, np.ones((4, 2), dtype=np.float32))
    assert quality.items_without_mem == 2
    assert quality.distinct_mem_bags == 2
    assert quality.distinct_gen_tuples == 3
    assert quality.levels[0].distortion_share == 0.0  # constant embeddings have no variance


def test_dead_codes_of_constant_embeddings_are_reported():
    embeddings = np.ones((40, 3), dtype=np.float32)
    artifact = fit_tokens(
        np.arange(40), embeddings, tokenizer=RQKMeans(num_levels=2, num_codes=8), mem=MemTokens()
    )
    quality = measure_quality(artifact, embeddings)
    assert [level.dead_codes for level in quality.levels] == [7, 7]
    assert quality.collision_rate == 1.0


def test_embeddings_of_other_items_are_refused():
    with pytest.raises(ValueError, match="one row for each of 5 items and 2 dimensions, found 4"):
        measure_quality(by_hand(), np.ones((4, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="expected 2 dimensions"):
        measure_quality(by_hand(), np.ones((5, 3), dtype=np.float32))
