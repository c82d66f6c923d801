import itertools
import json
import random
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.integration import checkpoint_workers as workers
from tests.integration.checkpoint_workers import STEPS, Spread
from tests.integration.rank_processes import run_ranks
from trainer.stored_state import StoredState

CASES = [
    Spread(name="data_parallel", pooled_type="data_parallel"),
    Spread(name="table_wise", fsdp=True),
    Spread(name="row_wise", pooled_type="row_wise", item_type="row_wise"),
    Spread(name="column_wise", pooled_type="column_wise", item_type="column_wise", fsdp=True),
    Spread(
        name="mixed",
        types=("row_wise", "data_parallel", "column_wise"),
        item_type="row_wise",
        fsdp=True,
    ),
]
WORLDS = (1, 2, 4)
SOURCES = list(itertools.product([case.name for case in CASES], WORLDS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder with a checkpoint of every case on 1, 2 and 4 ranks."""
    folder = tmp_path_factory.mktemp("saved")
    for world_size in WORLDS:
        run_ranks(workers.train_and_save, world_size, CASES, folder)
    return folder


@pytest.mark.parametrize(
    ("world_size", "targets", "sources"),
    [
        (1, ["table_wise", "data_parallel"], SOURCES[1::2]),
        (2, ["row_wise", "table_wise"], [*SOURCES[0::4], ("column_wise", 4)]),
        (4, ["column_wise", "mixed"], [("data_parallel", 1), ("column_wise", 2), ("mixed", 2)]),
        *(
            pytest.param(world_size, [case.name for case in CASES], SOURCES, marks=pytest.mark.slow)
            for world_size in WORLDS
        ),
    ],
)
def test_checkpoint_loads_under_another_plan(saved, world_size, targets, sources, tmp_path):
    """Each value equals the one saved, row-wise state the mean over its columns; and the model
    that was loaded has the loss that the saved one has next.
    """
    cases = [case for case in CASES if case.name in targets]
    run_ranks(workers.load_and_compare, world_size, cases, sources, saved, tmp_path, timeout=500)
    for rank in range(world_size):
        found = json.loads((tmp_path / f"{world_size}_{rank}.json").read_text())
        assert len(found) == len(cases) * len(sources)
        assert sum(one[-1] is not None for one in found) == len(cases)
        for case, source, source_world, differences, next_loss in found:
            what = f"{source} on {source_world} -> {case} on {world_size}, rank {rank}"
            assert differences == [], what
            if next_loss is None:
                continue
            expected = json.loads((saved / f"{source}_{source_world}.json").read_text())
            assert next_loss == pytest.approx(expected, abs=1e-6), what


def test_each_value_is_written_once(saved):
    for name, world_size in SOURCES:
        stored = StoredState(saved / f"{name}_{world_size}" / f"step_{STEPS:010d}")
        for tensor, entry in stored.tensors.items():
            cells = torch.zeros(entry.shape)
            for chunk in entry.chunks:
                ends = [o + s for o, s in zip(chunk.box.offsets, chunk.box.sizes, strict=True)]
                cells[tuple(map(slice, chunk.box.offsets, ends))] += 1
            assert (cells == 1).all(), f"{name} on {world_size}: {tensor}"


def test_slots_that_matter_are_there_and_differ_from_zero(saved):
    stored = StoredState(saved / "mixed_4" / f"step_{STEPS:010d}")
    for table in ("pooled_adagrad", "pooled_rowwise_adagrad", "gen_token", "mem_token"):
        entry = stored.tensors[f"table/{table}/state/sum"]
        assert entry.per_row == (table in ("pooled_rowwise_adagrad", "gen_token"))
        values = [
            stored.read(entry, chunk, tuple(slice(0, n) for n in chunk.box.sizes))
            if not entry.per_row
            else stored.read(entry, chunk, (slice(0, chunk.box.sizes[0]),))
            for chunk in entry.chunks
        ]
        assert any(value.any() for value in values), table
    assert "table/pooled_sgd/state/sum" not in stored.tensors
    assert stored.whole("network/heads.0.0.weight/state/exp_avg").any()
    assert float(stored.whole("network/heads.0.0.weight/state/step")) == STEPS


@pytest.mark.faults
def test_failed_save_keeps_earlier_checkpoints_and_is_told_on_every_rank(tmp_path):
    run_ranks(workers.fill_the_disk, 2, CASES[2], tmp_path)
    first, third = "step_0000000001", "step_0000000003"
    for rank in range(2):
        said = json.loads((tmp_path / f"said_{rank}.json").read_text())
        assert said[:3] == ["saved", [first], [first]]
        assert "step_0000000002: was not saved (rank 1: No space left on device)" in said[3]
        assert "--resume" in said[3]
        assert said[4:6] == [[first], [first]]  # nothing of the second is left
        assert said[6:9] == ["saved", [first, third], [first, third]]
        assert "rank 1 wrote rank_00001.safetensors, but rank 0 does not see it" in said[9]
        assert said[10:] == [[first, third], [first, third]]


def tensors(path):
    """Boxes by name and place, whichever file they are in."""
    index = json.loads((path / "index.json").read_text())
    files = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    return {
        (name, tuple(chunk["offsets"])): files[chunk["file"]][chunk["key"]]
        for name, entry in index.items()
        for chunk in entry["chunks"]
        if not name.startswith("random/")
    }


@pytest.fixture(scope="module")
def little_memory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    run_ranks(workers.save_with_little_memory, 2, CASES[4], folder)
    return folder


@pytest.mark.parametrize("name", ["some", "none"])
def test_values_are_the_same_whether_copied_first_or_not(little_memory, name):
    step = f"step_{STEPS:010d}"
    one, other = tensors(little_memory / "all" / step), tensors(little_memory / name / step)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_for_copies_is_bounded(little_memory, rank):
    sizes = json.loads((little_memory / f"sizes_{rank}.json").read_text())
    assert sizes["all"] > 30_000
    assert sizes["none"] == 0
    for name in ("some", f"grows_{STEPS}", f"grows_{STEPS + 1}"):
        assert 10_000 < sizes[name] <= 20_000, name


def test_what_training_does_meanwhile_is_not_in_the_checkpoint(little_memory):
    before = tensors(little_memory / "all" / f"step_{STEPS:010d}")
    for more in (0, 1):
        changed = tensors(little_memory / "changed" / f"step_{STEPS + more:010d}")
        assert changed.keys() == before.keys()
        for key, value in before.items():
            is_weight = key[0].endswith("/weight") and key[0].startswith("table/")
            assert torch.equal(changed[key], value + more if is_weight else value), key


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
        (lambda path: path.unlink(), "missing"),
        (None, "SHA-256 .* damaged, or of another"),
    ],
)
def test_damaged_checkpoint_is_refused_by_every_rank_and_changes_nothing(
    saved, tmp_path, damage, message
):
    step = f"step_{STEPS:010d}"
    path = tmp_path / step
    shutil.copytree(saved / "row_wise_2" / step, path)
    file = path / "rank_00001.safetensors"
    if damage is None:  # a shard of another run, as long as this one's
        data = bytearray(file.read_bytes())
        data[-100:] = bytes(100)
        file.write_bytes(data)
    else:
        damage(file)
    run_ranks(workers.refuse, 2, CASES[2], path, tmp_path)
    for rank in range(2):
        said, same = json.loads((tmp_path / f"{rank}.json").read_text())
        assert same
        assert "rank_00001.safetensors" in said
        assert re.search(message, said)


@pytest.mark.faults
def test_killed_at_any_moment_a_save_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")
    run_ranks(workers.be_killed_while_saving, 1, CASES[2], tmp_path, 50, seed)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen) == 2 + 50 + 20 + 1
    previous = 1
    for step, newest in seen:
        assert newest in (previous, step)
        previous = newest
    assert seen[-1][0] == seen[-1][1]  # what kills have left is in nobody's way
    after_renaming = sum(step == newest for step, newest in seen[2:-1])
    assert 2 <= after_renaming < 50
