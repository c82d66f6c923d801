import json
import os
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from configs import dig, dlrm_id
from launch import cells as cells_module
from launch.cells import Cells, item_embeddings_digest, log_digest
from tokenization.embedding_table import EmbeddingTable
from trainer.run_folder import RunFolder


@pytest.fixture
def experiment(tmp_path):
    smoke = dlrm_id.smoke()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return replace(smoke, data=replace(smoke.data, folder=folder))


@pytest.fixture
def trained(monkeypatch):
    """Training leaves a result and is counted."""
    seen = []

    def run(function, ranks, experiment, folder, resume, *, log_folder):
        seen.append((experiment.train.seed, ranks, resume))
        folder.mkdir(parents=True)
        RunFolder(folder).result.write_text(json.dumps({}))

    monkeypatch.setattr(cells_module, "run_on_ranks", run)
    return seen


def test_a_finished_cell_is_not_run_again_whatever_the_experiment_is_called(
    tmp_path, experiment, trained
):
    cells = Cells(root=tmp_path / "cells", ranks=2)
    first = cells.trained(experiment, seeds=2, title="row", console=Console())
    assert trained == [(0, 2, True), (1, 2, True)]
    renamed = replace(experiment, name="called_otherwise")
    again = cells.trained(renamed, seeds=2, title="other", console=Console())
    assert again == first
    assert len(trained) == 2
    cells.trained(experiment, seeds=3, title="row", console=Console())
    assert trained[2:] == [(2, 2, True)]


def test_another_setting_or_another_log_is_another_cell(tmp_path, experiment):
    cells = Cells(root=tmp_path / "cells", ranks=1)
    folders = [cells.folder(experiment).path]
    other = replace(experiment, optim=replace(experiment.optim, sparse_lr=0.01))
    folders.append(cells.folder(other).path)
    (experiment.data.folder / "manifest.json").write_text('{"rows": 1}')
    folders.append(cells.folder(experiment).path)
    assert len(set(folders)) == 3
    assert folders[0].name.startswith("data_dlrm_id_seed0_")


def test_a_log_of_another_hand_is_known_by_its_files(tmp_path, experiment):
    (experiment.data.folder / "manifest.json").unlink()
    path = experiment.data.folder / "interactions" / "part-00000.parquet"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    before = log_digest(experiment.data.folder)
    assert log_digest(experiment.data.folder) == before
    (experiment.data.folder / "tokens").mkdir()  # made of the log, not a part of it
    (experiment.data.folder / "tokens" / "tokens.parquet").write_bytes(b"abc")
    assert log_digest(experiment.data.folder) == before
    path.write_bytes(b"abd")  # as long
    os.utime(path, ns=(0, 0))
    assert log_digest(experiment.data.folder) != before


def test_other_item_embeddings_are_another_cell(tmp_path):
    smoke = dig.smoke()
    path = tmp_path / "item_embeddings.parquet"
    item = replace(smoke.model.item, embeddings=path, embedding_column=None)
    experiment = replace(smoke, model=replace(smoke.model, item=item))
    cells = Cells(root=tmp_path / "cells", ranks=1)
    folders = []
    for value in (1.0, 2.0, 1.0):
        table = EmbeddingTable(
            item_ids=np.arange(3), embeddings=np.full((3, 32), value, np.float32)
        )
        table.save(path)
        folders.append(cells.folder(experiment).path)
        other = item_embeddings_digest(item)
    assert folders[0] == folders[2] != folders[1]
    assert item_embeddings_digest(None) == b"" != other
