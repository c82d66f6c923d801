"""What ranks do in the tests of checkpoints; spawned processes import it."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tests.integration.tiny_model import DIM, Case, batches_of_ranks
from tests.integration.workers import build, table_parts
from trainer import checkpoint_writer
from trainer.checkpoint import Checkpoints, load
from trainer.checkpoint_writer import CheckpointWriter
from trainer.distributed import start_ranks, stop_ranks
from trainer.models.ranking_model import RankingModelConfig
from trainer.parallelize import ParallelModel
from trainer.pipeline import RankingPipeline
from trainer.state_parts import Part, parts_of
from trainer.stored_state import CheckpointError, StoredState, TensorFile

STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Spread(Case):
    """The same model in every case: a tower of blocks, whether the network is sharded or not."""

    def config(self) -> RankingModelConfig:
        """As of a case that is sharded with FSDP."""
        return Case.config(replace(self, fsdp=True))


def writer_of(folder: Path, ranks, **options) -> CheckpointWriter:
    """A writer that keeps everything in host memory, unless told otherwise."""
    options = {"keep": 100, "staging_bytes": 1 << 30, **options}
    return CheckpointWriter(Checkpoints(folder), ranks, **options)


def save(
    parallel: ParallelModel, folder: Path, ranks, *, step: int = STEPS, **options
) -> CheckpointWriter:
    """One checkpoint, finished when this returns."""
    writer = writer_of(folder, ranks, **options)
    writer.save(parallel, step=step, state={}, documents={"config": {}})
    writer.wait()
    return writer


def memory_of(writer: CheckpointWriter) -> int:
    """Bytes that it keeps for copies."""
    return sum(buffer.numel() * buffer.element_size() for buffer in writer._buffers.values())


def reversed_parts(parallel: ParallelModel) -> list[Part]:
    """The parts of a model from the last to the first."""
    return list(reversed(parts_of(parallel)))


def step_once(parallel: ParallelModel, case: Case, ranks, folder: Path, step: int) -> float:
    """Train on the batches of one step; its loss over all ranks."""
    pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
    parallel.model.train()
    pipeline.read_from(iter([batches_of_ranks(case, ranks.world_size)[step][ranks.rank]]))
    pipeline.step()
    return pipeline.loss


def train_and_save(cases: list[Case], folder: Path) -> None:
    """Train each case for some steps, save it, leave what this rank holds; train one step more."""
    ranks = start_ranks()
    for case in cases:
        parallel = build(case, ranks)
        for step in range(STEPS):
            step_once(parallel, case, ranks, folder, step)
        name = f"{case.name}_{ranks.world_size}"
        save(parallel, folder / name, ranks)
        torch.save(held(parallel), folder / f"{name}_rank{ranks.rank}.pt")
        next_loss = step_once(parallel, case, ranks, folder, STEPS)
        if ranks.is_first:
            (folder / f"{name}.json").write_text(json.dumps(next_loss))
    stop_ranks()


def load_and_compare(
    cases: list[Case], sources: list[tuple[str, int]], folder: Path, report: Path
) -> None:
    """Load every source into every case on these ranks; leave what differs.

    After the last source each case trains on, and leaves the loss.
    """
    ranks = start_ranks()
    wholes = {source: whole_of(folder, *source) for source in sources}
    found = []
    for case in cases:
        parallel = build(case, ranks)
        for source in sources:
            name, world_size = source
            path = folder / f"{name}_{world_size}" / f"step_{STEPS:010d}"
            state = load(path, parallel, ranks, seed=0)
            own = held(parallel)
            differences = compare(own, wholes[source])
            everything = ranks.broadcast(ranks.gather({one[:2] for one in own["tables"]}))
            if missing := set(wholes[source]["tables"]) - set().union(*everything):
                differences.append(f"no rank holds {missing}")
            if state["step"] != STEPS or parallel.optimizer.step_number != STEPS:
                differences.append("step")
            next_loss = None
            if source == sources[-1]:  # training goes on
                next_loss = step_once(parallel, case, ranks, folder, STEPS)
            found.append([case.name, *source, differences, next_loss])
    (report / f"{ranks.world_size}_{ranks.rank}.json").write_text(json.dumps(found))
    stop_ranks()


def held(parallel: ParallelModel) -> dict:
    """This rank's values, read through TorchRec's and torch's own state dicts.

    `tables`: (table, slot, first row, first column, columns, values), `network`: name -> value.
    """
    tables = [
        (name, "weight", *place, part.shape[1], part.clone())
        for name, place, part in table_parts(parallel)
    ]
    weights = parallel.model.state_dict()
    for path, slots in parallel.model.fused_optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if not slot.endswith(("momentum1", "sum")):
                continue
            shards = zip(weights[path].local_shards(), value.local_shards(), strict=True)
            for weight, shard in shards:
                place = weight.metadata.shard_offsets
                columns = weight.metadata.shard_sizes[1]
                tables.append((path.split(".")[-2], "sum", *place, columns, shard.tensor.clone()))
    for name, optimizer in parallel.optimizer.table_optimizers.items():
        for values in optimizer.state.values():
            if "sum" in values:
                value = values["sum"]
                value = value.view(-1) if value.shape[1] == 1 else value
                tables.append((name, "sum", 0, 0, DIM, value.clone()))
    network = {name: full(value) for name, value in parallel.network.state_dict().items()}
    adam = parallel.optimizer.network_optimizer
    for name, parameter in parallel.network.named_parameters():
        for slot, value in adam.state[parameter].items() if parameter in adam.state else ():
            network[f"{name} {slot}"] = full(value)
    return {"tables": tables, "network": network}


def full(value: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def whole_of(folder: Path, name: str, world_size: int) -> dict:
    """Logical tensors of a source, put together from what its ranks held."""
    ranks = [torch.load(folder / f"{name}_{world_size}_rank{r}.pt") for r in range(world_size)]
    wholes: dict = {}
    for rank in ranks:
        for table, slot, row, column, columns, values in rank["tables"]:
            cells = values[:, None].expand(-1, columns) if values.dim() == 1 else values
            last_row, last_column = row + cells.shape[0], column + columns
            whole = wholes.setdefault((table, slot), torch.full((64, DIM), float("nan")))
            whole[row:last_row, column:last_column] = cells
    return {"tables": wholes, "network": ranks[0]["network"]}


def compare(held: dict, wholes: dict) -> list[str]:
    """Where values differ from the source's, or from the mean over their columns."""
    differences = []
    for table, slot, row, column, columns, values in held["tables"]:
        last_row, last_column = row + values.shape[0], column + columns
        expected = wholes["tables"][table, slot][row:last_row, column:last_column]
        if values.dim() == 1:
            same_division = (expected == expected[:, :1]).all()
            expected = expected[:, 0] if same_division else expected.double().mean(dim=1).float()
        if not torch.equal(values, expected):
            differences.append(f"{table} {slot} {row} {column}")
    seen = {(table, slot) for table, slot, *_ in held["tables"]}
    if not seen <= set(wholes["tables"]):
        differences.append(f"unknown {seen - set(wholes['tables'])}")
    if held["network"].keys() != wholes["network"].keys():
        differences.append(f"network names {held['network'].keys() ^ wholes['network'].keys()}")
    for name, value in wholes["network"].items():
        if not torch.equal(value, held["network"].get(name, torch.empty(0))):
            differences.append(name)
    return differences


