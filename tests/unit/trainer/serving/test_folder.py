import json

import pytest

from trainer.serving.folder import (
    FILES,
    MAX_JSON_BYTES,
    REQUIRED,
    ServingError,
    read_document,
    seal,
    verify,
    written_whole,
)


def write(out, text="one"):
    with written_whole(out) as folder:
        (folder / "tokens").mkdir()
        for name in (*REQUIRED, "tokens/manifest.json"):
            (folder / name).write_text(json.dumps({"text": text}))
        seal(folder)


@pytest.fixture
def export(tmp_path):
    write(tmp_path / "export")
    return tmp_path / "export"


def test_folder_is_whole_and_nothing_is_left_beside_it(export):
    sizes = verify(export)
    assert set(sizes) == {*REQUIRED, "tokens/manifest.json"}
    assert all(sizes[name] == (export / name).stat().st_size for name in sizes)
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_failure_leaves_the_older_export(export):
    with pytest.raises(OSError, match="no space"), written_whole(export) as folder:
        (folder / "model.json").write_text("half")
        raise OSError("no space left on device")
    assert read_document(export / "model.json") == {"text": "one"}
    verify(export)
    assert [path.name for path in export.parent.iterdir()] == ["export"]
    write(export, "two")
    assert read_document(export / "model.json") == {"text": "two"}
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_other_folders_are_not_replaced(tmp_path):
    """Such as a checkpoint, which has a manifest too."""
    (tmp_path / "step_0000000001").mkdir()
    (tmp_path / "step_0000000001" / "manifest.json").write_text("{}")
    with pytest.raises(ServingError, match="exists and is no exported model"):
        write(tmp_path / "step_0000000001")
    assert [p.name for p in (tmp_path / "step_0000000001").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("name", [*REQUIRED, "tokens/manifest.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "expected .* bytes .*: cut off, damaged"),
        (
            lambda p: p.write_bytes(p.read_bytes().replace(b"o", b"0")),
            "expected .* with SHA-256 .*damaged",
        ),
        (lambda p: p.unlink(), "can't be read"),
    ],
)
def test_damage_is_named(export, name, damage, message):
    damage(export / name)
    with pytest.raises(ServingError, match=f"{name}: {message}"):
        verify(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"files": None}, "lists no files of an exported model"),
        ({"files": {}}, "lists no files of an exported model"),
    ],
)
def test_manifest_that_makes_no_sense(export, change, message):
    edit(export, lambda manifest: manifest.update(change))
    with pytest.raises(ServingError, match=message):
        verify(export)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "model.pkl", "tokens/../../x"])
def test_manifest_names_files_of_an_export_alone(export, name):
    edit(export, lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(ServingError, match="no file of an export"):
        verify(export)
    assert name not in FILES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "is no JSON"),
        ("9" * 5000, "is no JSON"),
    ],
)
def test_document_that_is_none(export, text, message):
    (export / "manifest.json").write_text(text)
    with pytest.raises(ServingError, match=message):
        verify(export)


def test_huge_documents_are_refused_unread(export):
    with (export / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no space is taken
    with pytest.raises(ServingError, match=f"at most {MAX_JSON_BYTES} are read"):
        verify(export)


def edit(export, change):
    manifest = json.loads((export / "manifest.json").read_text())
    change(manifest)
    (export / "manifest.json").write_text(json.dumps(manifest))
