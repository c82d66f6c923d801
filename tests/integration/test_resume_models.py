"""Models with state of their own, codebooks by averages and samplers, resume bit for bit too."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs import dig, store, trm_joint
from tests.integration.rank_processes import run_ranks
from tests.integration.test_resume import assert_bit_equal, random_step, tensors
from tests.integration.workers import train_whole_and_stopped
from tokenization.pipeline import fit_tokens

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def on_the_smoke_log(smoke, tmp_path_factory):
    """DIG (also with a resting encoder), the joint objective, STORE; the rhythm of resumption."""
    items = pq.read_table(smoke.data.folder / "items.parquet", columns=["item_id", "embedding"])
    found = {}
    whole = dig.smoke()
    item = replace(whole.model.item, fixed_after=4)
    resting = replace(whole, name="dig_resting", model=replace(whole.model, item=item))
    for experiment in (whole, resting, trm_joint.smoke(), store.smoke()):
        config = experiment.tokenizer
        if config is not None:
            folder = tmp_path_factory.mktemp(experiment.name) / "tokens"
            fit_tokens(
                items["item_id"].to_numpy(),
                np.stack(items["embedding"].to_numpy()),
                tokenizer=config.tokenizer,
                mem=config.mem,
                collisions=config.collisions,
            ).save(folder)
            config = replace(config, folder=folder)
        data = replace(experiment.data, folder=smoke.data.folder, shuffle_rows=2048)
        found[experiment.name] = replace(experiment, data=data, tokenizer=config, train=smoke.train)
    return found


def test_dig_joint_objective_and_store_resume_bit_for_bit(on_the_smoke_log, tmp_path):
    scenarios = [(experiment, random_step()) for experiment in on_the_smoke_log.values()]
    run_ranks(train_whole_and_stopped, 2, scenarios, tmp_path, timeout=800)
    for name in on_the_smoke_log:
        runs = tmp_path / name
        saved = assert_bit_equal(runs / "whole", runs / "stopped")
        predictions = [
            (runs / run / "predictions_test.parquet").read_bytes() for run in ("whole", "stopped")
        ]
        assert predictions[0] == predictions[1], name
        if name == "dig":
            (codebooks,) = (one for one in saved if one.endswith("codebooks_LKD/value"))
            early, late = (tensors(runs / "whole", step) for step in (5, 22))
            assert not torch.equal(early[codebooks, (0, 0, 0)], late[codebooks, (0, 0, 0)])
