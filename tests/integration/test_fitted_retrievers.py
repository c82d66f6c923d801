"""Retrievers fitted beside each other: each once, what is done stays."""

import numpy as np
import pytest

from configs import datasets
from launch.fitted_retrievers import FittedRetriever, fit_missing
from launch.ranks import RankFailedError
from tests.integration.fitting_workers import Broken, Meeting
from trainer.baselines.popularity import PopularityConfig
from trainer.baselines.transition_counts import TransitionCountsConfig
from trainer.data.dataset import Dataset
from trainer.retrieval_task import RetrievalTask


@pytest.fixture(scope="module")
def log(workspace):
    data = datasets.smoke().data
    dataset = Dataset.open(workspace / data.folder, data.schema)
    return dataset, RetrievalTask.of_log(dataset, dataset.split(data.split))


def in_folder(folder, *configs):
    return [
        FittedRetriever(config=one, seed=0, folder=folder / str(place))
        for place, one in enumerate(configs)
    ]


def test_two_are_fitted_at_a_time_and_none_twice(log, tmp_path):
    dataset, task = log
    pair = [
        Meeting(title="left", folder=tmp_path, others="right"),
        Meeting(title="right", folder=tmp_path, others="left"),
    ]
    kept, *fitted = in_folder(tmp_path, TransitionCountsConfig(), *pair, PopularityConfig())
    with kept.held(wait=False) as is_held:
        assert is_held
        kept.fit(dataset, task)
    before = kept.path.stat().st_mtime_ns
    fit_missing([kept, *fitted], dataset=dataset, task=task, ranks=2, log_folder=tmp_path / "log")
    assert kept.path.stat().st_mtime_ns == before
    assert (tmp_path / "left").read_text() != (tmp_path / "right").read_text()
    own = PopularityConfig().build(dataset)
    own.fit(task, seed=0)
    expected = own.top(task.test.history, 50)
    for one in fitted:
        assert np.array_equal(np.load(one.path), expected)
    assert not list(tmp_path.glob("*/.lists*"))


def test_one_that_fails_is_named_and_the_others_stay(log, tmp_path):
    dataset, task = log
    fitted = in_folder(tmp_path, PopularityConfig(), Broken())
    with pytest.raises(RankFailedError, match="broken: expected a log with texts"):
        fit_missing(fitted, dataset=dataset, task=task, ranks=1, log_folder=tmp_path / "log")
    assert fitted[0].path.exists()
    assert not fitted[1].path.exists()


def test_what_another_process_fits_is_not_taken(tmp_path):
    (one,) = in_folder(tmp_path, PopularityConfig())
    with one.held(wait=False) as first, one.held(wait=False) as second:
        assert (first, second) == (True, False)
    with one.held(wait=True) as again:
        assert again
