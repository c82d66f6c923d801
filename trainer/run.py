"""One training run on this process's rank: train, evaluate, save, score."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sharding.plan_io import plan_to_json
from trainer.batch import Batch
from trainer.checkpoint import CheckpointError, Checkpoints, load
from trainer.checkpoint_choice import ChosenCheckpoint, choose
from trainer.checkpoint_writer import CheckpointWriter
from trainer.data.dataset import Dataset
from trainer.data.reader import InteractionReader
from trainer.data.schema import RowRange
from trainer.distributed import Ranks, memory_per_rank
from trainer.experiment import Experiment
from trainer.parallelize import ParallelModel
from trainer.pipeline import RankingPipeline
from trainer.predictions import Predictions
from trainer.residual_ids import RESIDUAL_IDS, check_residual_ids, digest_of, residual_ids
from trainer.resumption import check_resumable, training_fingerprint
from trainer.run_cost import Clock, peak_memory_bytes, run_cost
from trainer.run_folder import RunFolder, write_json
from trainer.run_inputs import (
    FLOPS_BATCH,
    catalogue,
    check_embeddings_made,
    embeddings_made,
    item_features,
    last_batch,
    load_tokens,
    sample_dense,
)
from trainer.run_model import build_model, resolve_precision, sid_outcome
from trainer.scoring import score
from trainer.step_metrics import StepMetrics
from trainer.stop import StopNotice, StoppedError
from trainer.stored_state import StoredState
from trainer.tracking import TokenUse, Tracker
from trainer.validation import validation_metrics
from trainer.warm_start import WarmStart
from trainer.warm_start import warm_start as warm_start_model
from trainer.watchdog import HANG_SECONDS, Watchdog

logger = logging.getLogger(__name__)


class Trainer:
    """Everything that one rank holds during a run.

    Args:
        experiment: what to do.
        run: where results go.
        ranks: this process among all.
        stop: notice of stop signals.
        watchdog: that ends the run when it stands still.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: RunFolder,
        ranks: Ranks,
        stop: StopNotice | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.experiment = experiment
        self.run_folder = run
        self.ranks = ranks
        self.stop_notice = stop or StopNotice()
        self.watchdog = watchdog or Watchdog(ranks, HANG_SECONDS, run.log(ranks.rank))
        train_config, data = experiment.train, experiment.data
        self.dataset = Dataset.open(data.folder, data.schema)
        self.splits = self.dataset.split(data.split)
        self.tokens = load_tokens(experiment)
        self.item_features = item_features(experiment, self.dataset, self.tokens)
        self._residual_ids = residual_ids(experiment, self.dataset, self.item_features)
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
        # As they are when they are read: others may be made while the run goes on.
        self._embeddings_made = embeddings_made(experiment.model.item)
        self.checkpoints = Checkpoints(run.checkpoints)
        self.writer = CheckpointWriter(
            self.checkpoints,
            ranks,
            keep=train_config.keep_checkpoints,
            keep_best=train_config.keep_best,
            staging_bytes=train_config.checkpoint_memory_bytes or memory_per_rank(ranks)[1] // 4,
        )
        self.step = 0
        self._owes_evaluation = False
        self.clock = Clock()

    def run(self, *, resume: bool) -> None:
        """Train to the end, score the test part, write `result.json`."""
        newest = self.ranks.broadcast(self.checkpoints.newest()) if resume else None
        if newest is not None:
            with self.watchdog.paused():
                self.restore(newest)
        elif self.run_folder.given_warm_start.exists():
            with self.watchdog.paused():
                self._start_warm()
        self.writer.prepare(self.parallel)
        pipeline = RankingPipeline(
            self.parallel,
            self.ranks,
            self.run_folder.path / "non_finite_batch",
            self.stop_notice,
            dense_features=[feature.name for feature in self.dataset.schema.dense_features],
            labels=self.dataset.schema.labels,
        )
        self.parallel.model.train()
        with closing(self.writer), self._tracker() as tracker:
            self._train(pipeline, tracker)
            with self.watchdog.paused():
                self.writer.wait()
        predictions = self.score(self.splits.test)
        sids = sid_outcome(self.parallel.network)
        peak_bytes = int(
            self.ranks.all_reduce(
                torch.tensor(peak_memory_bytes(), dtype=torch.float64, device=self.ranks.device)
            )
        )
        if predictions is not None:
            predictions.save(self.run_folder.path / RunFolder.predictions_of("test"))
            cost = run_cost(
                self.experiment,
                self.dataset.schema,
                self.parallel,
                sample=last_batch(self.dataset, self.item_features, self.splits.train, FLOPS_BATCH),
                num_items=self.dataset.num_items,
                clock=self.clock,
            )
            write_json(
                self.run_folder.result,
                {
                    **cost,
                    **sids,
                    "num_ranks": self.ranks.world_size,
                    "precision": self.precision,
                    "peak_rss_bytes": peak_bytes,
                },
            )
        self.ranks.barrier()

    def _build(self) -> ParallelModel:
        return build_model(
            self.experiment,
            self.dataset.schema,
            self.ranks,
            precision=self.precision,
            sample_SF=sample_dense(self.dataset, self.item_features, self.splits.train),
            num_steps=self.num_steps,
            given_plan=self.run_folder.given_plan,
            catalogue=catalogue(self.experiment, self.dataset),
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Put the weights and optimizer state of a checkpoint in force; its JSON values.

        Raises:
            CheckpointError: when it was saved by other settings.
            ValueError: when item embeddings or rows of item IDs are not what they were.
        """
        check_resumable(path, self.experiment, self.tokens)
        stored = StoredState(path)
        check_embeddings_made(self._embeddings_made, stored)
        check_residual_ids(self._residual_ids, stored)
        return load(path, self.parallel, self.ranks, seed=self.experiment.train.seed)

    def load_chosen(self, which: str) -> ChosenCheckpoint:
        """Put a checkpoint of the run in force; rank 0 chooses, as the run may still go on.

        Args:
            which: see :func:`~trainer.checkpoint_choice.choose`.

        Raises:
            CheckpointError: when there is none such, or it was saved by other settings.
        """
        chosen: ChosenCheckpoint | str = ""
        if self.ranks.is_first:
            try:
                chosen = choose(self.checkpoints, which)
            except CheckpointError as error:
                chosen = str(error)
        chosen = self.ranks.broadcast(chosen)
        if isinstance(chosen, str):
            raise CheckpointError(chosen)
        self.load(chosen.path)
        return chosen

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: when it was saved by other settings.
        """
        state = self.load(path)
        self.reader.load_state_dict(state["reader"])
        self.step = state["step"]
        self._owes_evaluation = bool(state.get("owes_evaluation", False))
        self.clock = Clock(state["clock"]["seconds"], state["clock"]["samples"])
        logger.info("resumed %s", path)

    def _start_warm(self) -> None:
        """Take over what the run was told to, and leave a report."""
        config = WarmStart.from_dict(json.loads(self.run_folder.given_warm_start.read_text()))
        taken = warm_start_model(
            config,
            self.parallel,
            self.ranks,
            experiment=self.experiment,
            tokens=self.tokens,
            residual_ids=self._residual_ids,
        )
        if self.ranks.is_first:
            write_json(self.run_folder.warm_start_report, [asdict(one) for one in taken])

    def _save(
        self, validation: dict[str, float] | None = None, *, owes_evaluation: bool = False
    ) -> dict[str, float]:
        """Begin a checkpoint; what it costs.

        Args:
            validation: metrics of these very weights, where they were evaluated.
            owes_evaluation: they should have been, but the run was told to stop.
        """
        cost = self.writer.save(
            self.parallel,
            step=self.step,
            state={
                "experiment": training_fingerprint(self.experiment),
                "vocabulary": self.tokens.vocabulary_fingerprint if self.tokens else None,
                "item_embeddings": self._embeddings_made,
                RESIDUAL_IDS: digest_of(self._residual_ids),
                "schedule": {"num_steps": self.num_steps},
                "reader": self.reader.state_dict(),
                "clock": {"seconds": self.clock.seconds, "samples": self.clock.samples},
                "validation": {k: v for k, v in (validation or {}).items() if math.isfinite(v)},
                "owes_evaluation": owes_evaluation,
            },
            documents={
                "config": self.experiment.to_dict(),
                "plan": plan_to_json(self.parallel.plan),
            },
        )
        return {
            "checkpoint/seconds_stalled": cost.seconds_stalled,
            "checkpoint/bytes": float(cost.num_bytes),
        }

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
        metrics = StepMetrics(
            self.experiment,
            self.parallel,
            self.ranks,
            num_steps=self.num_steps,
            use=TokenUse(
                num_levels=self.tokens.num_levels if self.tokens else 0,
                num_codes=self.tokens.num_codes if self.tokens else 0,
            ),
        )
        if self._owes_evaluation:  # since before the run was resumed
            self._log(tracker, self._evaluate())
        with closing(iter(self.reader)) as batches:
            while self.step < self.num_steps:
                stop = self._next_stop()
                # The pipeline holds batches in flight; it is drained where the run evaluates or
                # saves, so that weights, optimizer state and place in the data agree.
                pipeline.read_from(metrics.watch(islice(batches, stop - self.step)))
                while self.step < stop and self._train_step(pipeline, metrics):
                    if tracker is not None:
                        tracker.advance(self.step)
                    if self.step % config.log_every == 0 or self.step == self.num_steps:
                        self._log(tracker, metrics.take(self.step, pipeline))
                pipeline.detach()
                evaluates = self._is_due(config.eval_every or self.steps_per_epoch)
                validation: dict[str, float] = {}
                try:
                    if pipeline.stopping:
                        raise StoppedError(self._told_to_stop())
                    if evaluates:
                        validation = self._evaluate()
                        self._log(tracker, validation)
                except StoppedError as error:  # save before all else: time may be short
                    with self.watchdog.paused():
                        self._save(owes_evaluation=evaluates)
                        self.writer.wait()
                    raise StoppedError(f"{error}: saved after step {self.step}") from error
                is_candidate = evaluates and config.keep_best is not None
                if self._is_due(config.checkpoint_every) or is_candidate:
                    with self.watchdog.paused():
                        values = self._save(validation)
                    self._log(tracker, values)

    def _log(self, tracker: Tracker | None, values: dict[str, float]) -> None:
        if tracker is not None:
            tracker.log(self.step, self.clock.samples, values)

    def _next_stop(self) -> int:
        """The next step after which the run evaluates, saves or ends."""
        config = self.experiment.train
        rhythms = [config.eval_every or self.steps_per_epoch, config.checkpoint_every]
        stops = [(self.step // every + 1) * every for every in rhythms if every is not None]
        return min(self.num_steps, *stops)

    def _is_due(self, every: int | None) -> bool:
        return self.step == self.num_steps or (every is not None and self.step % every == 0)

    def _train_step(self, pipeline: RankingPipeline, metrics: StepMetrics) -> bool:
        """Train on a batch; False when the run is told to stop and no batch is in flight."""
        self.watchdog.beat()
        self.writer.check()
        start = time.perf_counter()
        try:
            outputs = pipeline.step()
        except StopIteration:
            assert pipeline.stopping
            return False
        self.clock.seconds += time.perf_counter() - start
        self.clock.samples += self.experiment.train.batch_size
        self.step += 1
        metrics.add(pipeline.loss, outputs.losses)
        return True

    def _evaluate(self) -> dict[str, float]:
        """Quality on the validation part; empty on ranks above 0."""
        predictions = self.score(self.splits.valid)
        if predictions is None:
            return {}
        return validation_metrics(self.dataset, self.splits.valid, predictions)

    def score(self, rows: RowRange) -> Predictions | None:
        """Probabilities of a range of rows, on rank 0; None elsewhere.

        Raises:
            StoppedError: on every rank, when one was told to stop meanwhile.
        """
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
        with closing(iter(reader)) as read:
            batches = self._until_told(self.watchdog.beating(read))
            return score(self.parallel.model, batches, self.ranks, self.dataset.schema.labels)

    def _until_told(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, as long as no rank is told to stop; every rank has as many."""
        for batch in batches:
            told = torch.tensor(float(self.stop_notice.received is not None))
            if float(self.ranks.all_reduce(told.to(self.ranks.device))) > 0:
                raise StoppedError(f"{self._told_to_stop()} while it scored")
            yield batch

    def _told_to_stop(self) -> str:
        received = self.stop_notice.received
        return f"told to stop ({'another rank' if received is None else received.name})"
