"""Save and load everything that a run needs to go on bit for bit.

A checkpoint is a folder `step_<10 digits>` written by torch.distributed.checkpoint under a
temporary name and renamed when every rank is done, so a reader never sees half of one. It holds
weights, optimizer state (fused, data-parallel tables, network), the maps of managed tables and the
ids that wait for their next round, each rank's random state, and in `state.json` the step and the
place in the data.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from trainer.distributed import Ranks
from trainer.modules.managed_ids import row_managers
from trainer.parallelize import ParallelModel
from trainer.run_folder import write_json

logger = logging.getLogger(__name__)

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class CheckpointError(ValueError):
    """A checkpoint that can't be used, and why."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: that holds `step_<10 digits>` folders.
        keep: newest ones that are kept.
    """

    folder: Path
    keep: int

    def complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(
            path for path in self.folder.glob("step_*") if (path / "state.json").is_file()
        )

    def newest(self) -> Path | None:
        """The newest finished checkpoint."""
        complete = self.complete()
        return complete[-1] if complete else None

    def save(
        self, parallel: ParallelModel, ranks: Ranks, *, step: int, state: Mapping[str, Any]
    ) -> Path:
        """Write one checkpoint; every rank calls this.

        Args:
            parallel: model and optimizers.
            ranks: this process among all.
            step: steps trained.
            state: further JSON values (place in the data, fingerprints), the same on every rank.
        """
        final = self.folder / f"step_{step:010d}"
        unfinished = self.folder / f".{final.name}.unfinished"
        if ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
        ranks.barrier()
        save_tensors(_tensors(parallel, ranks), checkpoint_id=unfinished)
        if ranks.is_first:
            write_json(
                unfinished / "state.json",
                {"step": step, "world_size": ranks.world_size, **state},
            )
            shutil.rmtree(final, ignore_errors=True)
            os.replace(unfinished, final)
            for old in self.complete()[: -self.keep]:
                shutil.rmtree(old)
            logger.info("saved %s", final)
        ranks.barrier()
        return final


def read_state(path: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        CheckpointError: when they can't be read.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: state.json can't be read ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: state.json holds no JSON object")
    return state


def load(path: Path, parallel: ParallelModel, ranks: Ranks) -> dict[str, Any]:
    """Put a checkpoint's weights, optimizer state and random state in force.

    Args:
        path: a finished checkpoint.
        parallel: model and optimizers of the same experiment, on as many ranks as it was saved by.
        ranks: this process among all.

    Returns:
        The JSON values that were saved beside the tensors.

    Raises:
        CheckpointError: when it was saved by another number of ranks, or parts are missing.
    """
    state = read_state(path)
    if state["world_size"] != ranks.world_size:
        raise CheckpointError(
            f"{path}: saved by {state['world_size']} ranks, this run has {ranks.world_size}; "
            "resume on the same number of ranks"
        )
    tensors = _tensors(parallel, ranks)
    try:
        load_tensors(tensors, checkpoint_id=path)
    except (RuntimeError, KeyError, OSError, CheckpointException) as error:
        raise CheckpointError(f"{path}: can't be loaded into this model: {error}") from error
    parallel.model.load_state_dict(tensors["model"])
    set_optimizer_state_dict(
        parallel.network,
        parallel.optimizer.network_optimizer,
        tensors["network_optimizer"],
        options=_FLAT,
    )
    torch.set_rng_state(tensors[f"random/rank_{ranks.rank}"])
    for table, manager in row_managers(parallel.model).items():
        manager.pending = tensors[f"managed/{table}/rank_{ranks.rank}"]
    parallel.optimizer.step_number = state["step"]
    return state


def _tensors(parallel: ParallelModel, ranks: Ranks) -> dict[str, Any]:
    """Every tensor of the run, by a name that is its own; table state is shared, not copied."""
    tensors: dict[str, Any] = {
        "model": parallel.model.state_dict(),
        "network_optimizer": get_optimizer_state_dict(
            parallel.network, parallel.optimizer.network_optimizer, options=_FLAT
        ),
        f"random/rank_{ranks.rank}": torch.get_rng_state(),
    }
    for path, values in parallel.model.fused_optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"fused/{path}/{name}"] = value
    for table, manager in row_managers(parallel.model).items():
        tensors[f"managed/{table}/rank_{ranks.rank}"] = manager.pending
    for table, optimizer in parallel.optimizer.table_optimizers.items():
        for values in optimizer.state.values():
            for name, value in values.items():
                tensors[f"replicated/{table}/{name}"] = value
    return tensors