def fill_the_disk(case: Case, folder: Path) -> None:
    """Save well, with a disk that is full on rank 1, well, on hosts that share no folder.

    Leaves what was said, and which checkpoints there were.
    """
    ranks = start_ranks()
    parallel = build(case, ranks)
    step_once(parallel, case, ranks, folder, 0)
    writer = writer_of(folder / "checkpoints", ranks)
    said = []

    def attempt(step: int) -> None:
        try:
            writer.save(parallel, step=step, state={}, documents={"config": {}})
            writer.wait()
            said.append("saved")
        except CheckpointError as error:
            said.append(str(error))
        said.append([path.name for path in writer.checkpoints.complete()])
        said.append(sorted(path.name for path in (folder / "checkpoints").iterdir()))
        ranks.barrier()  # the next save begins when all have looked

    real = TensorFile._write

    def full(self, data):
        if ranks.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    attempt(1)
    TensorFile._write = full
    attempt(2)
    TensorFile._write = real
    attempt(3)
    close = TensorFile.close

    def elsewhere(self):
        digest = close(self)
        if ranks.rank == 1:
            self.path.rename(folder / "on_another_host")
        return digest

    TensorFile.close = elsewhere
    attempt(4)
    TensorFile.close = close
    (folder / f"said_{ranks.rank}.json").write_text(json.dumps(said))
    stop_ranks()


