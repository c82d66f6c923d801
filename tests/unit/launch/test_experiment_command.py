from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from launch.experiment_command import experiment_command
from trainer.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Command:
    """What it is for.

    Args:
        folder: must be said.
        ranks: processes.
        experiment: which one.
    """

    folder: Path
    ranks: int = 2
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def read(*words):
    return experiment_command(
        lambda experiment: Command(folder=tyro.MISSING, experiment=experiment),
        words,
        verb="try",
        description="what it does",
    )


def test_options_are_the_command_s_and_every_field_of_the_experiment():
    found = read("dlrm_id.smoke", "--folder", "runs/mine", "--train.seed", "7")
    assert (found.folder, found.ranks) == (Path("runs/mine"), 2)
    assert (found.experiment.name, found.experiment.train.seed) == ("dlrm_id", 7)


def test_what_must_be_said_is_asked_for(capsys):
    with pytest.raises(SystemExit) as ended:
        read("dlrm_id.smoke")
    assert ended.value.code != 0
    assert "--folder" in capsys.readouterr().err


def test_help_names_verb_and_experiment(capsys):
    with pytest.raises(SystemExit) as ended:
        read("dlrm_id.smoke", "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "farewell try dlrm_id.smoke" in shown
    assert "what it does" in shown


def test_a_name_comes_first():
    with pytest.raises(ValueError, match="farewell try: expected a name first, found --folder"):
        read("--folder", "runs/mine")
