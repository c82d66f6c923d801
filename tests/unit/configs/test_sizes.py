import pytest

from configs import datasets
from configs.recipe import id_encoder, ranking_experiment
from configs.sizes import (
    DCN_V2,
    DHEN,
    DLRM_MLP,
    RANKMIXER,
    TRANSFORMER,
    WUKONG,
    dense_parameters,
    sized,
)

FAMILIES = (DLRM_MLP, DCN_V2, DHEN, WUKONG, TRANSFORMER, RANKMIXER)


def make(tower):
    return ranking_experiment("x", datasets.smoke(), item=id_encoder(), tower=tower)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
@pytest.mark.parametrize("target", [150_000, 2_000_000])
def test_every_family_meets_a_target(family, target):
    experiment = sized(make, family, target)
    assert abs(dense_parameters(experiment) / target - 1) < 0.05


def test_a_size_below_the_smallest_tower_is_refused():
    with pytest.raises(ValueError, match=r"RankMixer: no tower of about 1,000 dense parameters"):
        sized(make, RANKMIXER, 1_000)
