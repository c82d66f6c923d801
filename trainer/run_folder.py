"""The run folder: what a run leaves behind, and where.

`config.json`, `plan.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/step_<10 digits>/`,
`report.json`, `report.html`, `figures/*.png`, `log/rank_<n>.log`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer.experiment import Experiment

OWN_PACKAGES = ("launch", "configs", "trainer", "sharding", "tokenization")
PACKAGES = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "pyarrow",
    "numpy",
    "lightgbm",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @staticmethod
    def predictions_of(split: str, step: int | None = None) -> str:
        """Name of the file of scores of a part of the log.

        Args:
            split: the part.
            step: of the checkpoint that scored it; None for the run's newest.
        """
        return f"predictions_{split}{'' if step is None else f'_step_{step:010d}'}.parquet"

    @property
    def result(self) -> Path:
        """Metrics and cost of the finished run; its presence says that the run is finished."""
        return self.path / "result.json"

    @property
    def given_plan(self) -> Path:
        """Sharding plan that the run was told to execute, where it was."""
        return self.path / "given_plan.json"

    @property
    def given_warm_start(self) -> Path:
        """What the run was told to take over from another, where it was."""
        return self.path / "given_warm_start.json"

    @property
    def warm_start_report(self) -> Path:
        """What became of each table and tensor in a warm start."""
        return self.path / "warm_start.json"

    def log(self, rank: int) -> Path:
        """Log file of one rank."""
        return self.path / "log" / f"rank_{rank}.log"

    def create(self, experiment: Experiment) -> None:
        """Make the folder and write `config.json`, the record of what runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path / "config.json",
            {
                "experiment": experiment.to_dict(),
                "fingerprint": experiment.fingerprint,
                "git_revision": git_revision(),
                "versions": package_versions(),
                "machine": describe_machine(),
            },
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename, so that readers never see half of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results, where installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and accelerators."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ],
    }


def git_revision() -> str | None:
    """Revision of the source tree, `-dirty` when it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def log_to(path: Path) -> None:
    """Send this process's log records and Python warnings to a file.

    Ours are written from INFO on, other packages' from WARNING on; the terminal shows our
    warnings alone, since a newcomer can't act on those of the packages below.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    terminal.addFilter(lambda record: record.name.split(".")[0] in OWN_PACKAGES)
    logging.basicConfig(level=logging.WARNING, handlers=[file, terminal], force=True)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    torch_logger = logging.getLogger("torch")
    for handler in torch_logger.handlers:
        handler.setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
