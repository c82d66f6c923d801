"""The commands of docs/clusters.md and of the README's jobs are ones that torchx takes."""

import re
import shlex
from pathlib import Path

import pytest
from torchx.specs.builders import materialize_appdef

from launch import components
from launch.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
README = (ROOT / "README.md").read_text().replace("\\\n", " ")
JOBS = [line.strip() for line in (GUIDE + README).splitlines() if "launch/components.py:" in line]
JOBS = [line for line in JOBS if "torchx run" in line and not line.endswith("--help")]


@pytest.mark.parametrize("line", JOBS)
def test_a_job_of_the_guide_is_accepted(line):
    words = shlex.split(line)
    place = next(i for i, word in enumerate(words) if word.startswith("launch/components.py:"))
    component = getattr(components, words[place].split(":")[1])
    (role,) = materialize_appdef(component, words[place + 1 :]).roles
    verb = {"preflight": "doctor --preflight"}.get(component.__name__, component.__name__)
    assert f"launch.cli {verb}" in " ".join(role.args)


def test_the_guide_has_jobs_and_its_verbs_exist():
    assert len(JOBS) >= 6
    verbs = set(re.findall(r"^    farewell ([a-z]+)", GUIDE, re.MULTILINE))
    assert verbs
    assert verbs <= set(VERBS)


def test_every_component_is_in_the_guide():
    table = GUIDE.split("## 1.")[0]
    for name in ("train", "evaluate", "preflight", "tokenize", "embed", "plan", "compare"):
        assert f"`{name}`" in table


def test_the_image_holds_every_package_and_installs_as_a_fresh_machine_does():
    """No container runtime is here to build it with: what it names must be there."""
    text = (ROOT / "Containerfile").read_text()
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    setup = (ROOT / "setup.cfg").read_text()
    packages = re.search(r"^include = (.*)$", setup, re.MULTILINE).group(1)
    assert {name.strip().rstrip("*") for name in packages.split(",")} <= copied
    needed = re.search(r"^\$\(STAMP\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"[\w.]+\.(?:cfg|toml)", needed.group(1))) <= copied
    devices = {path.stem for path in (ROOT / "requirements").glob("*.txt")} & {"cpu", "cuda"}
    assert devices == set(re.findall(r"DEVICE=(cpu|cuda)", text))


def test_what_the_guide_says_of_code_is_so():
    for code in re.findall(r"`((?:tests|launch|docs)/[\w/.]+)`", GUIDE):
        assert (ROOT / code).exists(), code
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link
    for option in ("--hang-seconds", "--no-preflight"):
        assert (
            option.removeprefix("--").removeprefix("no-").replace("-", "_")
            in (ROOT / "launch" / "train.py").read_text()
        )
