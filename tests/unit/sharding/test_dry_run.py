"""Dry runs: what they count, what they say when nothing fits, and that they are values."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sharding.cost import memory_by_part, predicted_step
from sharding.dry_run import DenseReserve, DryRunRequest, dry_run, needed_bytes, plan_target
from sharding.figures import write_figures
from sharding.hardware import Cluster, cpu, h100, h200
from sharding.plan_diff import difference
from sharding.report import (
    build_plan_report,
    human_bytes,
    plan_files,
    rank_ranges,
    rank_rows,
    to_html,
    to_markdown,
)
from sharding.smallest_cluster import smallest_cluster
from sharding.tables import TableSpec


def tables(count=4, rows=200_000_000, **changes):
    """Tables of about 100 GB each."""
    return tuple(
        TableSpec(
            name=f"t{i}", rows=rows + i, dim=128, features=(f"f{i}",), role="item_id", **changes
        )
        for i in range(count)
    )


def request(*clusters, **changes):
    """512 impressions a rank."""
    values = {
        "name": "test",
        "tables": tables(),
        "clusters": clusters or (Cluster(machine=h100(), nodes=2),),
        "batch_size": 512,
        "dense": DenseReserve(num_parameters=1_000_000_000),
    }
    return DryRunRequest(**{**values, **changes})


def test_memory_of_every_rank_adds_up_to_the_machine():
    """Weights, state, buffers, network, reserve and free; state and weights are exact."""
    asked = request(Cluster(machine=h100(), nodes=2))
    target = dry_run(asked).targets[0]
    memory = memory_by_part(asked, target)
    machine = h100()
    totals = [machine.hbm_bytes, machine.ddr_bytes, machine.ssd_bytes]
    np.testing.assert_array_equal(memory.sum(axis=2), np.tile(totals, (16, 1)))
    assert (memory >= 0).all()
    assert memory[:, :, 0].sum() == sum(table.num_bytes for table in asked.tables)
    assert (memory[:, 0, 3] == 16_000_000_000).all()
    assert memory[:, 0, 4].tolist() == [12_000_000_000] * 16


def test_state_counts_each_column_shard():
    """Row-wise Adagrad keeps a value for every row of every column shard."""
    asked = request(tables=tables(1, sharding_types=("column_wise",), kernels=("fused",)))
    target = dry_run(asked).targets[0]
    state = memory_by_part(asked, target)[:, 0, 1].sum()
    blocks = target.plan.tables[0].way.grid.num_shards
    assert blocks > 1
    assert state == 4 * asked.tables[0].rows * blocks


def test_fsdp_shares_the_network():
    """16 bytes a parameter over all ranks, and the unit that is gathered."""
    dense = DenseReserve(num_parameters=1_000, sharded=True, largest_unit=10)
    assert dense.bytes_per_rank(8) == 16 * 125 + 80
    assert replace(dense, sharded=False).bytes_per_rank(8) == 16_000


def test_a_cluster_that_does_not_fit_is_recorded_and_the_others_are_planned():
    """The reason has numbers, and each change named was planned."""
    small, large = Cluster(machine=h100(), nodes=1), Cluster(machine=h100(), nodes=8)
    asked = request(small, large, tables=tables(8, kernels=("fused",)))
    result = dry_run(asked)
    failed, planned = result.targets
    assert not result.fits
    assert planned.fits
    assert f"{needed_bytes(asked.tables) / 1e12:.3f} TB" in failed.reason
    assert "'t7'" in failed.reason
    words = " | ".join(failed.changes)
    assert "bf16 rows" in words or "int8 rows" in words
    assert "coldest tables" in words
    nodes = next(int(change.split()[0]) for change in failed.changes if "more nodes" in change)
    assert plan_target(asked, replace(small, nodes=1 + nodes)).fits
    assert not plan_target(asked, replace(small, nodes=nodes), explain=False).fits


def test_what_the_device_lacks_fails_that_target_alone():
    """Adam on CPU hosts is refused by name; GPUs are planned."""
    adam = tables(1, optimizer="adam", rows=1000)
    result = dry_run(
        request(Cluster(machine=cpu(), nodes=1), Cluster(machine=h100(), nodes=1), tables=adam)
    )
    assert "no CPU kernel for optimizer 'adam'" in result.targets[0].reason
    assert result.targets[1].fits


def test_fingerprints_follow_values():
    """Equal requests have equal fingerprints; any change gives another."""
    first, second = request(), request()
    assert first.fingerprint == second.fingerprint
    assert replace(first, batch_size=511).fingerprint != first.fingerprint
    other = replace(first, tables=tables(4, dtype="fp16"))
    assert other.fingerprint != first.fingerprint


def test_predicted_step_is_that_of_the_slowest_rank():
    """The rank where the sum of parts is largest; samples follow."""
    asked = request()
    plan = dry_run(asked).targets[0].plan
    step = predicted_step(plan, 512)
    total = plan.parts_by_rank().sum(axis=1)
    assert step.step_ms == pytest.approx(total.max())
    assert step.imbalance == pytest.approx(total.max() / total.mean())
    assert step.samples_per_s == pytest.approx(512_000 / total.max())
    parts = step.lookup_ms + step.exchange_ms + step.backward_ms + step.prefetch_ms
    assert parts >= step.step_ms - 1e-9


@pytest.mark.parametrize("machine", [h100(), h200(), cpu()], ids=lambda m: m.name)
def test_the_smallest_cluster_fits_and_one_node_less_does_not(machine):
    """Both are planned; larger ones are predicted."""
    asked = request(tables=tables(12, kernels=("fused",)))
    found = smallest_cluster(asked, machine)
    assert found.target.fits
    assert found.below is not None
    assert not found.below.fits
    assert found.below.cluster.nodes == found.target.cluster.nodes - 1
    least = found.target.cluster.nodes
    assert list(found.steps) == [least, 2 * least, 4 * least, 8 * least]


def test_one_node_may_be_enough():
    """Then there is nothing below."""
    found = smallest_cluster(request(tables=tables(1, rows=1000)), h100())
    assert found.target.cluster.nodes == 1
    assert found.below is None


def test_report_is_json_markdown_html_and_figures(tmp_path):
    """Every table and the verdict of every cluster stand in each form."""
    asked = request(
        Cluster(machine=h100(), nodes=1),
        Cluster(machine=h100(), nodes=4),
        tables=tables(8, kernels=("fused",)),
    )
    result = dry_run(asked)
    report = json.loads(json.dumps(build_plan_report(result)))
    figures = write_figures(report["targets"][1], tmp_path, "plan")
    assert [(tmp_path / name).stat().st_size > 5_000 for name in figures] == [True, True]
    for text in (to_markdown(report, figures), to_html(report, figures)):
        assert "DOES NOT FIT" in text
        assert "predicted step" in text
        assert all(table.name in text for table in asked.tables)
        assert all(name in text for name in figures)
    hostile = json.loads(json.dumps(report).replace(asked.tables[0].name, "<script>alert(1)"))
    page = to_html({**hostile, "name": "</title><script>alert(2)"}, ['"><script>x.png'])
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert set(plan_files(result)) == {"4 x h100 (32 GPUs)"}
    shown = rank_rows(report["targets"][1])
    assert any(row[1] == "HBM" for row in shown)


def test_differences_name_what_changed():
    """Tables, ways, step; equal reports differ in nothing."""
    before = build_plan_report(dry_run(request()))
    again = build_plan_report(dry_run(request()))
    assert difference(before, again) == []
    changed = request(tables=tables(3), batch_size=1024)
    after = build_plan_report(dry_run(changed))
    lines = difference(before, after)
    assert any("table t3: only in A" in line for line in lines)
    assert any("batch_size_per_rank: 512 -> 1024" in line for line in lines)
    assert any("predicted step" in line for line in lines)


def test_small_words():
    """Bytes in decimal units; ranks as ranges."""
    assert human_bytes(999) == "999 B"
    assert human_bytes(7_520_000_000_000) == "7.52 TB"
    assert rank_ranges([3, 1, 2, 7]) == "1-3, 7"
    assert rank_ranges([0, 2, 4, 6, 8, 10]) == "0, 2, 4, 6 and 2 more"
