"""Folders of tokens damaged at random: the same tokens, or refused by our own words."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal, tree
from tests.fuzz.strategies import JUNK, changed, damaged
from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.mem_tokens import MemTokens
from tokenization.pipeline import fit_tokens
from tokenization.rq_kmeans import RQKMeans


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    noise = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    tokens = fit_tokens(
        np.arange(30),
        noise,
        tokenizer=RQKMeans(num_levels=2, num_codes=4),
        mem=MemTokens(num_merges=5),
    )
    tokens.save(folder)
    return folder


@numbers_of_inputs(40, 400)
def test_manifests_of_tokens(number, artifact, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(artifact, copy)
    right = TokenArtifact.load(copy)
    document = json.loads((copy / "manifest.json").read_text())
    before = tree(copy)

    def check(changed_document):
        (copy / "manifest.json").write_text(json.dumps(changed_document))

        def read():
            found = TokenArtifact.load(copy)
            assert found.fingerprint == right.fingerprint
            assert (found.codes == right.codes).all()
            assert found.tokenizer is not None

        refusal(read, TokenArtifactError)

    fuzz(number, st.one_of(changed(document), JUNK), check)
    assert tree(copy) == before


@numbers_of_inputs(40, 500)
@pytest.mark.parametrize("name", ["tokens.parquet", "merges.parquet", "codebooks.safetensors"])
def test_bytes_of_tokens(number, name, artifact, tmp_path):
    copy = tmp_path / "tokens"
    shutil.copytree(artifact, copy)
    right = TokenArtifact.load(copy)
    data = (copy / name).read_bytes()
    before = tree(copy)

    def check(changed_data):
        (copy / name).write_bytes(changed_data)

        def read():
            assert TokenArtifact.load(copy).fingerprint == right.fingerprint

        refusal(read, TokenArtifactError)

    fuzz(number // 3, damaged(data), check)
    assert tree(copy) == before
    assert hashlib.sha256(data).digest() == hashlib.sha256((artifact / name).read_bytes()).digest()
