"""DIG on the public logs of its section 4.1."""

import pytest

from configs import datasets, dig_public
from launch import data
from launch.named import load_named
from tests.unit.trainer.data import kuairec_made, taobao_ad_made
from trainer.comparison import Comparison
from trainer.data.dataset import Dataset
from trainer.data.static_features import is_static, read_static_features
from trainer.experiment import Experiment
from trainer.modules.learned_tokens import LearnedTokensConfig

STUDIES = ("main", "ranking", "gap", "end_to_end", "u2i", "mean", "levels", "completeness")


@pytest.mark.parametrize("log", ["kuairec_big", "kuairec_small", "taobao_ad"])
def test_every_study_has_a_name_on_every_log(log):
    whole = load_named(f"dig_public.{log}", Experiment).fingerprint
    for study in STUDIES:
        comparison = load_named(f"dig_public.{study}_{log}", Comparison)
        assert comparison.name == f"dig.{study}_{log}"
        found = {row.title: row.experiment.fingerprint for row in comparison.rows}
        assert found["DIG"] == whole


@pytest.mark.parametrize("name", ["kuairec_big", "kuairec_small", "taobao_ad", "open_bandit"])
def test_experiments_have_the_paper_s_sizes_and_its_division_of_features(name):
    experiment = getattr(dig_public, name)()
    item = experiment.model.item
    assert (item.dim, item.num_layers) == (64, 4)
    if name != "open_bandit":
        assert (item.num_levels, item.num_codes, experiment.train.batch_size) == (4, 256, 2048)
    features = experiment.data.schema.features
    assert not any(is_static(feature) for feature in features)
    assert any(feature.entity == "cross" for feature in features)
    assert experiment.model.user_feature in {feature.name for feature in features}
    experiment.check_ranks(2)


def test_static_features_are_read_from_what_the_verbs_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kuairec_made.made().write(tmp_path / "views", matrix="small")
    taobao_ad_made.made().write(tmp_path / "ads")
    data.main(["kuairec", "--source", "views", "--matrix", "small"])
    data.main(["taobao-ad", "--source", "ads"])
    for source, experiment, width in (
        (datasets.kuairec_small(), dig_public.kuairec_small(), 6),
        (datasets.taobao_ad(), dig_public.taobao_ad(), 4),
    ):
        dataset = Dataset.open(source.data.folder, source.data.schema)
        item = experiment.model.item
        # The texts' embeddings need an encoder that is fetched; ids are all the rest.
        ids = LearnedTokensConfig(fields=item.fields, dim=4 * width, num_heads=1)
        found = read_static_features(dataset, ids)
        assert len(found.ids) == width
        for values, offsets in found.ids.values():
            assert len(offsets) == dataset.num_items + 1
            assert len(values) == offsets[-1]
