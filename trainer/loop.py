"""One training run on this process's rank, from experiment to scores of the test part."""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchrec.distributed.types import ShardingPlan

from sharding.plan_io import plan_from_json, plan_to_json
from sharding.tables import parameters_by_role
from trainer.batch import Batch
from trainer.checkpoint import CheckpointError, Checkpoints, load, read_state
from trainer.data.dataset import Dataset
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange
from trainer.distributed import Ranks, runs_bf16_natively, start_ranks
from trainer.experiment import Experiment
from trainer.flops import training_flops
from trainer.metrics import auc, log_loss
from trainer.models.ranking_model import Precision, RankingModel
from trainer.parallelize import ParallelModel, parallelize
from trainer.pipeline import RankingPipeline
from trainer.predictions import Predictions
from trainer.run_folder import RunFolder, log_to, write_json
from trainer.run_inputs import (
    FLOPS_BATCH,
    item_features,
    last_batch,
    load_tokens,
    sample_dense,
)
from trainer.scoring import score
from trainer.tracking import TokenUse, Tracker, squared_norms

logger = logging.getLogger(__name__)

SplitName = Literal["train", "valid", "test"]


def train(
    experiment: Experiment, folder: Path, resume: bool = False, plan: Path | None = None
) -> None:
    """Train, evaluate and leave a run folder; every rank calls this.

    Args:
        experiment: what to do.
        folder: of the run.
        resume: go on from the newest finished checkpoint; without one, start anew.
        plan: `plan.json` of `farewell plan` (or of a run) that is executed instead of asking the
            planner; the run keeps it for its resumption and evaluation.

    Raises:
        PlanMismatchError: when the plan was made for other tables, ranks or devices.
        ValueError: for whatever is wrong with experiment, data, tokens or checkpoint.
        NonFiniteLossError: when the loss is NaN or infinite.
    """
    ranks = start_ranks()
    experiment.check_ranks(ranks.world_size)
    run = RunFolder(folder)
    if not resume and run.checkpoints.exists():
        raise ValueError(
            f"{folder}: holds an earlier run; give another --folder, or --resume to go on with it"
        )
    if ranks.is_first:
        run.create(experiment)
        if plan is not None:
            write_json(run.given_plan, json.loads(plan.read_text()))
    ranks.barrier()
    log_to(run.log(ranks.rank))
    Trainer(experiment, run, ranks).run(resume=resume)


def score_split(experiment: Experiment, folder: Path, split: SplitName, path: Path) -> None:
    """Score a part of the log with a run's newest checkpoint; every rank calls this.

    Args:
        experiment: that was trained, with the same settings.
        folder: of the run.
        split: part of the log.
        path: file that the predictions are written to.

    Raises:
        CheckpointError: when there is no checkpoint, or it is of other settings.
    """
    ranks = start_ranks()
    run = RunFolder(folder)
    log_to(run.log(ranks.rank))
    trainer = Trainer(experiment, run, ranks)
    newest = trainer.checkpoints.newest()
    if newest is None:
        raise CheckpointError(f"{run.checkpoints}: no complete checkpoint; train first")
    trainer.restore(newest)
    predictions = trainer.score(getattr(trainer.splits, split))
    if predictions is not None:
        predictions.save(path)
    ranks.barrier()


@dataclass
class Clock:
    """Time and samples spent in training steps, without evaluation and checkpoints."""

    seconds: float = 0.0
    samples: int = 0

    @property
    def samples_per_s(self) -> float:
        """Throughput over all ranks."""
        return self.samples / self.seconds if self.seconds else float("nan")


