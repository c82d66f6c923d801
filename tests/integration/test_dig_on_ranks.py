"""DIG on two ranks equals one rank on the same global batch."""

from dataclasses import replace

import pytest
import torch

from tests.integration.dig_workers import NUM_STEPS, OPTIM, train_dig
from tests.integration.rank_processes import run_ranks
from tests.integration.tiny_dig import CONFIG, ITEM, initial_table, tables

RESTS_AFTER = 3
CONFIGS = {
    "batch": CONFIG,
    "user": replace(CONFIG, u2t_scope="user", unclicked_negatives=True),
    "mean": replace(CONFIG, retrieval_u2t="mean", last_level_only=True),
    "resting": replace(CONFIG, item=replace(ITEM, fixed_after=RESTS_AFTER)),
}
NO_GRADIENT = dict.fromkeys(
    ("request_encoder.dense.0.bias", "request_encoder.norm.running_mean_D"),
    NUM_STEPS * OPTIM.dense_lr,
)
"""Normalization undoes what the bias adds, so its gradient is rounding, of which Adam makes steps;
the running mean follows it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folders = {}
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"dig_{world_size}")
        run_ranks(train_dig, world_size, CONFIGS, folder)
        folders[world_size] = folder
    return folders


def whole_tables(folder, name, world_size):
    found = {spec.name: torch.full((spec.rows, spec.dim), float("nan")) for spec in tables(ITEM)}
    ranks = [torch.load(folder / f"{name}_rank{rank}.pt") for rank in range(world_size)]
    for rank in ranks:
        for table, (row, column), part in rank["tables"]:
            found[table][row : row + part.shape[0], column : column + part.shape[1]] = part
    return found, ranks


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_encoder_learns_until_it_rests(trained, name):
    _, (one,) = whole_tables(trained[1], name, 1)
    moved = [
        not torch.equal(before, after)
        for before, after in zip(one["encoder"][:-1], one["encoder"][1:], strict=True)
    ]
    assert len(moved) == NUM_STEPS - 1
    assert moved == [name != "resting" or step + 1 < RESTS_AFTER for step in range(len(moved))]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_ranks_equal_one(trained, name):
    one_tables, (one,) = whole_tables(trained[1], name, 1)
    two_tables, two = whole_tables(trained[2], name, 2)
    for step, expected in enumerate(one["losses"]):
        for loss, value in expected.items():
            mean = sum(rank["losses"][step][loss] for rank in two) / 2
            assert mean == pytest.approx(value, abs=1e-5), f"{loss} of step {step}"
    for rank in two:
        assert torch.equal(rank["codes"], one["codes"])
        for key, value in one["state"].items():
            torch.testing.assert_close(
                rank["state"][key],
                value,
                atol=NO_GRADIENT.get(key, 1e-5),
                rtol=0,
                msg=lambda m, k=key: f"{k}: {m}",
            )
    for table, expected in one_tables.items():
        start = initial_table(table, *expected.shape)
        assert (expected - start).abs().max() > 1e-4, f"{table} did not move"
        torch.testing.assert_close(two_tables[table], expected, atol=1e-5, rtol=0)


def test_codebooks_moved_and_ranks_agree_bit_for_bit(trained):
    ranks = [torch.load(trained[2] / f"batch_rank{rank}.pt") for rank in range(2)]
    key = "quantizer.codebooks_LKD"
    assert torch.equal(ranks[0]["state"][key], ranks[1]["state"][key])
    assert ranks[0]["state"]["num_steps"].item() == 6
