"""TorchRec's training pipeline, with a clock and a guard before the backward pass."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from trainer.batch import Batch
from trainer.batch_file import save_batch
from trainer.distributed import Ranks
from trainer.models.ranking_model import Outputs
from trainer.non_finite import cause_of
from trainer.parallelize import ParallelModel
from trainer.stop import StopNotice


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; no weight has been changed by that batch."""


class RankingPipeline(TrainPipelineSparseDist[Batch, Outputs]):
    """Overlaps reading, exchange of ids, and computing; stops before a bad batch does harm.

    The loss is averaged over ranks in every step: that is the loss that is logged, and since one
    rank's NaN reaches all, every rank stops at the same step, before any gradient exists.

    Args:
        parallel: model and optimizer.
        ranks: this process among all.
        bad_batch_folder: where a batch with a non-finite loss is saved, a file a rank.
        stop: this rank's notice of stop signals.
        dense_features: names of the columns of `Batch.dense_BF`, for messages.
        labels: names of the columns of `Batch.labels_BN`, for messages.

    Attributes:
        loss: of the last step, averaged over ranks.
        stopping: whether some rank was told to stop, which travels with the loss so that all know
            after the same step; no further batch is read then, those in flight are trained on.
        seconds: time spent since `take_seconds` in `data` (waiting for the reader), `forward`,
            `backward` (with the fused table updates) and in `step` (everything).
    """

    def __init__(
        self,
        parallel: ParallelModel,
        ranks: Ranks,
        bad_batch_folder: Path,
        stop: StopNotice | None = None,
        *,
        dense_features: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__(parallel.model, parallel.optimizer, ranks.device)
        self._parallel = parallel
        self._ranks = ranks
        self._names = {"dense_features": dense_features, "labels": labels}
        self._bad_batch_folder = bad_batch_folder
        self._stop = stop or StopNotice()
        self.loss = float("nan")
        self.stopping = False
        self.seconds: dict[str, float] = defaultdict(float)
        self._forward = parallel.model
        self._model_fwd = self._timed_forward
        self._feed: Iterator[Batch] = iter(())

    def read_from(self, batches: Iterator[Batch]) -> None:
        """Take batches from this iterator from now on."""
        self._feed = self._timed_batches(batches)

    def step(self) -> Outputs:
        """Train on one batch.

        Raises:
            StopIteration: when no batch is left.
            NonFiniteLossError: naming the saved batch.
        """
        start = time.perf_counter()
        outputs = self.progress(self._feed)
        self.seconds["step"] += time.perf_counter() - start
        return outputs

    def take_seconds(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def _timed_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while not self.stopping:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds["data"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _timed_forward(self, batch: Batch | None) -> tuple[Tensor, Outputs]:
        start = time.perf_counter()
        loss, outputs = self._forward(batch)
        self.seconds["forward"] += time.perf_counter() - start
        return loss, outputs

    def _backward(self, losses: Tensor) -> None:
        start = time.perf_counter()
        told = losses.new_tensor(float(self._stop.received is not None))
        total = self._ranks.all_reduce(torch.stack([losses.detach(), told]))
        self.loss, num_told = (total / total.new_tensor([self._ranks.world_size, 1])).tolist()
        self.stopping = num_told > 0
        if not torch.isfinite(torch.tensor(self.loss)):
            self._stop_at_bad_batch(float(losses.detach()))
        super()._backward(losses)
        self.seconds["backward"] += time.perf_counter() - start

    def _stop_at_bad_batch(self, own_loss: float) -> None:
        path = self._bad_batch_folder / f"rank_{self._ranks.rank}.safetensors"
        bad_batch = self.batches[0]
        assert bad_batch is not None
        try:
            self._bad_batch_folder.mkdir(parents=True, exist_ok=True)
            save_batch(bad_batch, path)
            where = f"The batch is in {path}"
        except (OSError, SafetensorError) as error:  # the others wait for what comes next
            where = f"The batch could not be saved to {path} ({error})"
        self.detach()
        cause = cause_of(self._parallel, bad_batch, self._ranks, **self._names)
        raise NonFiniteLossError(
            f"loss is {self.loss} over all ranks ({own_loss} on rank {self._ranks.rank}); stopped "
            f"before the backward pass, so no weight has changed. {cause}. {where}; mend or drop "
            "such rows, or go on from an earlier checkpoint with a lower optim.dense_lr or "
            "optim.sparse_lr (lower optim.max_dense_norm where it happens again)."
        )
