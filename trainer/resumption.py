"""Whether a checkpoint may be gone on with: the same training, spread as it may be."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenization.artifact import TokenArtifact
from trainer.checkpoint import CheckpointError
from trainer.experiment import Experiment
from trainer.stored_state import StoredState

_FREE_TABLE_FIELDS = ("sharding_types", "kernels", "cache_load_factor", "pooling_factors")
_FREE_TRAIN_FIELDS = (
    "log_every",
    "eval_every",
    "eval_batch_size",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "checkpoint_memory_bytes",
    "compile",
    "activation_checkpointing",
    "gradient_accumulation",
)
_SHOWN = 5


def training_values(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What weights and optimizer values depend on, of `Experiment.to_dict`.

    Left out are the name, how tables and network are spread over ranks, and the rhythm of logs,
    evaluations and checkpoints: these may change from one resumption to the next.
    """
    values: dict[str, Any] = copy.deepcopy(dict(experiment))
    values.pop("name", None)
    values.pop("sharding", None)
    for table in values.get("tables", []):
        for field in _FREE_TABLE_FIELDS:
            table.pop(field, None)
    for field in _FREE_TRAIN_FIELDS:
        values.get("train", {}).pop(field, None)
    return values


def training_fingerprint(experiment: Experiment) -> str:
    """SHA-256 over what weights and optimizer values depend on."""
    text = json.dumps(training_values(experiment.to_dict()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_resumable(path: Path, experiment: Experiment, tokens: TokenArtifact | None) -> None:
    """Check that a checkpoint is of this training.

    Args:
        path: the checkpoint.
        experiment: that is to go on.
        tokens: that it reads.

    Raises:
        CheckpointError: when it was saved with other settings, naming them.
        TokenArtifactError: when its tokens mean something else.
    """
    stored = StoredState(path)
    found, expected = stored.state.get("experiment"), training_fingerprint(experiment)
    if found != expected:
        changed = list(
            differences(training_values(stored.config), training_values(experiment.to_dict()))
        )
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise CheckpointError(
            f"{path}: saved by an experiment with fingerprint {str(found)[:12]}, this one is "
            f"{expected[:12]}: {'; '.join(changed[:_SHOWN]) or 'no value differs'}{more}. Resume "
            f"with the settings in {path.parent.parent}/config.json, train into another folder, or "
            "take over what fits with --warm-start"
        )
    vocabulary = stored.state.get("vocabulary")
    if tokens is not None:
        tokens.check_vocabulary(str(vocabulary), of=str(path))


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Each value that differs between two trees of JSON values, as text."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            path = f"{at}.{key}" if at else str(key)
            yield from differences(old.get(key), new.get(key), path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for position, (one, other) in enumerate(zip(old, new, strict=True)):
            name = one.get("name", position) if isinstance(one, dict) else position
            yield from differences(one, other, f"{at}[{name}]")
    elif old != new:
        yield f"{at} was {str(old)[:60]}, is {str(new)[:60]}"
