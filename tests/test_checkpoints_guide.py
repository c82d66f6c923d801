"""What docs/checkpoints.md says of commands, files and choices is so."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from launch.evaluate import EvaluateCommand
from launch.experiment_command import experiment_command
from launch.export import ExportArgs
from launch.retrieve import RetrieveCommand
from launch.train import TrainCommand, chosen_warm_start
from trainer import checkpoint_choice, stored_state
from trainer.run_folder import RunFolder
from trainer.warm_start import Outcome

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "checkpoints.md").read_text()
COMMANDS = re.findall(r"^farewell (.*)$", GUIDE.replace("\\\n", " "), re.MULTILINE)
MADE = {
    "train": lambda experiment: TrainCommand(experiment=experiment),
    "evaluate": lambda experiment: EvaluateCommand(folder=tyro.MISSING, experiment=experiment),
}


def test_there_are_commands():
    assert {line.split()[0] for line in COMMANDS} == set(MADE)
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line):
    verb, *args = shlex.split(line)
    command = experiment_command(MADE[verb], args, verb=verb, description="")
    if verb == "train":
        assert (chosen_warm_start(command) is None) == ("--warm-start" not in args)


def test_files_are_those_of_a_checkpoint():
    table = GUIDE.split("## What is inside")[1].split("\n\n")[1]
    for name in re.findall(r"`(\w+\.json)`", table):
        assert name == stored_state.MANIFEST or stored_state._FILE_NAME.fullmatch(name)
    assert stored_state._FILE_NAME.fullmatch("rank_00000.safetensors")
    named = RunFolder.predictions_of("valid", 7)
    assert "predictions_<split>_step_<10 digits>.parquet" in GUIDE
    assert named == "predictions_valid_step_0000000007.parquet"


def test_choices_and_their_default_are_the_same_for_every_verb():
    words = (checkpoint_choice.AUTO, checkpoint_choice.NEWEST, checkpoint_choice.BEST)
    assert all(f"`{word}`" in GUIDE or f"--checkpoint {word}`" in GUIDE for word in words)
    for command in (EvaluateCommand, ExportArgs, RetrieveCommand):
        assert command.checkpoint == checkpoint_choice.AUTO


def test_outcomes_of_warm_starts_are_told():
    table = GUIDE.split("| outcome | when |")[1]
    assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) == set(Outcome.__args__)
