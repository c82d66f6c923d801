"""The jobs whose manifests are kept in `manifests/`, to be read by people and compared by a test.

When a change of launch/components.py is meant to change them, write them anew with
`python -m tests.unit.launch.dry_runs`, and read the difference before committing it.
"""

import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from torchx.runner import get_runner
from torchx.schedulers import aws_batch_scheduler, kubernetes_scheduler
from torchx.schedulers.slurm_scheduler import SlurmScheduler

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(__file__).resolve().parent / "manifests"
COMPONENTS = f"{ROOT / 'launch' / 'components.py'}"

TRAIN = [
    *("--experiment", "trm_rankmixer.movielens1m", "--folder", "/shared/runs/mine"),
    *("--image", "registry.example.com/farewell:0.1.0", "-h", "h100x8"),
]
MOUNT = ["--mounts", "type=bind,src=/shared,dst=/shared"]
JOBS = {
    "slurm_train.sh": (
        "slurm",
        {"partition": "gpu", "time": "1-00:00:00"},
        "train",
        [*TRAIN, "-j", "2x8", "--network", "ib0", "--", "--train.max-steps", "100"],
    ),
    "slurm_tokenize.sh": (
        "slurm",
        {},
        "tokenize",
        ["-h", "cpu_host", "--", "--embeddings", "/shared/e.parquet", "--out", "/shared/tokens"],
    ),
    "kubernetes_train.yaml": (
        "kubernetes",
        {"queue": "default"},
        "train",
        [*TRAIN, *MOUNT, "-j", "2x8", "--network", "eth0"],
    ),
    "kubernetes_train_elastic.yaml": (
        "kubernetes",
        {"queue": "default"},
        "train",
        [*TRAIN, *MOUNT, "-j", "1:3x8"],
    ),
    "aws_batch_train.yaml": (
        "aws_batch",
        {"queue": "gpu", "user": "someone"},
        "train",
        [*TRAIN, *MOUNT, "-j", "2x8", "--network", "eth0"],
    ),
}


def manifest(name):
    """What torchx would submit; the random part of names is left out."""
    scheduler, settings, component, words = JOBS[name]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Volcano's retries, instance types: see docs/clusters.md
        for module in (kubernetes_scheduler, aws_batch_scheduler):
            stack.enter_context(patch.object(module, "make_unique", lambda name: f"{name}-unique"))
        stack.enter_context(patch.object(SlurmScheduler, "_partition_memmb", return_value=None))
        runner = stack.enter_context(get_runner())
        info = runner.dryrun_component(f"{COMPONENTS}:{component}", words, scheduler, settings)
        return str(info).strip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in JOBS:
        (FOLDER / name).write_text(manifest(name))