class Trainer:
    """Everything that one rank holds during a run.

    Args:
        experiment: what to do.
        run: where results go.
        ranks: this process among all.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, ranks: Ranks) -> None:
        self.experiment = experiment
        self.run_folder = run
        self.ranks = ranks
        train_config, data = experiment.train, experiment.data
        self.dataset = Dataset.open(data.folder, data.schema)
        self.splits = self.dataset.split(data.split)
        self.tokens = load_tokens(experiment)
        self.item_features = item_features(experiment, self.dataset, self.tokens)
        self.reader = InteractionReader(
            self.dataset,
            rows=self.splits.train,
            item_features=self.item_features,
            batch_size=train_config.batch_size // ranks.world_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            shuffle_rows=data.shuffle_rows,
            seed=train_config.seed,
            num_epochs=train_config.num_epochs,
            drop_last=True,
        )
        self.steps_per_epoch = len(self.reader)
        self.num_steps = self.steps_per_epoch * train_config.num_epochs
        if train_config.max_steps is not None:
            self.num_steps = min(self.num_steps, train_config.max_steps)
        self.precision = resolve_precision(experiment, ranks)
        self.parallel = self._build()
        self.checkpoints = Checkpoints(run.checkpoints, train_config.keep_checkpoints)
        self.step = 0
        self.clock = Clock()

    def run(self, *, resume: bool) -> None:
        """Train to the end, score the test part, write `result.json`."""
        newest = self.checkpoints.newest() if resume else None
        if newest is not None:
            self.restore(newest)
        pipeline = RankingPipeline(
            self.parallel, self.ranks, self.run_folder.path / "non_finite_batch"
        )
        self.parallel.model.train()
        with self._tracker() as tracker:
            self._train(pipeline, tracker)
        predictions = self.score(self.splits.test)
        peak_bytes = int(
            self.ranks.all_reduce(
                torch.tensor(peak_memory_bytes(), dtype=torch.float64, device=self.ranks.device)
            )
        )
        if predictions is not None:
            predictions.save(self.run_folder.path / RunFolder.predictions_of("test"))
            write_json(self.run_folder.result, self._cost(peak_bytes))
        self.ranks.barrier()

    def _build(self) -> ParallelModel:
        experiment, ranks = self.experiment, self.ranks
        schema = self.dataset.schema
        torch.manual_seed(experiment.train.seed)
        model = RankingModel(
            experiment.model,
            tables=experiment.tables,
            num_dense=len(schema.dense_features),
            num_tasks=len(schema.labels),
            num_histories=len(schema.histories),
            sparse_device=torch.device("meta"),
            precision=self.precision,
        )
        model.network.dense_encoding.fit(
            sample_dense(self.dataset, self.item_features, self.splits.train)
        )
        # Ranks differ from here on: each makes its own shards and its own dropout masks.
        torch.manual_seed(experiment.train.seed * 100_003 + ranks.rank)
        return parallelize(
            model,
            tables=experiment.tables,
            ranks=ranks,
            optim=experiment.optim,
            sharding=experiment.sharding,
            batch_size=experiment.train.batch_size // ranks.world_size,
            num_steps=self.num_steps,
            plan=self._given_plan(),
        )

    def _given_plan(self) -> ShardingPlan | None:
        """The plan that the run was started with, where it was."""
        path = self.run_folder.given_plan
        if not path.exists():
            return None
        return plan_from_json(
            json.loads(path.read_text()),
            self.experiment.tables,
            num_ranks=self.ranks.world_size,
            ranks_per_node=self.ranks.local_world_size,
            device=self.ranks.device.type,
        )

    def restore(self, path: Path) -> None:
        """Put a checkpoint in force.

        Raises:
            CheckpointError: when it was saved by other settings.
        """
        found = read_state(path).get("experiment")
        expected = self.experiment.fingerprint
        if found != expected:
            raise CheckpointError(
                f"{path}: saved by an experiment with fingerprint {str(found)[:12]}, this one is "
                f"{expected[:12]}; resume with the settings in {self.run_folder.path}/config.json "
                "or train into another folder"
            )
        if self.tokens is not None:
            self.tokens.check_vocabulary(read_state(path)["vocabulary"], of=str(path))
        state = load(path, self.parallel, self.ranks)
        self.reader.load_state_dict(state["reader"])
        self.step = state["step"]
        self.clock = Clock(state["clock"]["seconds"], state["clock"]["samples"])
        logger.info("resumed %s", path)

    def _save(self) -> None:
        self.checkpoints.save(
            self.parallel,
            self.ranks,
            step=self.step,
            state={
                "experiment": self.experiment.fingerprint,
                "vocabulary": self.tokens.vocabulary_fingerprint if self.tokens else None,
                "reader": self.reader.state_dict(),
                "clock": {"seconds": self.clock.seconds, "samples": self.clock.samples},
            },
        )

    def _tracker(self) -> Tracker | nullcontext[None]:
        if not self.ranks.is_first:
            return nullcontext()
        write_json(self.run_folder.path / "plan.json", plan_to_json(self.parallel.plan))
        return Tracker(
            self.run_folder.metrics,
            self.run_folder.tensorboard,
            num_steps=self.num_steps,
            step=self.step,
            title=self.experiment.name,
        )

    def _train(self, pipeline: RankingPipeline, tracker: Tracker | None) -> None:
        config = self.experiment.train
        use = TokenUse(
            num_levels=self.tokens.num_levels if self.tokens else 0,
            num_codes=self.tokens.num_codes if self.tokens else 0,
        )
        losses: list[float] = []
        with closing(iter(self.reader)) as batches:
            while self.step < self.num_steps:
                stop = self._next_stop()
                # The pipeline holds batches in flight; it is drained where the run evaluates or
                # saves, so that weights, optimizer state and place in the data agree.
                pipeline.read_from(self._watched(islice(batches, stop - self.step), use))
                while self.step < stop:
                    self._train_step(pipeline, losses)
                    if tracker is not None:
                        tracker.advance(self.step)
                    if self.step % config.log_every == 0 or self.step == self.num_steps:
                        values = self._step_metrics(pipeline, losses, use)
                        losses.clear()
                        if tracker is not None:
                            tracker.log(self.step, self.clock.samples, values)
                pipeline.detach()
                if self._is_due(config.eval_every or self.steps_per_epoch):
                    values = self._evaluate()
                    if tracker is not None:
                        tracker.log(self.step, self.clock.samples, values)
                if self._is_due(config.checkpoint_every):
                    self._save()

    def _next_stop(self) -> int:
        """The next step after which the run evaluates, saves or ends."""
        config = self.experiment.train
        rhythms = [config.eval_every or self.steps_per_epoch, config.checkpoint_every]
        stops = [(self.step // every + 1) * every for every in rhythms if every is not None]
        return min(self.num_steps, *stops)

    def _is_due(self, every: int | None) -> bool:
        return self.step == self.num_steps or (every is not None and self.step % every == 0)

    def _train_step(self, pipeline: RankingPipeline, losses: list[float]) -> None:
        start = time.perf_counter()
        pipeline.step()
        self.clock.seconds += time.perf_counter() - start
        self.clock.samples += self.experiment.train.batch_size
        self.step += 1
        losses.append(pipeline.loss)

    def _watched(self, batches: Iterator[Batch], use: TokenUse) -> Iterator[Batch]:
        for batch in batches:
            use.add(batch.items)
            yield batch

    def _step_metrics(
        self, pipeline: RankingPipeline, losses: list[float], use: TokenUse
    ) -> dict[str, float]:
        """Numbers of the steps since the last call; every rank takes part in the sums."""
        optim = self.experiment.optim
        factor = optim.factor(self.step - 1, self.num_steps)
        seconds = pipeline.take_seconds()
        num_samples = len(losses) * self.experiment.train.batch_size
        weights = {
            path.split(".")[-2]: weight for path, weight in self.parallel.sparse_weights().items()
        }
        squares = squared_norms(weights)
        names = [table.name for table in self.experiment.tables]
        total = self.ranks.all_reduce(
            torch.tensor(
                [squares.get(name, 0.0) for name in names],
                dtype=torch.float64,
                device=self.ranks.device,
            )
        )
        replicated = self.parallel.optimizer.table_optimizers
        return {
            "train/loss": float(np.mean(losses)),
            "train/gradient_norm": self.parallel.optimizer.gradient_norm,
            "train/dense_lr": optim.dense_lr * factor,
            "train/sparse_lr": optim.sparse_lr * factor,
            "throughput/samples_per_s": num_samples / seconds["step"],
            **{f"step_ms/{part}": 1e3 * s / len(losses) for part, s in seconds.items()},
            **{
                f"table_norm/{name}": float(square) ** 0.5
                / (self.ranks.world_size**0.5 if name in replicated else 1.0)
                for name, square in zip(names, total, strict=True)
            },
            **use.take(len(losses)),
        }

    def _evaluate(self) -> dict[str, float]:
        """AUC and LogLoss of each task on the validation part; empty on ranks above 0."""
        rows = self.splits.valid
        predictions = self.score(rows)
        if predictions is None:
            return {}
        scores = predictions.aligned(rows)
        labels = self.dataset.read(rows, self.dataset.schema.labels)
        values = {}
        for task, probabilities in scores.items():
            values[f"valid/{task}_auc"] = auc(labels[task].astype(np.float64), probabilities)
            values[f"valid/{task}_logloss"] = log_loss(
                labels[task].astype(np.float64), probabilities
            )
        return values

    def score(self, rows: RowRange) -> Predictions | None:
        """Probabilities of a range of rows, on rank 0; None elsewhere."""
        reader = InteractionReader(
            self.dataset,
            rows=rows,
            item_features=self.item_features,
            batch_size=self.experiment.train.eval_batch_size // self.ranks.world_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            shuffle_rows=None,
            seed=0,
            drop_last=False,
        )
        return score(self.parallel.model, reader, self.ranks, self.dataset.schema.labels)

    def _cost(self, peak_bytes: int) -> dict[str, Any]:
        """What the run cost and how large its model is."""
        tables = self.experiment.tables
        network = self.parallel.network
        sample = last_batch(self.dataset, self.item_features, self.splits.train, FLOPS_BATCH)
        return {
            "dense_params": sum(parameter.numel() for parameter in network.parameters()),
            "sparse_params": parameters_by_role(tables),
            "sparse_bytes": sum(table.num_bytes for table in tables),
            "sparse_state_bytes": sum(table.num_state_bytes for table in tables),
            "batch_size": self.experiment.train.batch_size,
            "flops_batch": sample.batch_size,
            "flops_per_batch": training_flops(
                self.experiment.model,
                tables=tables,
                num_tasks=len(self.dataset.schema.labels),
                num_histories=len(self.dataset.schema.histories),
                batch=sample,
            ),
            "samples_per_s": self.clock.samples_per_s,
            "train_seconds": self.clock.seconds,
            "samples": self.clock.samples,
            "num_ranks": self.ranks.world_size,
            "precision": self.precision,
            "uses_fsdp": self.parallel.uses_fsdp,
            "peak_rss_bytes": peak_bytes,
        }


def resolve_precision(experiment: Experiment, ranks: Ranks) -> Precision:
    """The precision in force; `auto` is bf16 where the processor multiplies it natively."""
    precision = experiment.train.precision
    if precision == "auto":
        resolved: Precision = "bf16" if runs_bf16_natively(ranks.device) else "fp32"
        logger.info("precision: %s", resolved)
        return resolved
    if precision == "bf16" and not runs_bf16_natively(ranks.device):
        logger.warning("train.precision is bf16, but this processor emulates it: expect it slower")
    return precision


def peak_memory_bytes() -> int:
    """Largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
