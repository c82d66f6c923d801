"""The commands and files that the README names exist."""

import re
from pathlib import Path

import pytest

from launch.cli import VERBS
from launch.named import load_named
from sharding.compare import StorageComparison
from trainer.comparison import Comparison
from trainer.experiment import Experiment
from trainer.structure import StructureComparison

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")


def test_verbs_exist():
    verbs = set(re.findall(r"(?:farewell|launch\.cli) ([a-z]+)", BLOCKS))
    assert verbs
    assert verbs <= set(VERBS)


@pytest.mark.parametrize(
    "verb, kind",
    [("train", Experiment), ("compare", Comparison | StorageComparison | StructureComparison)],
)
def test_named_values_load(verb, kind):
    names = set(re.findall(rf"(?:farewell|launch\.cli) {verb} (\S+)", BLOCKS))
    assert names
    for name in names:
        assert isinstance(load_named(name, kind), kind)


def test_options_exist():
    experiment = load_named("trm_rankmixer.movielens1m", Experiment)
    for path in re.findall(r"--((?:train|optim|model|tokenizer|mem)\.[a-z.-]+)", README):
        value = experiment.tokenizer if path.split(".")[0] in ("tokenizer", "mem") else experiment
        for part in path.replace("-", "_").split("."):
            assert hasattr(value, part), path
            value = getattr(value, part)


def test_linked_files_and_make_targets_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    targets = re.findall(r"^make ([a-z-]+)", BLOCKS, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(
        r"\b((?:configs|trainer|sharding|tokenization|launch)/[\w/]+\.py)", README
    ):
        assert (ROOT / name).exists(), name
