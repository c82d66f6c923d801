"""Disks that are full, and checkpoints that were damaged on them."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from tests.faults import fault_workers
from tests.faults.processes import assert_same_end, steps_resumed_from
from tests.integration.rank_processes import RanksFailedError, run_ranks
from trainer.checkpoint import Checkpoints
from trainer.stored_state import StoredState

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def saved_steps(folder):
    """Steps of the checkpoints, all of which are sound; nothing else is in their folder."""
    found = sorted(path.name for path in (folder / "checkpoints").iterdir())
    complete = Checkpoints(folder / "checkpoints").complete()
    assert found == [path.name for path in complete]
    for path in complete:
        StoredState(path).verify()
    return [int(name[5:]) for name in found]


def test_full_disk_while_saving(tiny, whole, tmp_path):
    folder = tmp_path / "run"
    message = (
        r"step_0000000008: was not saved \(rank 0: File too large.*\); earlier checkpoints are as "
        r"they were\. Free space or mend the cause, then go on with --resume"
    )
    with pytest.raises(RanksFailedError, match=message):
        run_ranks(fault_workers.train_with_a_full_disk, 1, tiny, folder, 6)
    assert saved_steps(folder) == [4]
    assert not (folder / "result.json").exists()
    run_ranks(fault_workers.resume, 1, tiny, folder)
    assert steps_resumed_from(folder) == [4]
    assert_same_end(folder, whole, 12)


def test_full_disk_while_logging(tiny, whole, tmp_path):
    folder = tmp_path / "run"
    message = r"metrics of step 6 can't be written \(No space left on device\); checkpoints are as"
    with pytest.raises(RanksFailedError, match=message) as failed:
        run_ranks(fault_workers.train_with_a_full_disk_for_logs, 1, tiny, folder, 6)
    assert re.search(r"Free space .* --resume: '.*metrics\.jsonl'", str(failed.value))
    assert saved_steps(folder) == [4]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4]
    run_ranks(fault_workers.resume, 1, tiny, folder)
    assert steps_resumed_from(folder) == [4]
    assert_same_end(folder, whole, 12)


@pytest.fixture(scope="module")
def another(tiny, tmp_path_factory):
    """A run of the same sizes with another seed."""
    folder = tmp_path_factory.mktemp("another") / "run"
    other = replace(tiny, train=replace(tiny.train, seed=7))
    run_ranks(fault_workers.train_whole, 1, other, folder)
    return folder


def truncate(shard, another):
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def flip_a_bit(shard, another):
    data = bytearray(shard.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    shard.write_bytes(data)


def remove(shard, another):
    shard.unlink()


def take_from_another_run(shard, another):
    shutil.copy(another / "checkpoints" / shard.parent.name / shard.name, shard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"\d+ bytes, expected \d+: cut off"),
        (flip_a_bit, r"SHA-256 \w+, expected \w+: damaged"),
        (remove, "missing or unreadable"),
        (take_from_another_run, r"SHA-256 \w+, expected \w+: damaged, or of another checkpoint"),
    ],
)
def test_damaged_shard_is_named_and_the_one_before_goes_on_bit_for_bit(
    tiny, whole, another, damage, message, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step_0000000012")
    for name in ("result.json", "predictions_test.parquet"):
        (folder / name).unlink()
    newest = folder / "checkpoints" / "step_0000000008"
    damage(newest / "rank_00000.safetensors", another)
    cure = "or remove this checkpoint to go on from an earlier one"
    with pytest.raises(RanksFailedError, match=f"rank_00000.safetensors: {message}.*{cure}"):
        run_ranks(fault_workers.resume, 1, tiny, folder)
    assert not (folder / "result.json").exists()
    shutil.rmtree(newest)  # as the message says
    assert saved_steps(folder) == [4]
    run_ranks(fault_workers.resume, 1, tiny, folder)
    assert steps_resumed_from(folder) == [4]
    assert_same_end(folder, whole, 12)


def test_log_that_is_truncated_meanwhile(tiny, whole, tmp_path):
    file = tiny.data.folder / "interactions" / "part-00000.parquet"
    before = file.read_bytes()
    folder = tmp_path / "run"
    try:
        with pytest.raises(RanksFailedError) as failed:
            run_ranks(fault_workers.train_and_truncate, 1, tiny, folder, 5, file)
    finally:
        file.write_bytes(before)
    said = str(failed.value)
    assert re.search(rf"DataError: {file}: expected .*truncated or damaged .*write it again", said)
    assert saved_steps(folder) in ([4], [4, 8])  # windows that were read before are trained on
    step = saved_steps(folder)[-1]
    run_ranks(fault_workers.resume, 1, tiny, folder)
    assert steps_resumed_from(folder) == [step]
    assert_same_end(folder, whole, 12)
