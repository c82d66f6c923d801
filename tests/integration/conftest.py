from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs import datasets, dig, trm_rankmixer
from tests.integration.rank_processes import run_ranks
from tests.integration.retrieve_workers import train_smoke
from tokenization.pipeline import fit_tokens
from trainer.data.synthetic import write_synthetic
from trainer.experiment import Experiment

torch.set_num_threads(1)  # the ranks of a test share two cores with the reference


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A folder with `data/smoke` in it: log and tokens of the smoke experiments."""
    folder = tmp_path_factory.mktemp("workspace")
    data = folder / "data" / "smoke"
    write_synthetic(datasets.SMOKE, data)
    items = pq.read_table(data / "items.parquet", columns=["item_id", "embedding"])
    tokens = datasets.smoke().tokens
    fit_tokens(
        items["item_id"].to_numpy(),
        np.stack(items["embedding"].to_numpy()),
        tokenizer=tokens.tokenizer,
        mem=tokens.mem,
    ).save(data / "tokens")
    return folder


@pytest.fixture(scope="session")
def smoke(workspace) -> Experiment:
    """TRM on the smoke log, with dropout, 22 steps and a checkpoint every five."""
    experiment = trm_rankmixer.smoke()
    data = workspace / "data" / "smoke"
    assert experiment.model.item.dropout > 0
    return replace(
        experiment,
        data=replace(experiment.data, folder=data, shuffle_rows=2048),
        tokenizer=replace(experiment.tokenizer, folder=data / "tokens"),
        train=replace(
            experiment.train,
            batch_size=256,
            max_steps=22,
            log_every=3,
            eval_every=10,
            checkpoint_every=5,
            keep_checkpoints=10,
            precision="fp32",
        ),
    )


@pytest.fixture(scope="session")
def dig_experiment(workspace) -> Experiment:
    """DIG on the smoke log, 12 steps."""
    made = dig.smoke()
    return replace(
        made,
        data=replace(made.data, folder=workspace / "data" / "smoke", shuffle_rows=2048),
        model=replace(made.model, track_every=5),
        train=replace(made.train, max_steps=12, precision="fp32", log_every=4),
    )


@pytest.fixture(scope="session")
def dig_run(dig_experiment, tmp_path_factory):
    """The run folder of that experiment, trained on one rank."""
    folder = tmp_path_factory.mktemp("dig") / "run"
    run_ranks(train_smoke, 1, dig_experiment, folder)
    return folder
