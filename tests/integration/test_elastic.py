"""An elastic job that loses a node goes on with the others."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torchx.specs.builders import materialize_appdef

from launch import components
from trainer.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    *("--train.num-epochs", "40", "--train.max-steps", "600", "--train.checkpoint-every", "20"),
    *("--train.eval-every", "1000", "--train.precision", "fp32"),
]


def agent(folder, port, workspace):
    """What a scheduler would start on a node for `-j 1:2x1`."""
    words = ["--experiment", "trm_rankmixer.smoke", "--folder", str(folder), "-j", "1:2x1"]
    words += ["-h", "laptop", "--rdzv_port", str(port), "--", *WORDS]
    (role,) = materialize_appdef(components.train, words).roles
    command = re.sub(r"\$\$\{.*?:=localhost\}", "localhost", role.args[1])
    command = command.replace("${app_id}", "elastic")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [role.entrypoint, "-c", command],
        cwd=workspace,
        env={**os.environ, **role.env, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_until_it_listens(port):
    """Until a rendezvous is there."""
    deadline = time.monotonic() + 60
    while not any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.net_connections("tcp")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.slow
def test_the_node_that_is_left_finishes_the_run(workspace):
    folder = workspace / "runs" / "elastic"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The node that is left has to be the one with the rendezvous: it comes first.
    agents = [agent(folder, port, workspace)]
    try:
        wait_until_it_listens(port)
        agents.append(agent(folder, port, workspace))
        first, second = agents
        deadline = time.monotonic() + 150
        while len(Checkpoints(folder / "checkpoints").complete()) < 2:
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.1)
        lost = psutil.Process(second.pid)
        for process in [*lost.children(recursive=True), lost]:
            process.kill()
        assert not (folder / "result.json").exists()
        assert first.wait(timeout=240) == 0
    finally:
        for process in agents:
            if process.poll() is None:
                process.kill()
    result = json.loads((folder / "result.json").read_text())
    assert result["num_ranks"] == 1
    assert "resumed" in (folder / "log" / "rank_0.log").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 600