def save_with_little_memory(case: Case, folder: Path) -> None:
    """The same model with all, some and no values copied first, while training goes on."""
    ranks = start_ranks()
    parallel = build(case, ranks)
    step_once(parallel, case, ranks, folder, 0)
    sizes = {}
    for name, staging_bytes in (("all", 1 << 30), ("some", 20_000), ("none", 0)):
        writer = save(parallel, folder / name, ranks, staging_bytes=staging_bytes)
        sizes[name] = memory_of(writer)
    writer = writer_of(folder / "grows", ranks, staging_bytes=20_000)
    for step in (STEPS, STEPS + 1):  # other parts come first now
        writer.save(parallel, step=step, state={}, documents={"config": {}})
        writer.wait()
        kept = reversed_parts(parallel)
        sizes[f"grows_{step}"] = memory_of(writer)
        checkpoint_writer.parts_of = lambda parallel, kept=kept: kept
    checkpoint_writer.parts_of = parts_of
    (folder / f"sizes_{ranks.rank}.json").write_text(json.dumps(sizes))
    writer = writer_of(folder / "changed", ranks)
    for step in (STEPS, STEPS + 1):  # the copies' memory is used again
        writer.save(parallel, step=step, state={}, documents={"config": {}})
        with torch.no_grad():  # what training does meanwhile is not in the checkpoint
            for _, _, part in table_parts(parallel):
                part.add_(1)
    writer.wait()
    stop_ranks()


def refuse(case: Case, path: Path, report: Path) -> None:
    """Load a damaged checkpoint; leave what each rank says and whether its weights changed."""
    ranks = start_ranks()
    parallel = build(case, ranks)
    before = held(parallel)
    try:
        load(path, parallel, ranks, seed=0)
        said = "loaded"
    except CheckpointError as error:
        said = str(error)
    after = held(parallel)
    same = all(
        torch.equal(one[-1], other[-1])
        for one, other in zip(before["tables"], after["tables"], strict=True)
    )
    (report / f"{ranks.rank}.json").write_text(json.dumps([said, same]))
    stop_ranks()


class KilledError(BaseException):
    """Stands for a kill: nothing catches it, so nothing is tidied up."""


def be_killed_while_saving(case: Case, folder: Path, num_moments: int, seed: int) -> None:
    """Save, killed at random operations on the disk and at each of the last ones.

    Leaves for each kill the step of the save and of the newest checkpoint, all of which is sound.
    """
    ranks = start_ranks()
    parallel = build(case, ranks)
    step_once(parallel, case, ranks, folder, 0)
    threading.excepthook = lambda arguments: None
    count, limit = 0, 1 << 30

    def counted(real):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count > limit:
                raise KilledError
            return real(*arguments, **options)

        return operation

    for owner, name in (
        (TensorFile, "_write"),
        (os, "fsync"),
        (os, "replace"),
        (os, "mkdir"),
        (os, "unlink"),
        (os, "rmdir"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))
    checkpoints = Checkpoints(folder / "checkpoints")
    writer = writer_of(checkpoints.folder, ranks, keep=1)
    seen = []

    def attempt(step: int) -> None:
        nonlocal count
        count = 0
        try:
            writer.save(parallel, step=step, state={}, documents={"config": {}})
            writer.wait()
        except KilledError:
            writer.close()
        newest = checkpoints.newest()
        StoredState(newest).verify()
        seen.append([step, int(newest.name[5:])])

    attempt(1)
    attempt(2)
    total = count
    moments = random.Random(seed).sample(range(total), num_moments)
    for step, moment in enumerate([*moments, *range(total - 20, total)], start=3):
        limit = moment
        attempt(step)
        limit = 1 << 30
    attempt(step + 1)
    (folder / "seen.json").write_text(json.dumps(seen))
    stop_ranks()
