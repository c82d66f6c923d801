"""Which checkpoint of a run is looked at: the best one, the newest, or that of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import CheckpointError, Checkpoints
from trainer.stored_state import StoredState

AUTO, NEWEST, BEST = "auto", "newest", "best"


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A finished checkpoint of a run.

    Attributes:
        path: its folder.
        step: steps that its weights were trained for.
        why: in words.
        is_newest: whether the run has none later, so that its own test scores are of these weights.
        world_size: ranks that saved it.
    """

    path: Path
    step: int
    why: str
    is_newest: bool
    world_size: int


def choose(checkpoints: Checkpoints, which: str) -> ChosenCheckpoint:
    """Find a run's checkpoint.

    Args:
        checkpoints: of the run.
        which: `best` by the run's `train.keep_best`; `newest`; `auto` for the best where the run
            has such, else the newest; or a step.

    Raises:
        CheckpointError: when there is none such, with those that there are.
    """
    complete = checkpoints.complete()
    if not complete:
        raise CheckpointError(f"{checkpoints.folder}: no complete checkpoint; train first")
    newest, why = complete[-1], NEWEST
    path = newest
    if which.isdecimal():
        path, why = checkpoints.path(int(which)), "asked for"
        if path not in complete:
            steps = ", ".join(str(int(one.name.removeprefix("step_"))) for one in complete)
            raise CheckpointError(
                f"{path}: no complete checkpoint; there are those of steps {steps}"
            )
    elif which in (AUTO, BEST):
        metric = _keep_best(newest)
        best = None if metric is None else checkpoints.best(metric)
        if best is not None:
            value = StoredState(best).state["validation"][metric]
            path, why = best, f"best by {metric}, {value:.5f}"
        elif which == BEST:
            raise CheckpointError(
                f"{checkpoints.folder}: no checkpoint is known as the best; train with "
                "--train.keep-best METRIC, or take the newest (--checkpoint newest)"
            )
    elif which != NEWEST:
        raise CheckpointError(
            f"checkpoint is {which!r}, expected {AUTO!r}, {BEST!r}, {NEWEST!r} or a step"
        )
    state = StoredState(path).state
    return ChosenCheckpoint(path, state["step"], why, path == newest, state["world_size"])


def _keep_best(path: Path) -> str | None:
    """The metric by which the run of a checkpoint keeps its best one."""
    train = StoredState(path).config.get("train")
    metric = train.get("keep_best") if isinstance(train, dict) else None
    return metric if isinstance(metric, str) else None
