import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    *("--train.max-steps", "8", "--train.log-every", "2", "--train.eval-every", "4"),
    *("--train.checkpoint-every", "4", "--train.precision", "fp32"),
    *("--train.batch-size", "1024"),
]
COMPARISON = """
from dataclasses import replace
from configs import id_vs_tokens

def short():
    full = id_vs_tokens.smoke()
    row = full.rows[-1]
    train = replace(row.experiment.train, max_steps=3, precision="fp32")
    row = replace(row, experiment=replace(row.experiment, train=train))
    return replace(full, rows=(row,), baselines=full.baselines[:1])
"""


def farewell(workspace, *words):
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, words)],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def run(workspace):
    """Run folder of a training run on two ranks that was started from the command line."""
    words = ["trm_joint.smoke", *SHORT, "--folder", "runs/one", "--json", "one.json"]
    words += ["--train.keep-best", "valid/click_auc"]
    found = farewell(workspace, "train", *words, "--ranks", 2)
    (workspace / "said.txt").write_text(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "runs/one" in found.stdout
    assert "Traceback" not in found.stderr
    return workspace / "runs" / "one"


@pytest.fixture(scope="module")
def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_holds_what_the_contract_says(run, workspace):
    for name in (
        "config.json",
        "plan.json",
        "metrics.jsonl",
        "result.json",
        "report.json",
        "report.html",
    ):
        assert (run / name).is_file(), name
    for rank in (0, 1):
        assert (run / "log" / f"rank_{rank}.log").is_file()
    assert list((run / "tensorboard").glob("events.*"))
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step_0000000004", "step_0000000008"]
    assert not list(run.rglob("*.tmp"))
    result = json.loads((run / "result.json").read_text())
    assert result == json.loads((workspace / "one.json").read_text())
    assert (result["num_ranks"], result["samples"]) == (2, 8 * 1024)
    assert result["dense_params"] > 0
    assert result["flops_per_batch"] > 2 * 3 * result["dense_params"]  # some rows repeat products


def test_used_folder_is_refused_without_resume(run, workspace):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix != ".log"}
    words = ["trm_joint.smoke", *SHORT, "--folder", "runs/one"]
    found = farewell(workspace, "train", *words)
    assert found.returncode != 0
    assert "holds an earlier run" in found.stderr
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix != ".log"}
    assert {path: after[path] for path in before if path.is_file()} == {
        path: before[path] for path in before if path.is_file()
    }


def test_record_holds_settings_versions_and_machine(run):
    record = json.loads((run / "config.json").read_text())
    assert record["experiment"]["train"]["max_steps"] == 8
    assert {"torch", "torchrec", "python"} <= set(record["versions"])
    assert len(record["fingerprint"]) == 64
    assert record["machine"]["cores"] >= 1


def test_plan_names_every_table(run):
    plan = json.loads((run / "plan.json").read_text())
    modules = plan.get("modules", plan)
    text = json.dumps(modules)
    for table in ("user_id", "gen_token", "mem_token", "query_cluster"):
        assert f'"{table}"' in text


def test_metrics_are_told_in_their_rhythm(lines):
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8]
    assert [line["samples"] for line in trained] == [2048, 4096, 6144, 8192]
    evaluated = [line for line in lines if "valid/click_auc" in line]
    assert [line["step"] for line in evaluated] == [4, 8]
    for line in evaluated:
        assert 0 < line["valid/click_auc"] < 1
        assert line["valid/play_logloss"] > 0


def test_tensorboard_reads_back_the_same_numbers(run, lines):
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert tags >= {
        "train/loss",
        "train/gradient_norm",
        "train/dense_lr",
        "valid/click_auc",
        "valid/play_auc",
        "valid/click_logloss",
        "throughput/samples_per_s",
        "step_ms/data",
        "step_ms/forward",
        "step_ms/backward",
        "step_ms/step",
        "table_norm/user_id",
        "table_norm/gen_token",
        "table_norm/mem_token",
        *(f"tokens/level_{level}_use" for level in range(4)),
    }
    told = {
        (tag, line["step"]): value
        for line in lines
        for tag, value in line.items()
        if tag not in ("step", "samples", "time")
    }
    read = {(tag, event.step): event.value for tag in tags for event in board.Scalars(tag)}
    assert read.keys() == told.keys()
    for key, value in told.items():
        assert read[key] == pytest.approx(value, rel=1e-5), key


