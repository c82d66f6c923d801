import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.unit.trainer.stored_checkpoint import whole, write_checkpoint, write_manifest
from trainer.checkpoint import Checkpoints
from trainer.stored_state import CheckpointError, StoredState, TensorFile


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    parts = [
        (0, (0, 0), (3, 4), weight[:3]),
        (1, (3, 0), (3, 1), weight[3:, :1]),
        (1, (3, 1), (3, 3), weight[3:, 1:]),
    ]
    tensors = {"table/a/weight": ((6, 4), False, parts), "network/b/value": whole(torch.ones(2))}
    path = write_checkpoint(tmp_path / "step_0000000007", tensors)
    torch.save(weight, tmp_path / "weight.pt")
    return path


def test_safetensors_reads_what_is_written_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.stored_state._BLOCK_BYTES", 64)
    tensors = {
        "matrix": torch.randn(37, 5),
        "column of a larger one": torch.randn(8, 6)[:, 2:5],
        "scalar": torch.tensor(3.0),
        "half": torch.randn(11).half(),
        "bfloat": torch.randn(11).bfloat16(),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "long": torch.tensor([2**40, -1]),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    entries = [(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    file = TensorFile(tmp_path / "x.safetensors", entries)
    for value in tensors.values():
        file.write(value)
    digest = file.close()
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert file.num_bytes == (tmp_path / "x.safetensors").stat().st_size
    assert digest == os.popen(f"sha256sum {tmp_path}/x.safetensors").read().split()[0]


def test_whole_tensor_is_put_together_from_its_boxes(folder):
    stored = StoredState(folder)
    stored.verify()
    expected = torch.load(folder.parent / "weight.pt")
    assert torch.equal(stored.whole("table/a/weight"), expected)
    assert stored.state["step"] == 7
    with pytest.raises(CheckpointError, match="holds no tensor 'table/z/weight'"):
        stored.whole("table/z/weight")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def foreign(path):
    """As long as it was, whole by itself, of another run."""
    values = {name: value + 1 for name, value in load_file(path).items()}
    entries = [(name, value.dtype, tuple(value.shape)) for name, value in values.items()]
    file = TensorFile(path, entries)
    for value in values.values():
        file.write(value)
    file.close()


@pytest.mark.parametrize("name", ["rank_00001.safetensors", "index.json", "state.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "expected .*: cut off"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "expected .*of another"),
        (flip, "SHA-256 .*damaged"),
        (lambda path: path.unlink(), "missing or unreadable"),
    ],
)
def test_damage_is_named_with_file_and_cure(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}.*{message}.*go on from an earlier one"):
        StoredState(folder).verify()


def test_shard_of_another_run_is_refused(folder):
    foreign(folder / "rank_00001.safetensors")
    with pytest.raises(CheckpointError, match=r"rank_00001.safetensors: (SHA-256|\d+ bytes)"):
        StoredState(folder).verify()


def test_values_are_refused_without_asking_where_their_file_is_damaged(folder):
    flip(folder / "rank_00001.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        StoredState(folder).whole("table/a/weight")


def test_state_is_refused_without_asking_where_it_is_damaged(folder):
    flip(folder / "state.json")
    with pytest.raises(CheckpointError, match="damaged"):
        _ = StoredState(folder).state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, expected 1"),
        ({"files": {}}, "lists no files"),
        ({"files": None}, "lists no files"),
        ({"files": {"state.json": {"bytes": 1}, "index.json": {}}}, "expected bytes and sha256"),
    ],
)
def test_manifest_that_makes_no_sense_is_refused(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(CheckpointError, match=message):
        StoredState(folder)


@pytest.mark.parametrize("name", ["../state.json", "/etc/passwd", "rank_00000.pt", ".metadata"])
def test_manifest_can_name_files_of_a_checkpoint_alone(folder, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="expected bytes and sha256 of a file"):
        StoredState(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1'])
def test_manifest_that_is_no_json_object_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json: (is no JSON|holds no JSON)"):
        StoredState(folder)


def test_huge_manifest_is_refused_unread(folder):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no space is taken
    with pytest.raises(CheckpointError, match=r"more than the .* allowed"):
        StoredState(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1 << 60, 1 << 60]}, "do not make up a tensor"),
        ({"shape": [5000, 5000]}, "do not make up a tensor"),
        ({"dtype": "F128"}, "KeyError"),
        ({"shape": [6, -4]}, "is no shape"),
        ({"shape": "x"}, "is no shape"),
        ({"shape": [5, 4]}, "lies outside of"),
        ({"chunks": [{}]}, "KeyError"),
        ({"chunks": 5}, "TypeError"),
        ({"dtype": "F16"}, r"is F32 \[3, 4\], index.json says F16"),
    ],
)
def test_index_that_makes_no_sense_is_refused(folder, change, message):
    index = json.loads((folder / "index.json").read_text())
    index["table/a/weight"] |= change
    (folder / "index.json").write_text(json.dumps(index))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=message):
        StoredState(folder).whole("table/a/weight")


