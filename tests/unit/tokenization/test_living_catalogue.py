"""Updates of an artifact, drift between two, and rows carried over."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import tokenize
from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.drift import carry_over, measure_drift
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans
from tokenization.update import update_tokens
from tokenization.vocabulary import gen_row

CONFIG = RQKMeans(num_levels=3, num_codes=8, num_iterations=10)


def points(num_items=400, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 6)) * 4
    inner = rng.normal(size=(8, 6))
    chosen = rng.integers(0, 8, (num_items, 2))
    noise = rng.normal(size=(num_items, 6)) * 0.2
    return (centres[chosen[:, 0]] + inner[chosen[:, 1]] + noise).astype(np.float32)


def fit(num_items=300, *, seed=0, collisions="keep"):
    return fit_tokens(
        np.arange(num_items),
        points()[:num_items],
        tokenizer=dataclasses.replace(CONFIG, seed=seed),
        mem=MemTokens(num_merges=60),
        collisions=collisions,
    )


def test_new_items_get_the_tokens_of_the_fitted_vocabulary_and_old_ones_keep_theirs():
    old = fit()
    new = update_tokens(old, np.arange(400)[::-1], points()[::-1])
    assert new.item_ids.tolist() == [*range(300), *range(399, 299, -1)]
    np.testing.assert_array_equal(new.codes[:300], old.codes)
    np.testing.assert_array_equal(new.codes, old.tokenizer.encode(points()[new.item_ids]))
    values, offsets = old.merges.encode(new.codes, cover="finest")
    np.testing.assert_array_equal(new.mem_values, values)
    np.testing.assert_array_equal(new.mem_offsets, offsets)
    assert new.vocabulary_fingerprint == old.vocabulary_fingerprint
    assert new.fingerprint != old.fingerprint
    assert (old.manifest["version"], new.manifest["version"]) == (1, 2)
    assert new.manifest["parent"] == old.fingerprint
    assert new.manifest["num_new_items"] == 100


def test_new_items_do_not_collide_where_collisions_are_resolved():
    def num_new_tuples(collisions):
        new = update_tokens(fit(collisions=collisions), np.arange(300, 330), points()[300:330])
        return len(np.unique(new.codes, axis=0)) - len(np.unique(new.codes[:300], axis=0))

    assert num_new_tuples("next_nearest") >= 20 > num_new_tuples("keep")


def test_no_new_items_change_nothing():
    old = fit()
    assert update_tokens(old, np.arange(10), points()[:10]) is old


def test_embeddings_of_another_encoder_are_refused():
    other = np.random.default_rng(5).normal(size=(400, 6)).astype(np.float32) * 4
    with pytest.raises(TokenArtifactError, match="of the encoder that the tokens were fitted on"):
        update_tokens(fit(), np.arange(400), other)
    with pytest.raises(ValueError, match="expected 6 dimensions"):
        update_tokens(fit(), np.arange(400), points()[:, :5])


def test_an_artifact_of_another_vocabulary_is_refused():
    old, refitted = fit(), fit(seed=1)
    update_tokens(old, np.arange(400), points()).check_vocabulary(
        old.vocabulary_fingerprint, of="checkpoints/step_1"
    )
    with pytest.raises(TokenArtifactError, match=r"checkpoints/step_1: trained with tokens of"):
        refitted.check_vocabulary(old.vocabulary_fingerprint, of="checkpoints/step_1")


def test_take_is_the_artifact_of_some_items():
    artifact = fit()
    rows = np.array([7, 3, 299])
    part = artifact.take(rows)
    assert part.item_ids.tolist() == [7, 3, 299]
    for place, row in enumerate(rows):
        start, stop = artifact.mem_offsets[row : row + 2]
        mine = part.mem_values[part.mem_offsets[place] : part.mem_offsets[place + 1]]
        np.testing.assert_array_equal(mine, artifact.mem_values[start:stop])


def test_an_update_has_drifted_nowhere():
    old = fit()
    drift, remap = measure_drift(old, update_tokens(old, np.arange(400), points()))
    assert drift.same_vocabulary
    assert (drift.num_shared_items, drift.num_added_items, drift.num_removed_items) == (300, 100, 0)
    assert drift.changed_codes == drift.moved_codes == (0.0, 0.0, 0.0)
    assert drift.mem_jaccard == drift.carried_mem_rows == 1.0
    np.testing.assert_array_equal(remap.gen_rows, np.arange(24))


def renamed(artifact, rng):
    """The same artifact under other numbers of codes and mem-tokens."""
    codes = artifact.codes.copy()
    codebooks = artifact.codebooks.copy()
    names = []
    for level in range(3):
        name = rng.permutation(8).astype(np.int32)
        codes[:, level] = name[codes[:, level]]
        codebooks[level, name] = artifact.codebooks[level]
        names.append(name)
    mem_names = rng.permutation(artifact.num_merges)
    changed = dataclasses.replace(
        artifact, codes=codes, codebooks=codebooks, mem_values=mem_names[artifact.mem_values]
    )
    return changed, np.stack(names), mem_names


def test_renaming_is_seen_through_and_the_remap_carries_every_used_row_over():
    old = fit()
    new, names, mem_names = renamed(old, np.random.default_rng(3))
    drift, remap = measure_drift(old, new)
    assert not drift.same_vocabulary
    assert min(drift.changed_codes) > 0.5
    assert drift.moved_codes == (0.0, 0.0, 0.0)
    assert drift.carried_gen_rows == 1.0
    for level in range(3):
        for code in np.unique(old.codes[:, level]):
            new_row = level * 8 + names[level][code]
            assert remap.gen_rows[new_row] == level * 8 + code
    # Mem-tokens held by the same items can't be told apart; all others are found again.
    found = remap.mem_rows[mem_names[np.unique(old.mem_values)]] == np.unique(old.mem_values)
    assert found.mean() > 0.9
    assert drift.mem_jaccard > 0.9


def test_drift_of_a_case_worked_by_hand():
    old = fit()
    codes = old.codes.copy()
    level = codes[:, 1]
    source = int(np.bincount(level).argmax())
    target = int((source + 1) % 8)
    movers = np.flatnonzero(level == source)[:5]
    codes[movers, 1] = target
    codebooks = old.codebooks + np.float32(1e-3)
    drift, _ = measure_drift(old, dataclasses.replace(old, codes=codes, codebooks=codebooks))
    assert drift.changed_codes == (0.0, 5 / 300, 0.0)
    assert drift.moved_codes == (0.0, 5 / 300, 0.0)
    assert drift.mem_jaccard == pytest.approx(1.0, abs=0.05)


def test_a_refit_moves_items_and_carried_rows_are_of_the_same_level():
    drift, remap = measure_drift(fit(), fit(seed=1))
    assert not drift.same_vocabulary
    assert drift.moved_codes[0] <= drift.changed_codes[0]
    carried = np.flatnonzero(remap.gen_rows >= 0)
    np.testing.assert_array_equal(carried // 8, remap.gen_rows[carried] // 8)
    assert 0 < drift.mem_jaccard < 1


def test_carried_tables_give_items_their_old_embeddings():
    old = fit()
    new, _, _ = renamed(old, np.random.default_rng(3))
    _, remap = measure_drift(old, new)
    table = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    carried = carry_over(table, remap.gen_rows)
    np.testing.assert_array_equal(carried[gen_row(new.codes, 8)], table[gen_row(old.codes, 8)])
    unknown = carry_over(table, np.array([-1, 3]))
    np.testing.assert_allclose(unknown, [table.mean(axis=0), table[3]])


def test_artifacts_that_share_nothing():
    old = fit()
    with pytest.raises(TokenArtifactError, match="items that are in both artifacts, found none"):
        measure_drift(old, dataclasses.replace(old, item_ids=old.item_ids + 1000))
    two = fit_tokens(
        np.arange(300),
        points()[:300],
        tokenizer=RQKMeans(num_levels=2, num_codes=8),
        mem=MemTokens(),
    )
    with pytest.raises(TokenArtifactError, match="equally many levels, found 3 and 2"):
        measure_drift(old, two)


def test_update_and_drift_from_the_command_line(tmp_path, capsys):
    fit().save(tmp_path / "old")
    table = pa.table({"item_id": range(250, 400), "embedding": points()[250:400].tolist()})
    pq.write_table(table, tmp_path / "embeddings.parquet")
    args = ["--embeddings", str(tmp_path / "embeddings.parquet"), "--out", str(tmp_path / "new")]
    args += ["--update", str(tmp_path / "old"), "--drift-from", str(tmp_path / "old")]
    tokenize.main(args)
    assert "num added items" in capsys.readouterr().out
    new = TokenArtifact.load(tmp_path / "new")
    assert (new.num_items, new.manifest["version"]) == (400, 2)
    assert new.manifest["vocabulary_fingerprint"] == fit().vocabulary_fingerprint
    drift = json.loads((tmp_path / "new.drift" / "drift.json").read_text())
    assert drift["same_vocabulary"]
    assert drift["num_added_items"] == 100
    assert np.load(tmp_path / "new.drift" / "gen_rows.npy").tolist() == list(range(24))
