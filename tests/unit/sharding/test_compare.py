"""The comparison at the paper's scale: totals, minima, forms of the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from configs import storage
from launch import compare
from sharding.compare import StorageComparison, compare_storage, storage_markdown


def test_totals_are_the_papers_and_no_table_is_a_filler():
    """Within 1 %; every table has rows and a usual dim, and counts once."""
    for system in storage.trm_paper().systems:
        if system.published_parameters is not None:
            assert system.num_parameters == pytest.approx(system.published_parameters, rel=0.01)
        assert all(table.rows >= 1_000 for table in system.tables)
        assert all(table.dim in (64, 128, 192) for table in system.tables)
    items, *_ = storage.trm_paper().systems
    item_table = next(table for table in items.tables if table.role == "item_id")
    assert 2.45e12 <= item_table.num_parameters <= 2.46e12
    assert item_table.rows == pytest.approx(1.3e10, rel=0.04)


def test_minima_are_planned_on_both_sides():
    """At the least number of nodes there is a plan; one node below there is none."""
    comparison = storage.smoke()
    report = compare_storage(comparison)
    ids, tokens = report["systems"]
    for system in (ids, tokens):
        entry = system["machines"]["h100"]
        assert entry["fits"]
        assert entry["one_node_less_fits"] is False
        assert "short" in entry["one_node_less"] or "pieces" in entry["one_node_less"]
        assert entry["num_ranks"] == 8 * entry["nodes"]
    assert tokens["num_parameters"] < ids["num_parameters"]
    assert tokens["machines"]["h100"]["nodes"] <= ids["machines"]["h100"]["nodes"]
    assert ids["checkpoint_bytes"] == ids["weight_bytes"] + ids["state_bytes"]


def test_the_command_leaves_every_form(tmp_path, monkeypatch, capsys):
    """JSON, markdown, figure and terminal name every table and system."""
    monkeypatch.chdir(tmp_path)
    compare.main(["storage.smoke", "--json", "out.json"])
    folder = tmp_path / "runs" / "storage.smoke"
    report = json.loads((folder / "storage_report.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert (folder / "storage.png").stat().st_size > 5_000
    text = (folder / "storage_report.md").read_text()
    shown = capsys.readouterr().out
    for system in storage.smoke().systems:
        assert system.title in text
        assert all(f"| {table.name} |" in text for table in system.tables)
        assert all(table.name in shown for table in system.tables)
    assert text == storage_markdown(report, ("storage.png",))


def test_wrong_comparisons_are_refused():
    """Titles tell rows apart."""
    comparison = storage.smoke()
    with pytest.raises(ValueError, match="title stands twice"):
        replace(comparison, systems=comparison.systems * 2)
    with pytest.raises(ValueError, match="expected systems"):
        StorageComparison(name="x", systems=(), machines=comparison.machines, batch_size=1)
    with pytest.raises(ValueError, match="expected Comparison, StorageComparison or Struct"):
        compare.main(["trm_rankmixer.smoke"])
