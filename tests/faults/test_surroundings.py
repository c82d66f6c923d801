"""Clocks, ports and memory that are not as they should be."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.processes import assert_same_end, free_port, job, train_words

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

DAY = 86_400


def environment(rank, num_ranks, port):
    """What torchrun gives a rank."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def another_clock(tmp_path_factory):
    """A library that sets the clock of the process that preloads it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), which the library with another clock is made with")
    library = tmp_path_factory.mktemp("clock") / "another_clock.so"
    source = Path(__file__).with_name("another_clock.c")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(words, check=True)
    return library


def test_rank_whose_clock_is_a_day_ahead(data, whole_long, another_clock, tmp_path):
    clock = {"LD_PRELOAD": str(another_clock), "CLOCK_OFFSET_SECONDS": str(DAY)}
    words = [sys.executable, "-c", "import time; print(time.time())"]
    with job(words, tmp_path, **clock) as asked:
        assert asked.wait() == 0
        assert float(asked.said) - time.time() == pytest.approx(DAY, abs=60)
    folder, port = tmp_path / "run", free_port()
    words = train_words("killed", data, folder)
    with (
        job(words, tmp_path, **environment(0, 2, port)) as first,
        job(words, tmp_path, **environment(1, 2, port), **clock) as second,
    ):
        assert first.wait() == 0, first.said
        assert second.wait() == 0, second.said
    assert_same_end(folder, whole_long, 120)


def test_port_that_is_taken_is_named(data, tmp_path):
    folder = tmp_path / "run"
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with job(train_words("tiny", data, folder), tmp_path, **environment(0, 1, port)) as running:
            assert running.wait(60) == 1
    assert f"ranks can't meet at 127.0.0.1:{port} (MASTER_ADDR and MASTER_PORT)" in running.said
    assert "address already in use" in running.said
    assert "choose another (--rdzv_port" in running.said
    assert "Traceback" not in running.said
    assert not folder.exists()


def test_tables_that_do_not_fit_are_refused_before_any_memory_is_taken(data, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*.*")}
    words = train_words("too_large", data, folder, "--resume")
    with job(words, tmp_path, **environment(0, 1, free_port())) as running:
        assert running.wait() == 1
    assert "no sharding plan for" in running.said
    assert "(the largest, 'user_id', 12" in running.said  # 10^11 rows x 32 x 4 bytes, and state
    assert "Use fewer rows, a smaller dim, dtype='fp16', or more ranks." in running.said
    assert "Traceback" not in running.said
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads((folder / "result.json").read_text())["num_ranks"] == 1
