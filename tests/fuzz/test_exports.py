"""Exported models whose manifest or description was changed at random."""

import json

import pytest

from configs import trm_rankmixer
from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal, tree
from tests.fuzz.strategies import changed
from trainer.serving.description import ModelDescription, known_classes
from trainer.serving.folder import (
    MANIFEST,
    MODEL,
    REQUIRED,
    ServingError,
    read_document,
    seal,
    verify,
    write_document,
)

CLASSES = known_classes()


@pytest.fixture
def export(tmp_path):
    """The description of a model; what its tensors are does not matter here."""
    experiment = trm_rankmixer.smoke()
    description = ModelDescription(
        name=experiment.name,
        step=7,
        rows="int8",
        precision="fp32",
        schema=experiment.data.schema,
        model=experiment.model,
        tables=experiment.tables,
        vocabulary="abc",
    )
    for name in REQUIRED:
        write_document(tmp_path / name, {"holds": name})
    write_document(tmp_path / MODEL, description.to_dict())
    seal(tmp_path)
    return tmp_path


@numbers_of_inputs(40, 300)
def test_manifests_of_exports(number, export):
    document = json.loads((export / MANIFEST).read_text())
    right = verify(export)
    before = tree(export)

    def check(changed_document):
        (export / MANIFEST).write_text(json.dumps(changed_document))

        def read():
            assert verify(export).items() <= right.items()

        refusal(read, ServingError)

    fuzz(number, changed(document), check)
    assert tree(export) == before


@numbers_of_inputs(60, 500)
def test_descriptions_of_exports(number, export):
    document = json.loads((export / MODEL).read_text())
    before = tree(export)
    outcomes = set()

    def check(changed_document):
        (export / MODEL).write_text(json.dumps(changed_document))
        found = []

        def read():
            found.append(ModelDescription.from_dict(read_document(export / MODEL), CLASSES))

        said = refusal(read, ServingError)
        outcomes.add(said is None)
        if said is None:  # it means what its own record says
            again = json.loads(json.dumps(found[0].to_dict()))
            assert ModelDescription.from_dict(again, CLASSES) == found[0]

    check(document)
    fuzz(number, changed(document), check)
    assert outcomes == {True, False}
    assert tree(export) == before
