"""The virtual environment in which other libraries run, made on first use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from trainer.data.pypi_source import cache_folder

REQUIREMENTS = (
    "torch==2.13.0",
    "torch-rechub==0.9.0",
    "deepctr-torch==0.3.0",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "scikit-learn==1.9.1",
    "tqdm==4.70.1",
    "requests==2.32.5",  # deepctr-torch imports it without requiring it
)


def peers_python() -> Path:
    """Interpreter of the peers' environment, which is made when it is not there.

    Raises:
        subprocess.CalledProcessError: when a package can't be installed.
    """
    key = hashlib.sha256("\n".join(REQUIREMENTS).encode()).hexdigest()[:12]
    folder = cache_folder() / f"peers-{key}"
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if finished.is_file():
        return python
    print(f"making the peers' environment in {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    finished.touch()
    return python


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of what is installed there, keyed `peers/<package>`."""
    names = [requirement.split("==")[0] for requirement in REQUIREMENTS]
    program = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({'peers/' + n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [python, "-c", program, *names], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout))


def environment(threads: int) -> dict[str, str]:
    """This process's environment with `threads` threads, without anything that torchrun set.

    Threads sleep while they wait: spinning costs every side a multiple of its time when anything
    else, a reader's thread for instance, wants the same cores.
    """
    ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def own_python() -> Path:
    """Interpreter of this environment."""
    return Path(sys.executable)
