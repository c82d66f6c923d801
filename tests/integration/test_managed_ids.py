from dataclasses import replace

import pytest
import torch

from configs import migration
from sharding.managed_ids import ManagedIds
from tests.integration.managed_workers import (
    INTERVAL,
    NUM_STEPS,
    OLD_STATE,
    ROWS,
    follow_all,
    item_ids,
    old_weights,
)
from tests.integration.rank_processes import RanksFailedError, run_ranks
from tests.integration.test_resume import assert_bit_equal, tensors
from tests.integration.workers import resume, train_whole_and_stopped
from tests.unit.trainer.modules.naive_rows import HASH_SIZE, NaiveRows, hashed

CASES = {
    1: [("rowwise_adagrad", "distance_lfu")],
    2: [("rowwise_adagrad", "lru"), ("adagrad", "distance_lfu"), ("sgd", "lru")],
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Folder of what the ranks noted, by their number."""
    folders = {}
    for world_size, cases in CASES.items():
        folders[world_size] = tmp_path_factory.mktemp(f"ranks_{world_size}")
        run_ranks(follow_all, world_size, cases, folders[world_size])
    return folders


def noted(followed, world_size, optimizer, policy, rank):
    path = followed[world_size] / f"{optimizer}_{policy}_rank{rank}.pt"
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("world_size", "optimizer", "policy"),
    [(world_size, *case) for world_size, cases in CASES.items() for case in cases],
)
def test_rows_change_hands_on_each_rank_as_in_the_naive_reference(
    followed, world_size, optimizer, policy
):
    part = ROWS // world_size
    num_changed = 0
    for rank in range(world_size):
        saved = noted(followed, world_size, optimizer, policy, rank)
        assert saved["plan"] == ("row_wise", "fused")
        assert saved["rate"] == pytest.approx(2e-3)  # a tenth, at the end of the schedule
        naive = NaiveRows(part, INTERVAL, policy, first_row=rank * part)
        for step in range(NUM_STEPS):
            # An id goes to the rank in whose range of the hash it lies.
            ids = [hashed(one) for asker in range(world_size) for one in item_ids(step, asker)]
            own = [one for one in ids if one // (HASH_SIZE // world_size) == rank]
            naive.step(own)
            note = saved["seen"][step]
            assert note["rows"] == {r.id: r.number for r in naive.rows if r.id is not None}
            touched = {naive.row_of(one) for one in own}
            changed = set(naive.changed)
            num_changed += len(changed)
            for row in range(part):
                number = rank * part + row
                weight = note["weights"][row]
                # New rows are drawn anew with a spread of 0.01; a step moves a row by little.
                old = old_weights(number, 1)[0] * (number not in changed)
                torch.testing.assert_close(weight, old, atol=0.14, rtol=0)
                if number not in changed:
                    assert torch.equal(weight, old) == (number not in touched)
                for state in note["states"]:
                    value = float(state[row].sum()) / state[row].numel()
                    expected = 0.0 if number in changed else OLD_STATE
                    assert value == pytest.approx(expected, abs=0.5)
                    if number in changed and number not in touched:
                        assert value == 0.0
    assert num_changed > 2 * ROWS  # rows were taken back, not only given


def test_ranks_agree_on_the_row_of_an_id(followed):
    """Scores of the same rows are the same, whichever rank asks for their items."""
    for note in noted(followed, 2, "rowwise_adagrad", "lru", 0)["seen"]:
        half = len(note["scores"]) // 2
        assert note["scores"][:half] == note["scores"][half:]


@pytest.fixture(scope="module")
def small_steps(smoke):
    """Settings of a short run with a checkpoint every five steps, on the log of the tests."""

    def of(experiment, name):
        return replace(
            experiment,
            name=name,
            data=smoke.data,
            train=smoke.train,
            tokenizer=experiment.tokenizer and smoke.tokenizer,
        )

    return of


@pytest.mark.parametrize("world_size", [1, 2])
def test_managed_and_residual_ids_resume_bit_for_bit(world_size, small_steps, tmp_path):
    rows = {row.experiment.name: row.experiment for row in migration.smoke().rows}
    managed = next(rows[name] for name in rows if "managed" in name)
    mixed = next(rows[name] for name in rows if "residual" in name)
    tables = tuple(
        replace(table, managed=replace(table.managed, eviction_interval=4))
        if table.managed
        else table
        for table in managed.tables
    )
    both = replace(
        mixed,
        tables=tuple(
            replace(table, managed=ManagedIds(policy="lru", eviction_interval=3))
            if table.name == "item_id"
            else table
            for table in mixed.tables
        ),
    )
    experiments = {"managed": replace(managed, tables=tables), "mixed": mixed, "both": both}
    names_of = {1: ("both",), 2: ("managed", "mixed")}
    scenarios = [(small_steps(experiments[name], name), 18) for name in names_of[world_size]]
    run_ranks(train_whole_and_stopped, world_size, scenarios, tmp_path)
    for experiment, _ in scenarios:
        runs = tmp_path / experiment.name
        names = assert_bit_equal(runs / "whole", runs / "stopped")
        saved = tensors(runs / "whole")
        if experiment.name != "mixed":
            ids = torch.cat([v for (k, _), v in saved.items() if k.endswith("_sorted_raw_ids")])
            assert (ids != torch.iinfo(torch.int64).max).sum() > 10  # rows were given
            assert {f"waiting/rank_{rank}/item_id" for rank in range(world_size)} <= names
        predictions = [
            (runs / run / "predictions_test.parquet").read_bytes() for run in ("whole", "stopped")
        ]
        assert predictions[0] == predictions[1]
    if world_size == 2:
        with pytest.raises(RanksFailedError, match="managed table item_id depends on their number"):
            run_ranks(resume, 1, scenarios[0][0], tmp_path / "managed" / "whole")
