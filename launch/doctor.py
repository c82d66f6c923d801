"""Check this installation and say how to mend it.

    farewell doctor
    farewell doctor --preflight --ranks 2
    torchrun --nnodes 2 --nproc-per-node 8 ... -m launch.cli doctor --preflight

The first looks at the packages. A preflight lets every rank exchange numbers with every other, and
names a rank that does not answer.

It imports the packages below in processes of their own, so that it still speaks when they break.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

PAIRS = {
    "2.13": {"torchrec": "1.8", "fbgemm": "1.8"},
    "2.14": {"torchrec": "1.9", "fbgemm": "1.9"},
}
"""torch release -> releases of TorchRec and FBGEMM that work with it; others crash."""

MEND = "python -m pip install -r requirements/cpu.txt (cuda.txt on GPUs)"
MEND_TORCHREC = "python -m pip install --no-deps -r requirements/torchrec.txt"
CANARY = "launch.doctor_canary"


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is checked.

    Args:
        canary: train a row-wise table for a step, which shows that the kernels work.
        preflight: do a preflight instead.
        ranks: of the preflight, on this machine (under torchrun, torchrun decides).
        seconds: that ranks have to answer in the preflight.
    """

    canary: bool = True
    preflight: bool = False
    ranks: int = 1
    seconds: float = 180.0


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        what: was looked at.
        found: there.
        mend: what to do; None when all is well.
    """

    what: str
    found: str
    mend: str | None = None


def main(args: Sequence[str]) -> None:
    """Run `farewell doctor`; exit code 1 when something is wrong."""
    options = tyro.cli(DoctorOptions, prog="farewell doctor", description=__doc__, args=args)
    if options.preflight:
        _preflight(options)
        return
    for name in ("ranks", "seconds"):
        if getattr(options, name) != getattr(DoctorOptions, name):
            raise ValueError(f"--{name} is of --preflight alone")
    findings = examine(canary=options.canary)
    table = Table(title="farewell doctor")
    for column in ("", "looked at", "found"):
        table.add_column(column)
    for finding in findings:
        table.add_row(
            "[green]ok[/green]" if finding.mend is None else "[red]!![/red]",
            finding.what,
            finding.found,
        )
    console = Console()
    console.print(table)
    ill = [finding for finding in findings if finding.mend is not None]
    for finding in ill:
        console.print(f"[bold]{finding.what}[/bold]: {finding.mend}", soft_wrap=True)
    if ill:
        raise SystemExit(1)
    console.print("all is well")


def _preflight(options: DoctorOptions) -> None:
    # Not at the top of the file: these import torch, and the doctor must speak when torch breaks.
    from launch.preflight import print_preflight
    from launch.ranks import run_on_ranks, under_torchrun

    if not options.canary:
        raise ValueError("--no-canary has no effect with --preflight, which trains nothing")
    if under_torchrun():
        if options.ranks != DoctorOptions.ranks:
            raise ValueError(f"--ranks {options.ranks}: under torchrun, --nproc-per-node decides")
        print_preflight(options.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        run_on_ranks(print_preflight, options.ranks, options.seconds, log_folder=Path(folder))


def examine(*, canary: bool) -> list[Finding]:
    """Look at Python, packages, their pairing, imports, device and, with `canary`, kernels."""
    findings = [_python(), *_versions(), _fbgemm_build()]
    imports = [_import(module) for module in ("torch", "fbgemm_gpu", "torchrec", "faiss")]
    findings += imports
    if any(finding.mend for finding in imports):
        return findings
    findings.append(_device())
    if canary:
        findings.append(_canary())
    return findings


def _python() -> Finding:
    found = platform.python_version()
    fits = sys.version_info[:2] == (3, 11)
    return Finding("Python", found, None if fits else "use Python 3.11: make PYTHON=python3.11")


def _versions() -> list[Finding]:
    torch = _version("torch")
    if torch is None:
        return [Finding("torch", "not installed", MEND)]
    series = ".".join(torch.split(".")[:2])
    if series not in PAIRS:
        known = ", ".join(PAIRS)
        return [Finding("torch", torch, f"releases that are known to work: {known}; {MEND}")]
    findings = [Finding("torch", torch)]
    for name, packages, mend in (
        ("torchrec", ("torchrec",), MEND_TORCHREC),
        ("fbgemm", ("fbgemm-gpu-cpu", "fbgemm-gpu"), MEND),
    ):
        wanted = PAIRS[series][name]
        found = next((v for v in map(_version, packages) if v is not None), None)
        if found is None:
            findings.append(Finding(name, "not installed", mend))
        elif not found.startswith(f"{wanted}."):
            what = f"torch {torch} pairs with {name} {wanted}.x, found {found}: {mend}"
            findings.append(Finding(name, found, what))
        else:
            findings.append(Finding(name, f"{found} (pairs with torch {series})"))
    faiss = _version("faiss-cpu") or _version("faiss-gpu-cu12")
    findings.append(Finding("faiss", faiss or "not installed", None if faiss else MEND))
    return findings


def _fbgemm_build() -> Finding:
    """Both builds of FBGEMM unpack into the same folder; the one installed last wins."""
    cpu, cuda = _version("fbgemm-gpu-cpu"), _version("fbgemm-gpu")
    if cpu is not None and cuda is not None:
        return Finding(
            "FBGEMM builds",
            f"fbgemm-gpu-cpu {cpu} and fbgemm-gpu {cuda} overwrite each other",
            "python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu, then "
            "python -m pip install fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu==1.8.0 on GPUs)",
        )
    return Finding("FBGEMM builds", "one")


def _import(module: str) -> Finding:
    process = _run("-c", f"import {module}")
    if process.returncode == 0:
        return Finding(f"import {module}", "works")
    return Finding(
        f"import {module}",
        _last_line(process.stderr),
        MEND_TORCHREC if module == "torchrec" else MEND,
    )


def _device() -> Finding:
    process = _run("-m", CANARY, "device")
    if process.returncode:
        return Finding("device", _last_line(process.stderr), MEND)
    return Finding("device", process.stdout.strip())


def _canary() -> Finding:
    process = _run("-m", CANARY, "train")
    what = "row-wise table trains a step"
    if process.returncode:
        mend = f"the installed TorchRec and FBGEMM do not train row-wise tables here: {MEND}"
        return Finding(what, _last_line(process.stderr), mend)
    return Finding(what, process.stdout.strip())


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parent.parent,
        timeout=120,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no message"
