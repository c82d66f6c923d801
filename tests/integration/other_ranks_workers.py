"""What ranks do in the tests of other ranks and of warm starts; spawned processes import it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from trainer.distributed import start_ranks, stop_ranks
from trainer.experiment import Experiment
from trainer.loop import score_split, train
from trainer.run import Trainer
from trainer.run_folder import RunFolder
from trainer.stored_state import TensorFile
from trainer.warm_start import WarmStart, warm_start


def train_whole(experiment: Experiment, folder: Path, plan: Path | None = None) -> None:
    """Train without interruption."""
    train(experiment, folder, plan=plan)
    stop_ranks()


def train_until_the_disk_is_full(experiment: Experiment, folder: Path) -> None:
    """Train; no checkpoint after the first fits on the disk."""
    real = TensorFile._write

    def limited(self: TensorFile, data: bytes | memoryview) -> None:
        if "step_0000000005" not in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    TensorFile._write = limited
    train(experiment, folder)


def score_newest_and_best(experiment: Experiment, folder: Path, out: Path) -> None:
    """Score the test part with the newest checkpoint, and the validation part with the best."""
    score_split(experiment, folder, "test", out / "test.parquet", "newest")
    score_split(experiment, folder, "valid", out / "valid.parquet")
    stop_ranks()


def train_warm(experiment: Experiment, folder: Path, warm_start: WarmStart) -> None:
    """Train, beginning with what another run has learned."""
    train(experiment, folder, warm_start=warm_start)
    stop_ranks()


def warm_starts(scenarios: list[tuple[str, Experiment, WarmStart]], folder: Path) -> None:
    """Warm-start each model and save it untrained, with the report or what was refused."""
    ranks = start_ranks()
    for name, experiment, config in scenarios:
        run = RunFolder(folder / name)
        if ranks.is_first:
            run.create(experiment)
        ranks.barrier()
        trainer = Trainer(experiment, run, ranks)
        _save(trainer, step=1)
        try:
            taken = warm_start(
                config, trainer.parallel, ranks, experiment=experiment, tokens=trainer.tokens
            )
            said = {one.name: [one.outcome, one.why] for one in taken}
            _save(trainer, step=2)
        except ValueError as error:
            said = {"error": str(error)}
        (run.path / f"said_{ranks.rank}.json").write_text(json.dumps(said))
    stop_ranks()


def _save(trainer: Trainer, step: int) -> None:
    trainer.writer.save(trainer.parallel, step=step, state={}, documents={"config": {}})
    trainer.writer.wait()
