"""Jobs that `torchx run -s local_cwd` starts: two agents of one rank each, as on two nodes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SHORT = [
    *("--train.max-steps", "4", "--train.log-every", "2", "--train.eval-every", "100"),
    *("--train.precision", "fp32", "--train.batch-size", "512"),
]


def torchx(workspace, component, *words):
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [
            *(str(BIN / "torchx"), "run", "--workspace", "", "--wait", "-s", "local_cwd"),
            f"{ROOT / 'launch' / 'components.py'}:{component}",
            *map(str, words),
        ],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def run(workspace):
    """Run folder of a training job of two agents."""
    folder = workspace / "runs" / "torchx"
    words = ["--experiment", "trm_rankmixer.smoke", "--folder", folder, "-j", "2x1"]
    words += ["-h", "laptop", "--rdzv_port", free_port(), "--max_restarts", 0, "--", *SHORT]
    found = torchx(workspace, "train", *words)
    assert found.returncode == 0, found.stdout + found.stderr + logs(folder)
    return folder


def logs(folder):
    return "\n".join(path.read_text()[-3000:] for path in folder.rglob("std*.log"))


def test_two_agents_train_one_run(run):
    result = json.loads((run / "result.json").read_text())
    assert result["num_ranks"] == 2
    assert (run / "report.html").is_file()


def test_every_rank_has_its_logs(run):
    assert {path.name for path in (run / "log").glob("rank_*.log")} == {"rank_0.log", "rank_1.log"}
    printed = sorted((run / "log" / "torchrun").rglob("stdout.log"))
    assert len(printed) == 2
    assert any("preflight: 2 ranks on 1 hosts" in path.read_text() for path in printed)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["2x1", "1x1"])
def test_evaluation_runs_on_any_number_of_ranks(run, workspace, shape):
    words = ["--experiment", "trm_rankmixer.smoke", "--folder", run, "-j", shape, "-h", "laptop"]
    words += ["--rdzv_port", free_port(), "--", *SHORT, "--split", "valid", "--json", "valid.json"]
    found = torchx(workspace, "evaluate", *words)
    assert found.returncode == 0, found.stdout + found.stderr + logs(run)
    report = json.loads((workspace / "valid.json").read_text())
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["valid/click_auc"] for line in last if "valid/click_auc" in line]
    assert report["rows"][0]["metrics"]["click"]["auc"] == pytest.approx(trained[-1], abs=1e-6)


@pytest.mark.slow
def test_other_verbs_run_as_jobs(workspace):
    words = ["-h", "laptop", "--", "--embeddings", "e.parquet", "--out", "tokens"]
    assert torchx(workspace, "tokenize", *words).returncode != 0  # there is no e.parquet
    words = ["--experiment", "trm_rankmixer.smoke", "-h", "laptop", "--", "--json", "plan.json"]
    found = torchx(workspace, "plan", *words)
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads((workspace / "plan.json").read_text())["fits"]
