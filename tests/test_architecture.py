import subprocess
import sys
from pathlib import Path

import launch
import trainer

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "sharding", "tokenization", "launch", "configs")
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "faiss", "numba", "transformers", "lightgbm", "pyarrow")


def sources():
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_packages_are_those_of_this_repository():
    assert Path(trainer.__file__).parent == ROOT / "trainer"
    assert Path(launch.__file__).parent == ROOT / "launch"


def test_import_contracts_hold():
    """`lint-imports` reads the layers from setup.cfg."""
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", "setup.cfg", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "Contracts: 3 kept, 0 broken" in found.stdout


def test_no_file_is_a_drawer_for_everything():
    assert len(sources()) > 50
    drawers = {"utils", "util", "common", "misc", "helpers", "helper"}
    assert not [path for path in sources() if path.stem in drawers]


def test_no_import_is_guarded():
    """A missing package is an error of the installation, not another way to run."""
    for path in sources():
        assert "except ImportError" not in path.read_text() or path.name in ("cli.py",), path
        assert "except ModuleNotFoundError" not in path.read_text(), path


def test_command_line_starts_without_heavy_packages():
    code = f"import sys, launch.cli; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_nothing_prints_but_the_launch_verbs():
    for path in sources():
        if path.parent.name != "launch":
            lines = path.read_text().splitlines()
            assert not [line for line in lines if line.lstrip().startswith("print(")], path
