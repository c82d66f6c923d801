import json

import pytest

from configs import datasets, trm_rankmixer
from launch import data
from tests.unit.trainer.data import kuairec_made, taobao_ad_made
from trainer.data.dataset import Dataset
from trainer.data.schema import DatasetSchema
from trainer.data.writer import Manifest


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


@pytest.mark.parametrize(
    "verb", ["movielens1m", "movielens1m-collm", "movielens1m-last-click", "movielens100k"]
)
def test_movielens_verbs_name_their_source_and_folder(verb, tmp_path, capsys, monkeypatch):
    asked = []

    def write(source, folder, *, progress):
        asked.append((source, folder))
        progress(1, 1)
        return Manifest(
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
    assert source.schema.name == verb.replace("-", "_")
    assert folder == tmp_path / "here"
    printed = capsys.readouterr().out
    assert "1970-01-01 to 1970-01-02" in printed
    assert "25 (25.0%)" in printed


VERBS = [
    *("movielens1m", "movielens1m-collm", "movielens1m-last-click", "movielens100k", "synthetic"),
    *("avazu", "criteo", "amazon-beauty", "open-bandit", "kuairec", "taobao-ad"),
]


def test_published_files_are_written_from_where_they_lie(tmp_path, capsys):
    row = ["1", *["2"] * 13, *["0000000a"] * 26]
    (tmp_path / "train.txt").write_text(("\t".join(row) + "\n") * 5)
    source, folder = tmp_path / "train.txt", tmp_path / "log"
    data.main(["criteo", "--source", str(source), "--folder", str(folder), "--max-rows", "3"])
    assert json.loads((folder / "manifest.json").read_text())["num_rows"] == 3
    assert "click positives" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected Avazu's train"):
        data.main(["avazu", "--source", str(source), "--folder", str(folder)])


def test_reviews_without_times_are_shown_without(tmp_path, capsys):
    items = {str(item): {"title": "Soap", "categories": [["Beauty"]]} for item in range(1, 8)}
    (tmp_path / "items.json").write_text(json.dumps(items))
    (tmp_path / "sequences.txt").write_text("1 1 2 3 4\n2 7 6 5\n")
    folder = tmp_path / "log"
    args = ["--source", str(tmp_path), "--folder", str(folder), "--negatives", "2", "--seed", "3"]
    data.main(["amazon_beauty", *args])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_rows"] == 21
    assert "2 items drawn at random" in manifest["source"]["label 0"]
    printed = capsys.readouterr().out
    assert "7 (33.3%)" in printed
    assert "1970" not in printed


def test_kuairec_and_taobao_go_where_their_sources_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = kuairec_made.made()
    few.write(tmp_path / "big")
    few.write(tmp_path / "small", matrix="small")
    taobao_ad_made.made().write(tmp_path / "ads")
    data.main(["kuairec", "--source", "big"])
    data.main(["kuairec", "--source", "small", "--matrix", "small"])
    data.main(["taobao_ad", "--source", "ads"])
    for source in (datasets.kuairec_big(), datasets.kuairec_small(), datasets.taobao_ad()):
        dataset = Dataset.open(source.data.folder, source.data.schema)
        dataset.validate()
        assert len(dataset.split(source.data.split).test) > 0
    assert "1970" not in capsys.readouterr().out
    data.main(["kuairec", "--source", "big", "--folder", "log", "--parts-by", "time"])
    assert "2020-07-04 to 2020-07-08" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"ad_feature\.csv: no such file"):
        data.main(["taobao_ad", "--source", "nowhere"])


@pytest.mark.parametrize("args", [[], *([verb] for verb in VERBS)])
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
