"""What every tokenizer promises, checked on all of them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.base import describe
from tokenization.das import DAS
from tokenization.dos import DOS
from tokenization.letter import LETTER
from tokenization.mem_tokens import MemTokens
from tokenization.opmq import OPMQ
from tokenization.opq import OPQ
from tokenization.pipeline import fit_tokens
from tokenization.quality import measure_quality
from tokenization.rq_kmeans import RQKMeans
from tokenization.rq_vae import RQVAE
from tokenization.tokenizers import CONFIGS, load_tokenizer, restore

DIM = 12
SMALL = {
    "rq_kmeans": RQKMeans(num_levels=3, num_codes=8, num_iterations=8),
    "balanced_rq_kmeans": BalancedRQKMeans(num_levels=3, num_codes=8, num_iterations=5),
    "rq_vae": RQVAE(
        num_levels=3,
        num_codes=8,
        hidden=(64,),
        latent_dim=8,
        num_epochs=40,
        batch_size=50,
        learning_rate=5e-3,
    ),
    "opq": OPQ(num_levels=3, num_codes=8, num_rotations=5, num_iterations=8),
    "opmq": OPMQ(
        num_levels=3,
        num_codes=8,
        latent_dim=8,
        hidden=(64,),
        num_epochs=40,
        batch_size=50,
        learning_rate=5e-3,
    ),
}
_AUTOENCODER = {
    "num_levels": 3,
    "num_codes": 8,
    "hidden": (64,),
    "latent_dim": 8,
    "num_epochs": 20,
    "batch_size": 100,
    "learning_rate": 1e-2,
    "collaborative_dim": 4,
}
SMALL |= {
    "letter": LETTER(**_AUTOENCODER, num_groups=3),
    "das": DAS(**_AUTOENCODER),
    "dos": DOS(**_AUTOENCODER),
}
KINDS = sorted(SMALL)


def points(seed=0, num_items=500):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, DIM)) * 3
    noise = rng.normal(size=(num_items, DIM))
    return (centres[rng.integers(0, 20, num_items)] + noise).astype(np.float32)


def with_one_code(kind):
    fields = {**describe(SMALL[kind]), "num_codes": 1}
    fields.pop("kind")
    return CONFIGS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def error(embeddings, decoded):
    return float(((embeddings - decoded) ** 2).sum(axis=1).mean())


@pytest.fixture(scope="module")
def fitted():
    return {kind: config.fit(points()) for kind, config in SMALL.items()}


def test_every_kind_is_checked_here():
    assert set(SMALL) == set(CONFIGS)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_tensors_and_codes(kind, fitted):
    again = SMALL[kind].fit(points())
    for name, tensor in fitted[kind].tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    np.testing.assert_array_equal(again.encode(points()), fitted[kind].encode(points()))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_int32_in_range_and_of_the_item_alone(kind, fitted):
    codes = fitted[kind].encode(points())
    assert codes.dtype == np.int32
    assert codes.shape == (500, 3)
    assert codes.min() >= 0
    assert codes.max() < 8
    assert (fitted[kind].num_levels, fitted[kind].num_codes, fitted[kind].dim) == (3, 8, DIM)
    np.testing.assert_array_equal(fitted[kind].encode(points()[37:38]), codes[37:38])


@pytest.mark.parametrize("kind", KINDS)
def test_error_falls_with_every_level_to_well_below_the_variance(kind, fitted):
    embeddings = points()
    codes = fitted[kind].encode(embeddings)
    errors = [error(embeddings, fitted[kind].decode(codes[:, :level])) for level in range(1, 4)]
    variance = error(embeddings, embeddings.mean(axis=0))
    assert errors[-1] < 0.45 * variance
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert fitted[kind].decode(codes).dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_what_codes_decode_to_encodes_to_a_point_as_near(kind, fitted):
    embeddings = points()
    decoded = fitted[kind].decode(fitted[kind].encode(embeddings))
    again = fitted[kind].decode(fitted[kind].encode(decoded))
    assert error(decoded, again) < 0.5 * error(embeddings, decoded)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_tokenizer(kind, fitted, tmp_path):
    fitted[kind].save(tmp_path / "tokenizer.safetensors")
    loaded = load_tokenizer(tmp_path / "tokenizer.safetensors")
    assert loaded.config == SMALL[kind]
    codes = fitted[kind].encode(points(1))
    np.testing.assert_array_equal(loaded.encode(points(1)), codes)
    np.testing.assert_array_equal(loaded.decode(codes), fitted[kind].decode(codes))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_last_level_distances_are_least_at_the_code(kind, fitted):
    codes = fitted[kind].encode(points())
    distances = fitted[kind].last_level_distances(points(), codes)
    assert distances.shape == (500, 8)
    np.testing.assert_array_equal(distances.argmin(axis=1), codes[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_item(kind):
    one = points(num_items=1)
    tokenizer = with_one_code(kind).fit(one)
    assert tokenizer.encode(one).tolist() == [[0, 0, 0]]
    assert np.isfinite(tokenizer.decode(tokenizer.encode(one))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_share_their_codes(kind):
    distinct = points(num_items=6)
    tokenizer = SMALL[kind].fit(np.repeat(distinct, 20, axis=0))
    codes = tokenizer.encode(np.repeat(distinct, 20, axis=0))
    np.testing.assert_array_equal(codes, np.repeat(codes[::20], 20, axis=0))
    assert np.isfinite(tokenizer.decode(codes)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_constant_embeddings_get_one_tuple(kind):
    embeddings = np.full((60, DIM), 3.0, dtype=np.float32)
    tokenizer = SMALL[kind].fit(embeddings)
    codes = tokenizer.encode(embeddings)
    assert len(np.unique(codes, axis=0)) == 1
    np.testing.assert_allclose(tokenizer.decode(codes), embeddings, atol=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_unusable_embeddings_are_named(kind, fitted):
    bad = points()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 500 rows hold NaN or infinity .* row 3"):
        SMALL[kind].fit(bad)
    with pytest.raises(ValueError, match="row 3"):
        fitted[kind].encode(bad)
    with pytest.raises(ValueError, match=r"num_codes: 8 codes need .* found 5 items"):
        SMALL[kind].fit(points(num_items=5))
    with pytest.raises(ValueError, match=r"expected 12 dimensions .* found 5"):
        fitted[kind].encode(points()[:, :5])
    with pytest.raises(ValueError, match=r"codes: expected values in \[0, 8\)"):
        fitted[kind].decode(np.full((2, 3), 8))
    with pytest.raises(ValueError, match="at most 3"):
        fitted[kind].decode(np.zeros((2, 4), dtype=np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_out_of_range(kind):
    for field in ("num_levels", "num_codes"):
        with pytest.raises(ValueError, match=f"{field}: expected at least 1, found 0"):
            CONFIGS[kind](**{field: 0})


@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_carries_it(kind, tmp_path):
    artifact = fit_tokens(
        np.arange(500), points(), tokenizer=SMALL[kind], mem=MemTokens(num_merges=50)
    )
    artifact.save(tmp_path / "tokens")
    loaded = TokenArtifact.load(tmp_path / "tokens")
    np.testing.assert_array_equal(loaded.tokenizer.encode(points()), artifact.codes)
    quality = measure_quality(loaded, points())
    decoded = loaded.tokenizer.decode(artifact.codes)
    assert quality.levels[-1].distortion == pytest.approx(error(points(), decoded), rel=1e-4)


def test_load_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "text").write_text("not tensors at all")
    with pytest.raises(ValueError, match="expected a safetensors file of a tokenizer"):
        load_tokenizer(tmp_path / "text")
    settings = json.dumps({"kind": "hash"})
    arrays = {"codebooks": np.zeros((1, 1, 1), dtype=np.float32)}
    save_file(arrays, tmp_path / "other", metadata={"tokenizer": settings})
    with pytest.raises(ValueError, match=r"tokenizer kind: expected one of rq_kmeans, .*'hash'"):
        load_tokenizer(tmp_path / "other")
    with pytest.raises(ValueError, match="found None"):
        restore({}, arrays)


def test_an_artifact_without_settings_says_so():
    artifact = fit_tokens(np.arange(500), points(), tokenizer=SMALL["opq"], mem=MemTokens())
    bare = TokenArtifact(
        item_ids=artifact.item_ids,
        codes=artifact.codes,
        mem_values=artifact.mem_values,
        mem_offsets=artifact.mem_offsets,
        codebooks=artifact.codebooks,
        merges=artifact.merges,
    )
    with pytest.raises(TokenArtifactError, match="expected the settings of a tokenizer"):
        _ = bare.tokenizer