def test_nothing_is_unpickled(folder, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    stored = StoredState(folder)
    stored.verify()
    assert stored.whole("network/b/value").tolist() == [1, 1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value, path=()):
    """Every place in a tree of JSON values."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key in value if isinstance(value, dict) else ():
        yield from places(value[key], (*path, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(["manifest.json", "index.json", "state.json"]))
def test_any_change_of_a_document_is_read_or_refused_in_words(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("fuzz") / "step_0000000007"
    write_checkpoint(folder, {"table/a/weight": whole(torch.ones(3, 2))})
    document = json.loads((folder / name).read_text())
    at = data.draw(st.sampled_from(list(places(document))))
    new = data.draw(json_values)
    if at:
        owner = document
        for key in at[:-1]:
            owner = owner[key]
        owner[at[-1]] = new
    (folder / name).write_text(json.dumps(document if at else new))
    if name != "manifest.json":
        write_manifest(folder)
    try:
        stored = StoredState(folder)
        stored.verify()
        assert stored.state["step"] >= 0
        Checkpoints(folder.parent).best("valid/click_auc")
        assert stored.whole("table/a/weight").shape == (3, 2)
    except CheckpointError as error:
        assert str(folder) in str(error)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_bytes_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz") / "step_0000000007"
    write_checkpoint(folder, {"table/a/weight": whole(torch.ones(3, 2))})
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    before = (folder / name).read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    after = (
        before[:at] + data.draw(st.binary(max_size=8)) + before[at + data.draw(st.integers(0, 8)) :]
    )
    (folder / name).write_bytes(after)
    if name == "manifest.json" or after == before:
        return
    with pytest.raises(CheckpointError, match=name):
        StoredState(folder).verify()


def make(runs, step, **validation):
    return write_checkpoint(
        runs / f"step_{step:010d}",
        {"network/b/value": whole(torch.ones(2))},
        state={"step": step, "validation": validation},
    )


def test_unfinished_folders_are_never_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    first = make(tmp_path, 1)
    half = make(tmp_path, 2)
    (half / "manifest.json").unlink()
    for name in (".step_0000000003.unfinished", ".step_0000000004.removed", "step_5"):
        make(tmp_path, 9).rename(tmp_path / name)
    assert checkpoints.complete() == [first]
    assert checkpoints.newest() == first
    checkpoints.remove_unfinished()
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, half.name, "step_5"]


@pytest.mark.parametrize(
    ("metric", "best"), [("valid/click_auc", 2), ("valid/click_logloss", 3), (None, None)]
)
def test_newest_and_best_are_kept(tmp_path, metric, best):
    checkpoints = Checkpoints(tmp_path)
    figures = {1: (0.6, 0.5), 2: (0.8, 0.4), 3: (0.7, 0.3), 4: (0.75, 0.35), 5: None, 6: (0.8, 0.9)}
    for step, found in figures.items():
        values = {} if found is None else dict(zip(("auc", "logloss"), found, strict=True))
        make(tmp_path, step, **{f"valid/click_{name}": value for name, value in values.items()})
    checkpoints.retain(2, metric)
    kept = [int(path.name[5:]) for path in checkpoints.complete()]
    assert kept == [*([best] if best else []), 5, 6]
    if metric is not None:
        assert checkpoints.best(metric) == checkpoints.path(best)
    assert not list(tmp_path.glob(".*"))
