import json
from dataclasses import replace

import numpy as np
import pytest

from configs import datasets, dlrm_id
from launch import scale as scale_module
from launch.cells import Cells
from launch.scale import ScaleOptions, scale
from trainer.data.dataset import Dataset
from trainer.data.synthetic import write_synthetic
from trainer.predictions import Predictions
from trainer.run_folder import RunFolder
from trainer.scaling_study import ScalingSide, ScalingStudy

SIZES = (10**5, 3 * 10**5, 10**6, 3 * 10**6)


@pytest.fixture
def study(tmp_path):
    config = replace(datasets.SMOKE, num_rows=3_000)
    write_synthetic(config, tmp_path / "data")
    source = datasets.smoke()
    data = replace(source.data, folder=tmp_path / "data")
    base = replace(dlrm_id.smoke(), data=data)
    steps = [
        replace(base, train=replace(base.train, max_steps=number + 1))
        for number in range(len(SIZES))
    ]
    side = ScalingSide(title="tokens", kind="token", experiments=tuple(steps))
    return ScalingStudy(
        name="toy",
        sides=(side, replace(side, title="ids", kind="id")),
        baseline=base,
        question=("tokens", "ids"),
    )


@pytest.fixture
def trained(monkeypatch, study):
    """Cells hold made-up scores that come closer to the truth with the number of steps."""
    data = study.baseline.data
    dataset = Dataset.open(data.folder, data.schema)
    rows = dataset.split(data.split).test
    truth = dataset.read(rows, ["p_click", "p_play"])

    def cells(self, experiment, *, seeds, title, console):
        found = {}
        for seed in range(seeds):
            size = SIZES[(experiment.train.max_steps or 1) - 1]
            run = RunFolder(self.root / f"{title}_{seed}")
            run.path.mkdir(parents=True)
            noise = np.random.default_rng(seed).standard_normal(len(rows))
            Predictions(
                rows=np.arange(rows.start, rows.stop),
                scores={
                    task: 1 / (1 + np.exp(-np.log(p / (1 - p)) - 300 * size**-0.5 * noise))
                    for task, p in (("click", truth["p_click"]), ("play", truth["p_play"]))
                },
            ).save(run.path / RunFolder.predictions_of("test"))
            cost = {"dense_params": size, "flops_per_batch": 9 * size, "flops_batch": 4096}
            run.result.write_text(
                json.dumps({**cost, "samples": 2400, "train_seconds": 1.0 + seed})
            )
            found[seed] = run
        return found

    monkeypatch.setattr(Cells, "trained", cells)
    monkeypatch.setattr(scale_module, "prepare", lambda experiment, console: None)


def test_cells_become_a_report(study, trained, tmp_path, capsys):
    options = ScaleOptions(
        seeds=2,
        ranks=1,
        folder=tmp_path / "report",
        cells=tmp_path / "cells",
        json=tmp_path / "copy.json",
    )
    scale("toy.study", study, options)
    report = json.loads((tmp_path / "report" / "scaling.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    assert report["command"].startswith("farewell scale toy.study --seeds ")
    assert [point["dense_params"] for point in report["sides"][0]["points"]] == [*SIZES]
    losses = [point["logloss"] for point in report["sides"][0]["points"]]
    assert losses == sorted(losses, reverse=True)
    assert report["sides"][0]["points"][0]["train_seconds"] == 1.5
    assert report["exponents"][0]["verdict"] == "undecided"
    said = capsys.readouterr().out
    assert "The data do not decide whether beta_token > beta_id" in said
    assert "scaling.html" in said


def test_ranks_that_cannot_share_a_batch_are_refused(study, trained, tmp_path):
    with pytest.raises(ValueError, match=r"train\.batch_size is 256, which 3 ranks"):
        scale("toy.study", study, ScaleOptions(ranks=3, folder=tmp_path, cells=tmp_path / "cells"))
