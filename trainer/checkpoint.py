"""The checkpoints of a run: find them, keep some, put one in force on any number of ranks.

A checkpoint holds weights, optimizer state (fused, data-parallel tables, network), each rank's
random state, the place in the data, the schedule, and what it was made by: experiment, plan and
vocabulary of the tokens. `trainer.checkpoint_writer` writes it in the background,
`trainer.stored_state` says what lies on the disk and checks it, `trainer.state_parts` names what is
saved, `trainer.reshard` moves it between plans.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.distributed import Ranks
from trainer.modules.managed_ids import row_managers
from trainer.parallelize import ParallelModel, unwrapped
from trainer.reshard import fill
from trainer.state_parts import Box, Part, fused_kernels, parts_of, waiting_name
from trainer.stored_state import MANIFEST, CheckpointError, StoredState, StoredTensor

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "load",
    "open_checkpoint",
    "random_parts",
    "read_state",
]

logger = logging.getLogger(__name__)

_OF_ONE_RANK = ("random/", "waiting/")
_FOLDER_NAME = re.compile(r"step_\d{10}")


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one run's checkpoints.

    Args:
        folder: that holds `step_<10 digits>` folders.
    """

    folder: Path

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step_{step:010d}"

    def complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(
            path
            for path in self.folder.glob("step_*")
            if _FOLDER_NAME.fullmatch(path.name) and (path / MANIFEST).is_file()
        )

    def newest(self) -> Path | None:
        """The newest finished checkpoint."""
        complete = self.complete()
        return complete[-1] if complete else None

    def best(self, metric: str) -> Path | None:
        """The checkpoint with the best validation metric; the older one of equals.

        Args:
            metric: as it stands in metrics.jsonl; the least `..._logloss` is best, of all others
                the greatest.
        """
        found = {
            path: value
            for path in self.complete()
            if isinstance(value := _validation(path).get(metric), float)
        }
        sign = -1.0 if metric.endswith("_logloss") else 1.0
        return max(found, key=lambda path: sign * found[path], default=None)

    def retain(self, newest: int, best: str | None) -> None:
        """Remove all but the newest ones, and the best one by a metric where one is named."""
        kept = set(self.complete()[-newest:])
        if best is not None and (path := self.best(best)) is not None:
            kept.add(path)
        for path in self.complete():
            if path not in kept:
                removed = path.with_name(f".{path.name}.removed")
                os.replace(path, removed)  # at once: nobody sees half of it
                shutil.rmtree(removed)

    def remove_unfinished(self) -> None:
        """Remove what an interrupted save, or removal, has left."""
        for pattern in (".step_*.unfinished", ".step_*.removed"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path)


def _validation(path: Path) -> Mapping[str, Any]:
    found = read_state(path).get("validation")
    return found if isinstance(found, dict) else {}


