"""`farewell plan`: files, exit codes, machines, differences."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch import plan, train
from sharding.hardware import h100, machine_to_json

EXPERIMENT = "trm_rankmixer.smoke"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without data: the plan needs none."""
    monkeypatch.chdir(tmp_path)


def run(*args):
    """Plan the smoke experiment."""
    plan.main([EXPERIMENT, *args])


def test_every_file_of_a_plan_is_left(tmp_path, capsys):
    """Report in four forms, a plan for each cluster, and the table in the terminal."""
    run("--cluster", "h100", "cpu", "--nodes", "2", "1", "--folder", "out", "--json", "out.json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "plan_report.json",
        "plan_report.md",
        "plan_report.html",
        *(
            f"plan_{cluster}{end}"
            for cluster in ("h100_2", "cpu_1")
            for end in (".json", "_memory.png", "_shards.png")
        ),
    }
    report = json.loads((tmp_path / "out.json").read_text())
    assert report == json.loads((tmp_path / "out" / "plan_report.json").read_text())
    assert [target["num_ranks"] for target in report["targets"]] == [16, 8]
    planned = json.loads((tmp_path / "out" / "plan_cpu_1.json").read_text())
    assert planned["num_ranks"] == 8
    assert planned["fingerprint"] == report["fingerprint"]
    shown = capsys.readouterr().out
    for words in ("gen_token", "mem_token", "predicted step", "data/smoke"):
        assert words in shown


def test_the_exit_code_tells_that_a_cluster_does_not_fit(tmp_path):
    """A machine with a hundred bytes beside one that fits: both are in the report."""
    tiny = {**machine_to_json(h100()), "name": "tiny", "hbm_bytes": 100, "ddr_bytes": 100}
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    with pytest.raises(SystemExit) as ended:
        run("--cluster", "tiny.json", "h100", "--folder", "out")
    assert ended.value.code == 1
    report = json.loads((tmp_path / "out" / "plan_report.json").read_text())
    assert [target["fits"] for target in report["targets"]] == [False, True]
    assert "tiny" in report["targets"][0]["reason"]


def test_the_smallest_cluster_of_each_machine(tmp_path):
    """One node each holds so little; the step is predicted at 1, 2, 4 and 8."""
    run("--smallest", "--cluster", "a100", "b200", "--json", "small.json")
    found = json.loads((tmp_path / "small.json").read_text())["smallest"]
    assert [(entry["machine"], entry["nodes"]) for entry in found] == [("a100", 1), ("b200", 1)]
    assert list(found[0]["step_ms_by_nodes"]) == ["1", "2", "4", "8"]


def test_a_difference_is_of_two_reports(tmp_path):
    (tmp_path / "plan.json").write_text('{"tables": []}')
    (tmp_path / "half.json").write_text("{")
    for name, found in (("plan.json", "it has no"), ("half.json", "found"), ("no.json", "found")):
        path = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: expected a plan_report.json.*{found}"):
            plan.main(["--diff", path, path])


def test_differences_of_two_plans(capsys):
    """A batch twice as large changes the request and the predicted step."""
    run("--folder", "a", "--batch-size", "64")
    run("--folder", "b", "--batch-size", "128")
    capsys.readouterr()
    plan.main(["--diff", "a/plan_report.json", "a/plan_report.json"])
    assert capsys.readouterr().out == "no difference\n"
    plan.main(["--diff", "a/plan_report.json", "b/plan_report.json"])
    assert "batch_size_per_rank: 64 -> 128" in capsys.readouterr().out


def test_machines_of_ones_own(tmp_path):
    """From a python file; unknown names list the known ones."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom sharding.hardware import h100\n\n\n"
        "def twin():\n    return replace(h100(), name='twin', ranks_per_node=2)\n"
    )
    assert plan.load_machine(f"{tmp_path}/mine.py:twin").ranks_per_node == 2
    with pytest.raises(ValueError, match="expected a100, h100, h200, b200, cpu"):
        plan.load_machine("h1000")
    with pytest.raises(ValueError, match="3 numbers for 1 clusters"):
        run("--nodes", "1", "2", "3")


def test_the_guide_names_options_that_exist():
    """Every option in docs/planning.md is a field of the command that its line calls."""
    guide = (Path(__file__).resolve().parents[3] / "docs" / "planning.md").read_text()
    commands = re.findall(r"^    farewell (\w+) (.*)$", guide, re.MULTILINE)
    assert {verb for verb, _ in commands} == {"plan", "train", "compare"}
    known = {
        "plan": {*plan.PlanCommand.__annotations__, *plan.CalibrateCommand.__annotations__, "diff"},
        "train": set(train.TrainCommand.__annotations__),
    }
    for verb, rest in commands:
        for option in re.findall(r"--([a-z-]+)", rest):
            assert option.replace("-", "_") in known[verb], (verb, option)
