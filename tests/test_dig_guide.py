"""What docs/dig.md and docs/public_logs.md say of commands, names and files is so."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import tyro

from configs import dig, dig_public
from launch.data import LOGS
from launch.embed_options import EmbedArgs
from launch.experiment_command import experiment_command
from launch.named import load_named
from launch.retrieve import RetrieveCommand
from launch.train import TrainCommand
from trainer.comparison import Comparison

ROOT = Path(__file__).resolve().parent.parent
GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("dig", "public_logs")}
README = (ROOT / "README.md").read_text()
MADE = {
    "train": lambda experiment: TrainCommand(experiment=experiment),
    "retrieve": lambda experiment: RetrieveCommand(folder=tyro.MISSING, experiment=experiment),
}


def commands(text):
    """Lines and code spans that are whole commands."""
    lines = re.findall(r"^(?: {4})?farewell (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    spans = re.findall(r"`farewell ([^`<]*)`", text)
    return [shlex.split(line, comments=True) for line in (*lines, *spans)]


EVERY = [
    pytest.param(words, id=" ".join(words))
    for text in (*GUIDES.values(), README)
    for words in commands(text)
    if len(words) > 1 and words[:2] != ["train", "--plan"] and not words[1].endswith(".NAME")
]


def test_there_are_commands():
    verbs = [param.values[0][0] for param in EVERY]
    assert {*MADE, "data", "embed", "compare"} <= set(verbs)
    assert verbs.count("data") >= 15
    assert verbs.count("retrieve") >= 2


@pytest.mark.parametrize("words", EVERY)
def test_commands_are_accepted(words):
    verb, *args = words
    if verb in MADE:
        if "--folder" not in args and verb == "retrieve":
            args += ["--folder", "runs/one"]
        command = experiment_command(MADE[verb], args, verb=verb, description="")
        assert command.experiment.name
    elif verb == "data":
        write = LOGS[args[0]]
        options = dict(zip(args[1::2], args[2::2], strict=True))
        assert {name.lstrip("-").replace("-", "_") for name in options} <= set(
            inspect.signature(write).parameters
        )
    elif verb == "embed":
        tyro.cli(EmbedArgs, args=args)
    elif verb == "compare":
        assert load_named(args[0], object) is not None


def test_every_study_of_the_guide_is_there_for_every_log_of_it():
    guide = GUIDES["dig"].split("## Studies")[1].split("### What they showed")[0]
    studies = re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE)
    assert studies == list(
        dict.fromkeys(
            name.removesuffix("_smoke") for name in studies if hasattr(dig, f"{name}_smoke")
        )
    )
    made = {name for name, made in vars(dig).items() if returns(made, Comparison)}
    logs = ("movielens1m", "movielens1m_last_click", "amazon_beauty", "smoke")
    assert made == {f"{study}_{log}" for study in studies for log in logs}
    public = {name for name, made in vars(dig_public).items() if returns(made, Comparison)}
    logs = ("kuairec_big", "kuairec_small", "taobao_ad")
    assert public == {f"{study}_{log}" for study in studies for log in logs}
    for log in (*logs, "movielens1m_last_click", "amazon_beauty", "smoke"):
        assert f"`{log}`" in guide


def returns(made, kind):
    """Whether a name of a module is a function of it that returns such a value."""
    if not inspect.isfunction(made) or made.__module__ not in ("configs.dig", "configs.dig_public"):
        return False
    return inspect.signature(made).return_annotation == kind.__name__


@pytest.mark.parametrize("name", list(GUIDES))
def test_linked_files_exist(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)", GUIDES[name]):
        assert (ROOT / "docs" / target).exists(), target
