"""Numbers of training steps, from one line of metrics to the next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from trainer.batch import Batch
from trainer.distributed import Ranks
from trainer.experiment import Experiment
from trainer.models.tower import MeasuredTower
from trainer.parallelize import ParallelModel
from trainer.pipeline import RankingPipeline
from trainer.tracking import TokenUse, squared_norms


class StepMetrics:
    """Gathers what steps tell and sums it up when a line is due.

    Args:
        experiment: with its learning rates and tables.
        parallel: model and optimizers.
        ranks: this process among all.
        num_steps: length of the schedule.
        use: counts the tokens that are looked up.
    """

    def __init__(
        self,
        experiment: Experiment,
        parallel: ParallelModel,
        ranks: Ranks,
        *,
        num_steps: int,
        use: TokenUse,
    ) -> None:
        self._experiment = experiment
        self._parallel = parallel
        self._ranks = ranks
        self._num_steps = num_steps
        self._use = use
        self._losses: list[float] = []
        self._parts: dict[str, tuple[float, int]] = {}

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; each is counted when the pipeline takes it."""
        for batch in batches:
            self._use.add(batch.items)
            yield batch

    def add(self, loss: float, parts: dict[str, torch.Tensor]) -> None:
        """Note a step.

        Args:
            loss: averaged over ranks.
            parts: terms of this rank's loss by name.
        """
        self._losses.append(loss)
        for name, value in parts.items():
            total, count = self._parts.get(name, (0.0, 0))
            self._parts[name] = total + float(value), count + 1

    def take(self, step: int, pipeline: RankingPipeline) -> dict[str, float]:
        """Numbers of the steps since the last call; every rank takes part in the sums.

        Args:
            step: steps trained.
            pipeline: that made them.
        """
        optim, count = self._experiment.optim, len(self._losses)
        factor = optim.factor(step - 1, self._num_steps)
        seconds = pipeline.take_seconds()
        values = {
            "train/loss": float(np.mean(self._losses)),
            **self._mean_parts(),
            "train/gradient_norm": self._parallel.optimizer.gradient_norm,
            "train/dense_lr": optim.dense_lr * factor,
            "train/sparse_lr": optim.sparse_lr * factor,
            "throughput/samples_per_s": count * self._experiment.train.batch_size / seconds["step"],
            **{f"step_ms/{part}": 1e3 * s / count for part, s in seconds.items()},
            **self._tower_measures(),
            **self._table_norms(),
            **self._use.take(count),
        }
        self._losses.clear()
        self._parts.clear()
        return values

    def _mean_parts(self) -> dict[str, float]:
        """Means over the steps that had each of them, the same steps on every rank."""
        names = sorted(self._parts)
        sums = self._over_ranks([self._parts[name][0] / self._parts[name][1] for name in names])
        scale = self._ranks.world_size
        return {f"train/{name}": total / scale for name, total in zip(names, sums, strict=True)}

    def _tower_measures(self) -> dict[str, float]:
        tower = self._parallel.network.tower
        if not isinstance(tower, MeasuredTower):
            return {}
        return {f"tower/{name}": value for name, value in tower.measures().items()}

    def _table_norms(self) -> dict[str, float]:
        weights = {
            path.split(".")[-2]: weight for path, weight in self._parallel.sparse_weights().items()
        }
        squares = squared_norms(weights)
        names = [table.name for table in self._experiment.tables]
        total = self._over_ranks([squares.get(name, 0.0) for name in names])
        replicated = self._parallel.optimizer.table_optimizers
        return {
            f"table_norm/{name}": square**0.5
            / (self._ranks.world_size**0.5 if name in replicated else 1.0)
            for name, square in zip(names, total, strict=True)
        }

    def _over_ranks(self, values: list[float]) -> list[float]:
        """Sums over ranks."""
        if not values:
            return []
        own = torch.tensor(values, dtype=torch.float64, device=self._ranks.device)
        return [float(value) for value in self._ranks.all_reduce(own)]
