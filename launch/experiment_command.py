"""Verbs over an experiment: its name comes first, and every field of it is an option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from launch.named import load_named, name_and_options
from trainer.experiment import Experiment

Command = TypeVar("Command")


def experiment_command(
    make: Callable[[Experiment], Command],
    args: Sequence[str],
    *,
    verb: str,
    description: str | None,
) -> Command:
    """Read the words that follow a verb.

    Args:
        make: command of an experiment before any option is read; `tyro.MISSING` stands for what
            must be said.
        args: name of the experiment, then options.
        verb: of `farewell`.
        description: shown by its help.

    Raises:
        ValueError: without a name, or with one that leads to no experiment.
    """
    name, options = name_and_options(args, verb=verb, description=description)
    default = make(load_named(name, Experiment))
    return tyro.cli(
        type(default),
        prog=f"farewell {verb} {name}",
        description=description,
        default=default,
        args=options,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
