import pytest
import torch

from tests.integration.rank_processes import run_ranks
from tests.integration.tiny_model import Case
from tests.integration.workers import feed_in_parts


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    run_ranks(feed_in_parts, 1, Case(name="pipeline", num_steps=6, batch_size=8), folder)
    return torch.load(folder / "seen.pt")


def test_draining_and_feeding_again_changes_nothing(seen):
    assert seen["whole"]["losses"] == seen["parts"]["losses"]
    assert len(set(seen["whole"]["losses"])) == 6
    for name, weight in seen["whole"]["weights"].items():
        assert torch.equal(weight, seen["parts"]["weights"][name]), name


def test_batches_come_back_in_order_each_once(seen):
    assert seen["parts"]["first_labels"] == seen["whole"]["first_labels"]
    assert len(seen["parts"]["first_labels"]) == 6


def test_no_batch_left_is_told(seen):
    assert seen["whole"]["ended"]


def test_seconds_are_split_by_part_and_taken_once(seen):
    seconds = seen["whole"]["seconds"]
    assert set(seconds) == {"data", "forward", "backward", "step"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["forward"] + seconds["backward"] <= seconds["step"]
    assert seen["whole"]["seconds_again"] == {}


def test_scoring_between_drained_parts_sees_the_trained_weights(seen):
    assert seen["parts"]["scored_before"] != seen["parts"]["scored_after"]