def test_numbers_are_plausible(lines):
    last = [line for line in lines if "train/loss" in line][-1]
    parts = last["step_ms/forward"] + last["step_ms/backward"]
    assert 0 < parts <= last["step_ms/step"]
    assert last["throughput/samples_per_s"] == pytest.approx(
        1024e3 / last["step_ms/step"], rel=0.01
    )
    assert all(0 < last[f"tokens/level_{level}_use"] <= 1 for level in range(4))
    assert last["table_norm/gen_token"] > 0
    assert last["train/next_token"] > 0
    assert last["train/loss"] == pytest.approx(
        last["train/discriminative"] + 0.1 * last["train/next_token"], rel=1e-4
    )


def test_training_says_which_checkpoint_is_taken_where_it_is_not_the_last(workspace, lines):
    early, last = (line["valid/click_auc"] for line in lines if "valid/click_auc" in line)
    said = " ".join((workspace / "said.txt").read_text().split())
    told = f"`farewell export` take step 4 (best by valid/click_auc, {early:.5f}) unless told"
    assert (told in said) == (early >= last)


def test_evaluate_scores_a_part_with_the_checkpoint_that_is_asked_for(run, workspace, lines):
    """Of a run that was stopped before its end, too."""
    stopped = workspace / "runs" / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "result.json").unlink()
    words = ["trm_joint.smoke", *SHORT, "--folder", "runs/stopped", "--checkpoint", "4"]
    words += ["--split", "valid", "--json", "valid.json", "--generate", "12"]
    found = farewell(workspace, "evaluate", *words)
    assert found.returncode == 0, found.stdout + found.stderr
    report = json.loads((workspace / "valid.json").read_text())
    (row,) = report["rows"]
    evaluated, last = (line for line in lines if "valid/click_auc" in line)
    assert evaluated["valid/click_auc"] != last["valid/click_auc"]
    assert report["checkpoint"] == {"step": 4, "chosen": "asked for"}
    assert "checkpoint of step 4 (asked for)" in found.stdout
    assert (stopped / "predictions_valid_step_0000000004.parquet").is_file()
    assert not (stopped / "predictions_valid.parquet").exists()
    assert row["metrics"]["click"]["auc"] == pytest.approx(evaluated["valid/click_auc"], abs=1e-6)
    generation = report["generation"]
    assert (generation["split"], generation["beam_width"]) == ("valid", 12)
    assert 0 < generation["popularity"] <= 1
    assert 0 <= generation["generated"] <= 1
    assert generation["ratio"] == generation["generated"] / generation["popularity"]
    assert "generated / most popular" in found.stdout


def test_compare_trains_each_cell_once(workspace):
    (workspace / "mine.py").write_text(COMPARISON)
    words = ["compare", "mine.py:short", "--ranks", 1, "--folder", "runs/compared"]
    first = farewell(workspace, *words)
    assert first.returncode == 0, first.stdout + first.stderr
    folder = workspace / "runs" / "compared"
    results = sorted((workspace / "runs" / "cells").glob("*/result.json"))
    assert len(results) == 1
    times = [path.stat().st_mtime_ns for path in results]
    report = json.loads((folder / "report.json").read_text())
    second = farewell(workspace, *words)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [path.stat().st_mtime_ns for path in results] == times
    assert "seed 0: runs/cells" in first.stdout
    assert "seed 0: runs/cells" not in second.stdout
    again = json.loads((folder / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[0].startswith("best possible")
    assert names[-1] == "RankMixer (hybrid = TRM)"
    assert len(names) == 3
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in report["rows"]]
    page = (folder / "report.html").read_text()
    assert "RankMixer (hybrid = TRM)" in page
    assert '<img src="http' not in page


def test_error_of_a_rank_reaches_the_terminal_as_one_message(workspace, run):
    words = ["trm_joint.smoke", *SHORT, "--optim.sparse-lr", "0.5", "--folder", "runs/one"]
    found = farewell(workspace, "train", *words, "--ranks", 2, "--resume")
    assert found.returncode == 1
    said = found.stdout + found.stderr
    assert "saved by an experiment with fingerprint" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.batch-size", 1023], "train.batch_size is 1023, which 2 ranks can't share"),
        (["--train.max-stepz", 3], "max-stepz"),
        (["--data.folder", "nowhere"], "nowhere"),
    ],
)
def test_failure_ends_with_one_message_and_no_traceback(workspace, words, message):
    found = farewell(workspace, "train", "trm_rankmixer.smoke", *words, "--ranks", 2)
    assert found.returncode != 0
    said = found.stdout + found.stderr
    assert message in said
    assert "Traceback" not in said
