from dataclasses import replace

import pytest

from tests.faults import tiny_experiment
from tests.faults.fault_workers import train_whole
from tests.integration.rank_processes import run_ranks
from trainer.data.synthetic import write_synthetic


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folder of the log."""
    folder = tmp_path_factory.mktemp("log") / "tiny"
    write_synthetic(tiny_experiment.LOG, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(data):
    """The short experiment."""
    experiment = tiny_experiment.tiny()
    return replace(experiment, data=replace(experiment.data, folder=data))


@pytest.fixture(scope="session")
def killed(data):
    """The long experiment."""
    experiment = tiny_experiment.killed()
    return replace(experiment, data=replace(experiment.data, folder=data))


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory):
    """The short experiment, uninterrupted, on one rank."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(train_whole, 1, tiny, folder)
    return folder


@pytest.fixture(scope="session")
def whole_long(killed, tmp_path_factory):
    """The long experiment, uninterrupted, on two ranks."""
    folder = tmp_path_factory.mktemp("whole_long") / "run"
    run_ranks(train_whole, 2, killed, folder, timeout=500)
    return folder