def read_state(path: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        CheckpointError: when they can't be read or are not what was saved.
    """
    return StoredState(path).state


def open_checkpoint(path: Path, ranks: Ranks) -> StoredState:
    """Open a checkpoint and compare all of it with its manifest; every rank calls this.

    Ranks share the files out, so that each is read once for checking.

    Raises:
        CheckpointError: on every rank, with what the first of them found.
    """
    source, error = None, None
    try:
        source = StoredState(path)
        source.verify(sorted(source.files)[ranks.rank :: ranks.world_size])
        _ = source.state, source.tensors
    except CheckpointError as found:
        error = str(found)
    raise_everywhere(error, ranks)
    assert source is not None
    return source


def load(path: Path, parallel: ParallelModel, ranks: Ranks, *, seed: int) -> dict[str, Any]:
    """Put a checkpoint in force, whatever the ranks and the plan that it was saved under.

    Weights and optimizer values are the saved ones bit for bit, but for row-wise state under
    another division into columns (see `trainer.reshard`). On as many ranks as before, each goes on
    with its own random state; on another number each is seeded anew from `seed`, the step, and its
    place.

    Args:
        path: a finished checkpoint.
        parallel: model and optimizers of the same experiment.
        ranks: this process among all.
        seed: of the run.

    Returns:
        The JSON values that were saved beside the tensors.

    Raises:
        CheckpointError: when files are damaged or missing, or are of another model.
    """
    start = time.perf_counter()
    source = open_checkpoint(path, ranks)
    state = source.state
    _check_ranks_of_managed_tables(parallel, source, ranks)
    make_room(parallel, source.tensors)
    parts = parts_of(parallel)
    _check_names(parts, source, ranks)
    error = None
    try:
        for part in parts:
            fill(part, source.tensors[part.name], source)
    except CheckpointError as found:
        error = str(found)
    raise_everywhere(error, ranks)
    _put_waiting_ids_back(parallel, source, ranks)
    set_step(parallel, state["step"])
    _set_random_state(source, ranks, seed)
    num_bytes = sum(entry["bytes"] for entry in source.files.values())
    seconds = time.perf_counter() - start
    logger.info("%s: %d bytes checked and put in force in %.2f s", path, num_bytes, seconds)
    return state


def make_room(parallel: ParallelModel, stored: Mapping[str, StoredTensor]) -> None:
    """Make the optimizer state that optimizers only make in their first step."""
    optimizer = parallel.optimizer
    owners: list[tuple[str, Optimizer, torch.nn.Parameter]] = [
        (f"table/{table}", own, own.param_groups[0]["params"][0])
        for table, own in optimizer.table_optimizers.items()
    ]
    parallel.network.state_dict()  # FSDP2 puts sharded parameters back first
    owners += [
        (f"network/{name}", optimizer.network_optimizer, parameter)
        for name, parameter in parallel.network.named_parameters()
    ]
    slots: dict[str, list[str]] = {}
    for name in stored:
        owner, state, slot = name.rpartition("/state/")
        if state:
            slots.setdefault(owner, []).append(slot)
    with torch.no_grad():
        for owner, own, parameter in owners:
            for slot in slots.get(owner, []):
                values = own.state[parameter]
                if slot in values:
                    continue
                if stored[f"{owner}/state/{slot}"].shape == ():
                    # A fused optimizer reads its step on the device.
                    device = parameter.device if own is optimizer.network_optimizer else None
                    values[slot] = torch.zeros((), dtype=torch.float32, device=device)
                else:
                    values[slot] = torch.zeros_like(parameter.detach())
        for own in optimizer.table_optimizers.values():  # theirs is not stored, see `set_step`
            for values in own.state.values():
                values.setdefault("step", torch.tensor(0.0))


def set_step(parallel: ParallelModel, step: int) -> None:
    """Let every optimizer and its schedule go on after `step` steps."""
    parallel.optimizer.step_number = step
    for optimizer in parallel.optimizer.table_optimizers.values():
        for values in optimizer.state.values():
            if values:
                values["step"] = torch.tensor(float(step))
    for kernel in fused_kernels(unwrapped(parallel.model).sparse):
        kernel.emb_module.set_optimizer_step(step)
        kernel.purge()  # rows that are cached on the device are older than what was just loaded


def random_parts(ranks: Ranks) -> list[Part]:
    """This rank's random state, as parts that are saved."""
    return [
        Part(f"random/rank_{ranks.rank}/{kind}", tuple(value.shape), Box.whole(value.shape), value)
        for kind, value in _random_state(ranks).items()
    ]


def _random_state(ranks: Ranks) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return states


def _set_random_state(source: StoredState, ranks: Ranks, seed: int) -> None:
    parts = random_parts(ranks)
    stored = source.tensors
    if source.state["world_size"] == ranks.world_size and all(p.name in stored for p in parts):
        for part in parts:
            fill(part, stored[part.name], source)
            if part.name.endswith("/cuda"):
                torch.cuda.set_rng_state(part.tensor, ranks.device)
            else:
                torch.set_rng_state(part.tensor)
        return
    words = (seed, source.state["step"], ranks.world_size, ranks.rank)
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    logger.info(
        "%s was saved by %d ranks, this run has %d: each rank's random numbers (dropout) are "
        "seeded anew from seed %d, step %d and its place; training goes on, though not bit for bit",
        source.path,
        source.state["world_size"],
        ranks.world_size,
        seed,
        source.state["step"],
    )


def _check_ranks_of_managed_tables(
    parallel: ParallelModel, source: StoredState, ranks: Ranks
) -> None:
    """An id's row lies on the rank that its hash names, among as many ranks as there are."""
    saved_by = source.state["world_size"]
    tables = row_managers(unwrapped(parallel.model).sparse)
    if tables and saved_by != ranks.world_size:
        raise CheckpointError(
            f"{source.path}: saved by {saved_by} ranks, this run has {ranks.world_size}, but which "
            f"rank holds an id of the managed table {', '.join(tables)} depends on their number; "
            f"take {saved_by} ranks"
        )


def _put_waiting_ids_back(parallel: ParallelModel, source: StoredState, ranks: Ranks) -> None:
    for table, manager in row_managers(unwrapped(parallel.model).sparse).items():
        stored = source.tensors.get(waiting_name(table, ranks))
        waiting = torch.zeros(stored.shape if stored is not None else (2, 0), dtype=torch.int64)
        if stored is not None:
            name = waiting_name(table, ranks)
            fill(Part(name, stored.shape, Box.whole(stored.shape), waiting), stored, source)
        manager.pending = waiting


def _check_names(parts: list[Part], source: StoredState, ranks: Ranks) -> None:
    """Refuse a checkpoint that holds more or less than the model."""
    names = ranks.gather({part.name for part in parts})
    error = None
    if names is not None:
        stored = {name for name in source.tensors if not name.startswith(_OF_ONE_RANK)}
        expected = set().union(*names)
        if stored != expected:
            error = (
                f"{source.path}: can't be loaded into this model; only in the checkpoint: "
                f"{_some(stored - expected)}; only in the model: {_some(expected - stored)}"
            )
    raise_everywhere(error, ranks)


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


def raise_everywhere(error: str | None, ranks: Ranks) -> None:
    """Raise the first rank's error on all, so that none waits for another."""
    errors = ranks.gather(error)
    first = next((found for found in errors if found), None) if errors is not None else None
    if (error := ranks.broadcast(first)) is not None:
        raise CheckpointError(error)
