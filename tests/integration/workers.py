"""What ranks do in these tests; spawned processes import it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from sharding.plan_io import plan_to_json
from tests.integration.tiny_model import SEED, Case, batches_of_ranks, initial_table
from trainer.distributed import start_ranks, stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.parallelize import ParallelModel, ShardingConfig, parallelize
from trainer.pipeline import NonFiniteLossError, RankingPipeline
from trainer.scoring import score


def build(case: Case, ranks) -> ParallelModel:
    """The case's model on these ranks, tables filled with their known weights."""
    parallel = parallelize(
        case.model("meta"),
        tables=case.tables(),
        ranks=ranks,
        optim=case.optim,
        sharding=ShardingConfig(fsdp_min_parameters=1 if case.fsdp else 10**9, min_partition=4),
        batch_size=case.batch_size // ranks.world_size,
        num_steps=case.num_steps,
        seed=SEED,
        compiled=case.compiled,
        activation_checkpointing=case.checkpointed,
        gradient_accumulation=case.parts,
    )
    for name, place, part in table_parts(parallel):
        rows, columns = place
        full = initial_table(name, next(t.rows for t in case.tables() if t.name == name))
        part.copy_(full[rows : rows + part.shape[0], columns : columns + part.shape[1]])
    return parallel


def table_parts(parallel: ParallelModel):
    """(table, (first row, first column), weights) of each part that this rank holds."""
    for path, weight in parallel.model.state_dict().items():
        if not path.startswith("sparse."):
            continue
        name = path.split(".")[-2]
        if hasattr(weight, "local_shards"):
            for shard in weight.local_shards():
                yield name, tuple(shard.metadata.shard_offsets), shard.tensor
        elif isinstance(weight, DTensor):
            raise NotImplementedError(path)
        else:
            yield name, (0, 0), weight


def train_cases(cases: list[Case], folder: Path) -> None:
    """Train every case and leave `<case>_rank<r>.pt`."""
    ranks = start_ranks()
    for case in cases:
        parallel = build(case, ranks)
        pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
        parallel.model.train()
        steps = batches_of_ranks(case, ranks.world_size)
        pipeline.read_from(iter([parts[ranks.rank] for parts in steps]))
        logits, losses, norms = [], [], []
        for _ in steps:
            logits.append(pipeline.step().logits_BN.clone())
            losses.append(pipeline.loss)
            norms.append(parallel.optimizer.gradient_norm)
        network = {
            name: weight.full_tensor() if isinstance(weight, DTensor) else weight
            for name, weight in parallel.network.named_parameters()
        }
        torch.save(
            {
                "logits": logits,
                "losses": losses,
                "norms": norms,
                "tables": [(n, place, part.clone()) for n, place, part in table_parts(parallel)],
                "network": {name: weight.detach().clone() for name, weight in network.items()},
                "plan": plan_to_json(parallel.plan),
                "uses_fsdp": parallel.uses_fsdp,
            },
            folder / f"{case.name}_rank{ranks.rank}.pt",
        )
    stop_ranks()


class StoppedError(Exception):
    """What interrupts a run in these tests."""


@contextmanager
def stopping_at(step: int, how: Callable[[], None]) -> Iterator[None]:
    """Call `how` in place of the pipeline's step number `step` (1 is the first)."""
    real, count = RankingPipeline.step, 0

    def counted(self: RankingPipeline):
        nonlocal count
        count += 1
        if count == step:
            how()
        return real(self)

    RankingPipeline.step = counted
    try:
        yield
    finally:
        RankingPipeline.step = real


def train_whole_and_stopped(scenarios: list[tuple[Experiment, int]], folder: Path) -> None:
    """Train each experiment uninterrupted, then again stopped at a step and resumed."""
    for experiment, step in scenarios:
        train(experiment, folder / experiment.name / "whole")
        stopped = folder / experiment.name / "stopped"
        try:
            with stopping_at(step, _raise):
                train(experiment, stopped)
        except StoppedError:
            logging.getLogger(__name__).info("stopped at step %d", step)
        assert not (stopped / "result.json").exists()
        train(experiment, stopped, resume=True)
    stop_ranks()


def _raise() -> None:
    raise StoppedError


def train_and_die(experiment: Experiment, folder: Path, step: int, rank: int) -> None:
    """Train; at `step` one rank is killed as the system kills it when memory runs out."""
    if os.environ["RANK"] != str(rank):
        train(experiment, folder)
        return
    with stopping_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        train(experiment, folder)


def resume(experiment: Experiment, folder: Path) -> None:
    """Go on from the newest checkpoint."""
    train(experiment, folder, resume=True)
    stop_ranks()


def meet_non_finite_loss(case: Case, folder: Path) -> None:
    """Train two steps; the third batch of rank 1 holds a NaN. Leaves what each rank saw."""
    ranks = start_ranks()
    parallel = build(case, ranks)
    pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
    batches = [parts[ranks.rank] for parts in batches_of_ranks(case, ranks.world_size)]
    if ranks.rank == 1:
        batches[2].dense_BF[4, 1] = float("nan")
    pipeline.read_from(iter(batches))
    for _ in range(2):
        pipeline.step()
    before = weights_of(parallel)
    try:
        pipeline.step()
        message = "no error"
    except NonFiniteLossError as error:
        message = str(error)
    torch.save(
        {"before": before, "after": weights_of(parallel), "message": message},
        folder / f"rank_{ranks.rank}.pt",
    )
    stop_ranks()


def weights_of(parallel: ParallelModel) -> dict[str, torch.Tensor]:
    """Copies of every weight that this rank holds."""
    tables = {f"{name} {place}": part.clone() for name, place, part in table_parts(parallel)}
    network = parallel.network.named_parameters()
    return {**tables, **{name: weight.detach().clone() for name, weight in network}}


def feed_in_parts(case: Case, folder: Path) -> None:
    """Train once on one stretch of batches, once on three of two with scoring in between."""
    ranks = start_ranks()
    batches = [parts[0] for parts in batches_of_ranks(case, 1)]
    seen = {}
    for name, size in (("whole", 6), ("parts", 2)):
        parallel = build(case, ranks)
        pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
        parallel.model.train()
        losses, labels, scores = [], [], []
        for start in range(0, 6, size):
            pipeline.read_from(iter(batches[start : start + size]))
            for _ in range(size):
                labels.append(pipeline.step().labels_BN.tolist())
                losses.append(pipeline.loss)
            ended = False
            try:
                pipeline.step()
            except StopIteration:
                ended = True
            seconds, seconds_again = pipeline.take_seconds(), pipeline.take_seconds()
            pipeline.detach()
            scored = score(parallel.model, [batches[0]], ranks, ("a", "b"))
            scores.append(scored.scores["a"].tolist())
            assert parallel.model.training
        seen[name] = {
            "losses": losses,
            "first_labels": labels,
            "weights": weights_of(parallel),
            "ended": ended,
            "seconds": seconds,
            "seconds_again": seconds_again,
            "scored_before": scores[0],
            "scored_after": scores[-1],
        }
    torch.save(seen, folder / "seen.pt")
    stop_ranks()
