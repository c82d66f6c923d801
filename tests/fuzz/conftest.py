import pytest
from pyarrow import parquet as pq

from tests.faults import tiny_experiment
from trainer.data.synthetic import write_synthetic

NUM_ROWS = 120


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data folder of some rows of a simulated log."""
    folder = tmp_path_factory.mktemp("fuzz") / "data"
    write_synthetic(tiny_experiment.LOG, folder)
    path = folder / "interactions" / "part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, NUM_ROWS), path, row_group_size=50)
    return folder
