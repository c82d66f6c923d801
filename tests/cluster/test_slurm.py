"""Jobs that `torchx run -s slurm` gives to a small Slurm; `make test-cluster` runs them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import NODES, SlurmCluster, available
from tests.integration.conftest import workspace  # noqa: F401
from trainer.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
MUST_RUN = os.environ.get("FAREWELL_TEST_CLUSTER") == "1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not available() and not MUST_RUN, reason="needs root and Slurm: make test-cluster"
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    yield cluster
    cluster.stop()


class Desk:
    """Submits jobs from a folder with data in it, as a user would."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder

    def submit(self, experiment, run, shape, *options, retries=0):
        """Give a training job to Slurm through torchx; its id."""
        port = 20_000 + os.getpid() % 20_000
        found = subprocess.run(
            [
                *(str(_bin() / "torchx"), "run", "--workspace", "", "-s", "slurm"),
                f"{ROOT}/launch/components.py:train",
                *("--experiment", f"{ROOT}/tests/cluster/experiments.py:{experiment}"),
                *("--folder", str(run), "-j", shape, "-h", "laptop"),
                *("--max_retries", str(retries), "--max_restarts", "0"),
                *("--rdzv_port", str(port), "--env", f"PYTHONPATH={ROOT}"),
                "--",
                *options,
            ],
            cwd=self.folder,
            env={**self.cluster.environment, "PATH": f"{_bin()}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout.strip().splitlines()[-1].rsplit("/", 1)[1]

    def status(self, job):
        """What torchx says of a job."""
        return subprocess.run(
            [str(_bin() / "torchx"), "status", f"slurm://torchx/{job}"],
            cwd=self.folder,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        ).stdout

    def wait(self, job, timeout=300):
        """Wait until a job is over."""
        deadline = time.monotonic() + timeout
        while job in self.cluster.jobs():
            assert time.monotonic() < deadline, self.logs(job) + str(self.cluster.jobs())
            time.sleep(0.5)

    def logs(self, job):
        """What a job's nodes printed."""
        paths = sorted(self.folder.glob(f"slurm-{job}*"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-6000:]}" for path in paths)


def _bin():
    return Path(sys.executable).parent


@pytest.fixture(scope="module")
def desk(cluster, workspace):  # noqa: F811
    return Desk(cluster, workspace)


def result(desk, job, run):
    assert (run / "result.json").exists(), desk.logs(job)
    return json.loads((run / "result.json").read_text())


def wait_for_checkpoint(run, step, timeout=120):
    deadline = time.monotonic() + timeout
    checkpoints = Checkpoints(run / "checkpoints")
    while True:
        newest = checkpoints.newest()
        if newest is not None and int(newest.name.removeprefix("step_")) >= step:
            return
        assert time.monotonic() < deadline, f"no checkpoint of step {step} in {run}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def whole(desk, tmp_path_factory):
    """Run folder of the long experiment, not disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    job = desk.submit("long", run, "2x1")
    desk.wait(job)
    assert result(desk, job, run)["num_ranks"] == 2
    return run


def test_two_nodes_train_after_a_preflight(desk, tmp_path):
    run = tmp_path / "run"
    job = desk.submit("short", run, "2x1")
    desk.wait(job)
    assert result(desk, job, run)["num_ranks"] == 2
    assert "preflight: 2 ranks on" in desk.logs(job)
    for rank in range(2):
        assert (run / "log" / f"rank_{rank}.log").is_file()
    assert len(list((run / "log" / "torchrun").rglob("stderr.log"))) == 2
    assert (run / "report.html").is_file()
    assert "SUCCEEDED" in desk.status(job)


@pytest.mark.parametrize("experiment", ["table_row_wise", "grid"])
def test_plans_that_know_of_nodes_train_on_two_ranks_each(desk, tmp_path, experiment):
    run = tmp_path / "run"
    job = desk.submit(experiment, run, "2x2")
    desk.wait(job)
    assert result(desk, job, run)["num_ranks"] == 4
    pooled = json.loads((run / "plan.json").read_text())["sparse.pooled"]
    kind = "grid_shard" if experiment == "grid" else "table_row_wise"
    assert {table["sharding_type"] for table in pooled.values()} == {kind}
    ranks = [{shard["rank"] for shard in table["shards"]} for table in pooled.values()]
    if experiment == "grid":
        assert {0, 1, 2, 3} in ranks
    else:
        assert all(on in ({0, 1}, {2, 3}) for on in ranks)
        assert {0, 1} in ranks and {2, 3} in ranks
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["train/loss"] for line in losses if "train/loss" in line]
    assert trained[-1] < trained[0]


def test_when_a_node_dies_the_job_goes_on_with_the_spare_one_to_the_same_result(
    desk, cluster, whole, tmp_path
):
    run = tmp_path / "run"
    job = desk.submit("long", run, "2x1", retries=3)
    wait_for_checkpoint(run, 40)
    cluster.kill_node(NODES[1])
    assert not (run / "result.json").exists(), "the job was over before the node was killed"
    desk.wait(job)
    cluster.start_node(NODES[1])
    result(desk, job, run)
    assert "resumed" in (run / "log" / "rank_0.log").read_text()
    name = "predictions_test.parquet"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_job_that_is_told_to_stop_saves_is_started_again_and_ends_with_the_same_result(
    desk, cluster, whole, tmp_path
):
    run = tmp_path / "run"
    job = desk.submit("long", run, "2x1", retries=3)
    wait_for_checkpoint(run, 40)
    cluster.run("scancel", "--signal=TERM", job)
    desk.wait(job)
    result(desk, job, run)
    steps = [int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")]
    log = (run / "log" / "rank_0.log").read_text()
    assert "SIGTERM: finishing the step, then saving" in log
    assert "resumed" in log
    assert 400 in steps
    name = "predictions_test.parquet"
    assert (run / name).read_bytes() == (whole / name).read_bytes()
