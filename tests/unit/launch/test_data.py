import json

import pytest

from configs import datasets, trm_rankmixer
from launch import data
from trainer.data.dataset import Dataset
from trainer.data.schema import DatasetSchema


def test_synthetic_writes_a_folder_and_prints_what_it_holds(tmp_path, capsys):
    folder = tmp_path / "log"
    args = ["--num-rows", "3000", "--num-items", "300", "--num-users", "100", "--days", "3"]
    data.main(["synthetic", "--folder", str(folder), *args, "--churn", "0.1", "--seed", "7"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["num_rows"], manifest["num_users"], manifest["num_items"]) == (3_000, 100, 390)
    printed = capsys.readouterr().out
    for words in ("3,000", "click positives", "play positives", "bayes auc click", "MB"):
        assert words in printed
    assert f"{manifest['facts']['bayes_auc_play']:.4f}" in printed


def test_the_smoke_log_is_the_one_that_smoke_experiments_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.main(["smoke"])
    config = trm_rankmixer.smoke().data
    assert Dataset.open(config.folder, config.schema).num_rows == datasets.SMOKE.num_rows
    assert "20,000" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["movielens1m", "movielens100k"])
def test_movielens_verbs_name_their_source_and_folder(verb, tmp_path, capsys, monkeypatch):
    asked = []

    def write(source, folder, *, progress):
        asked.append((source, folder))
        progress(1, 1)
        return data.Manifest(
            name=source.schema.name,
            num_rows=100,
            num_users=2,
            num_items=3,
            first_time=0,
            last_time=86_400,
            positives={"like": 25.0},
            num_bytes=1_000_000,
            columns={},
            source={},
            facts={},
            created_by="",
        )

    monkeypatch.setattr(data, "write_movielens", write)
    data.main([verb, "--folder", str(tmp_path / "here")])
    [(source, folder)] = asked
    assert isinstance(source.schema, DatasetSchema)
    assert source.schema.name == verb
    assert folder == tmp_path / "here"
    printed = capsys.readouterr().out
    assert "1970-01-01 to 1970-01-02" in printed
    assert "25 (25.0%)" in printed


@pytest.mark.parametrize("args", [[], ["movielens1m"], ["movielens100k"], ["synthetic"]])
def test_help_shows_an_example(args, capsys):
    with pytest.raises(SystemExit) as stop:
        data.main([*args, "--help"])
    assert stop.value.code == 0
    assert "Example: farewell data" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["netflix"], ["synthetic", "--num-rowz", "5"]])
def test_unknown_names_end_with_a_message(args, capsys):
    with pytest.raises(SystemExit) as stop:
        data.main(args)
    assert stop.value.code != 0
    assert args[-1 if args[0] == "netflix" else 1].lstrip("-") in capsys.readouterr().err
