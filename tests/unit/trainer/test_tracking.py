import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.tracking import TokenUse, Tracker, squared_norms


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "metrics.jsonl", tmp_path / "tensorboard"


def tracker(paths, step=0):
    return Tracker(*paths, num_steps=10, step=step, title="test")


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_line_holds_step_samples_time_and_values(paths):
    with tracker(paths) as tracked:
        tracked.advance(2)
        tracked.log(2, 512, {"train/loss": 0.5, "throughput/samples_per_s": 10.0})
    (line,) = map(json.loads, paths[0].read_text().splitlines())
    assert line.pop("time") > 1.6e9
    assert line == {
        "step": 2,
        "samples": 512,
        "train/loss": 0.5,
        "throughput/samples_per_s": 10.0,
    }


def test_lines_are_there_while_the_run_goes_on(paths):
    with tracker(paths) as tracked:
        tracked.log(1, 1, {"train/loss": 0.5})
        assert steps(paths[0]) == [1]


def test_resume_drops_lines_after_its_step_and_a_line_cut_short(paths):
    with tracker(paths) as tracked:
        for step in (2, 4, 6):
            tracked.log(step, step, {"train/loss": float(step)})
    with paths[0].open("a") as file:
        file.write('{"step": 8, "sam')
    with tracker(paths, step=4) as tracked:
        tracked.log(6, 6, {"train/loss": 60.0})
    assert steps(paths[0]) == [2, 4, 6]
    assert json.loads(paths[0].read_text().splitlines()[-1])["train/loss"] == 60.0


def test_tensorboard_shows_a_resumed_step_once(paths):
    with tracker(paths) as tracked:
        for step in (2, 4, 6):
            tracked.log(step, step, {"train/loss": float(step)})
    with tracker(paths, step=4) as tracked:
        tracked.log(6, 6, {"train/loss": 60.0})
    board = EventAccumulator(str(paths[1]))
    board.Reload()
    read = {event.step: event.value for event in board.Scalars("train/loss")}
    assert read == {2: 2.0, 4: 4.0, 6: 60.0}


def test_fresh_run_in_a_used_folder_starts_over(paths):
    paths[0].write_text('{"step": 5}\n')
    with tracker(paths) as tracked:
        tracked.log(1, 1, {})
    assert steps(paths[0]) == [1]


def gen_tokens(rows):
    return KeyedJaggedTensor.from_lengths_sync(
        keys=["gen_token"], values=torch.tensor(rows), lengths=torch.tensor([len(rows)])
    )


def test_token_use_is_the_share_of_codes_that_trained_batches_look_up():
    use = TokenUse(num_levels=2, num_codes=4)
    for rows in ([0, 4, 1, 4], [1, 5, 2, 6], [3, 7]):  # the third is read ahead
        use.add(gen_tokens(rows))
    assert use.take(2) == {"tokens/level_0_use": 0.75, "tokens/level_1_use": 0.75}
    assert use.take(1) == {"tokens/level_0_use": 0.25, "tokens/level_1_use": 0.25}


def test_items_without_gen_tokens_are_not_counted():
    use = TokenUse(num_levels=0, num_codes=0)
    use.add(
        KeyedJaggedTensor.from_lengths_sync(
            keys=["item_id"], values=torch.tensor([3]), lengths=torch.tensor([1])
        )
    )
    assert use.take(1) == {}


def test_squared_norms_equal_a_sum_in_fp32():
    weights = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.full((2, 2), 300.0).half()}
    assert squared_norms(weights) == {"a": 25.0, "b": 360000.0}
