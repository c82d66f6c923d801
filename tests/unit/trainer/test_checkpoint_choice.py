import json

import pytest
import torch

from tests.unit.trainer.stored_checkpoint import whole, write_checkpoint, write_manifest
from trainer.checkpoint import CheckpointError, Checkpoints
from trainer.checkpoint_choice import choose


def run(folder, keep_best, figures):
    """Checkpoints of a run: `figures` maps step to its validation AUC, or None."""
    for step, auc in figures.items():
        path = write_checkpoint(
            folder / f"step_{step:010d}",
            {"network/b/value": whole(torch.ones(2))},
            state={
                "step": step,
                "world_size": step % 3 + 1,
                "validation": {} if auc is None else {"valid/click_auc": auc},
            },
        )
        (path / "config.json").write_text(json.dumps({"train": {"keep_best": keep_best}}))
        write_manifest(path)
    return Checkpoints(folder)


FIGURES = {10: 0.6, 20: 0.8, 30: 0.7, 31: None}


@pytest.mark.parametrize(
    ("which", "keep_best", "step", "why"),
    [
        ("auto", "valid/click_auc", 20, "best by valid/click_auc, 0.80000"),
        ("best", "valid/click_auc", 20, "best by valid/click_auc, 0.80000"),
        ("newest", "valid/click_auc", 31, "newest"),
        ("auto", None, 31, "newest"),
        ("auto", "valid/play_auc", 31, "newest"),  # was named, but never measured
        ("10", "valid/click_auc", 10, "asked for"),
        ("31", None, 31, "asked for"),
    ],
)
def test_best_newest_or_a_step_is_chosen(tmp_path, which, keep_best, step, why):
    checkpoints = run(tmp_path, keep_best, FIGURES)
    found = choose(checkpoints, which)
    assert (found.path, found.step, found.why) == (checkpoints.path(step), step, why)
    assert found.is_newest == (step == 31)
    assert found.world_size == step % 3 + 1


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("20", "there are those of steps 10, 30"),
        ("best", "no checkpoint is known as the best; train with --train.keep-best"),
        ("Best", "checkpoint is 'Best', expected 'auto', 'best', 'newest' or a step"),
        ("-1", "expected 'auto', 'best', 'newest' or a step"),
        ("../10", "expected 'auto', 'best', 'newest' or a step"),
        ("", "expected 'auto', 'best', 'newest' or a step"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, which, message):
    checkpoints = run(tmp_path, None, {10: 0.6, 30: 0.7})
    with pytest.raises(CheckpointError, match=message):
        choose(checkpoints, which)


def test_run_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint; train first"):
        choose(Checkpoints(tmp_path / "checkpoints"), "auto")
