"""Manifests of checkpoints changed at random: read as written, or refused by our own words."""

import json

import pytest
import torch

from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal, tree
from tests.fuzz.strategies import changed
from tests.unit.trainer.stored_checkpoint import whole as one_box
from tests.unit.trainer.stored_checkpoint import write_checkpoint, write_manifest
from trainer.stored_state import CheckpointError, StoredState


@pytest.fixture
def checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    boxes = [(0, (0, 0), (3, 4), weight[:3]), (1, (3, 0), (3, 4), weight[3:])]
    tensors = {"table/a/weight": ((6, 4), False, boxes), "network/b/value": one_box(torch.ones(2))}
    return write_checkpoint(tmp_path / "step_0000000007", tensors)


@numbers_of_inputs(60, 900)
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "state.json"])
def test_manifests_of_checkpoints(number, name, checkpoint):
    document = json.loads((checkpoint / name).read_text())
    right = StoredState(checkpoint).whole("table/a/weight")
    before = tree(checkpoint)

    def check(changed_document):
        (checkpoint / name).write_text(json.dumps(changed_document))
        if name != "manifest.json":
            write_manifest(checkpoint)  # so that it is read at all

        def read():
            stored = StoredState(checkpoint)
            stored.verify()
            assert stored.state["step"] >= 0
            for tensor, entry in stored.tensors.items():
                found = stored.whole(tensor)
                assert tuple(found.shape) == entry.shape
                if name == "manifest.json" and tensor == "table/a/weight":
                    assert torch.equal(found, right)

        refusal(read, CheckpointError)

    fuzz(number // 3, changed(document), check)
    assert tree(checkpoint) == before
