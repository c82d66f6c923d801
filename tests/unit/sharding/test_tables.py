import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType

from sharding.tables import TableSpec, check_tables, parameters_by_role, planner_constraints


def table(**changes):
    settings = {"name": "t", "rows": 100, "dim": 8, "features": ("f",), "role": "side"}
    return TableSpec(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "items"}, "table 'items': .* choose another name"),
        ({"rows": 0}, "table 't': rows is 0, expected at least 1"),
        ({"dim": 6}, "table 't': dim is 6, expected a positive multiple of 4"),
        ({"dim": 0}, "dim is 0"),
        ({"features": ()}, "features is empty"),
        ({"role": "ids"}, "role is 'ids', expected one of item_id, gen_token"),
        ({"pooling": "max"}, "pooling is 'max', expected one of sum, mean, none"),
        ({"dtype": "fp64"}, "dtype is 'fp64', expected one of fp32"),
        ({"optimizer": "lion"}, "optimizer is 'lion', expected one of rowwise_adagrad"),
        ({"sharding_types": ("rowwise",)}, "sharding_types holds rowwise, expected some of"),
        (
            {"pooling": "mean", "sharding_types": ("row_wise", "table_wise")},
            "pooling is 'mean' and sharding_types holds row_wise, under which TorchRec averages",
        ),
    ],
)
def test_what_a_table_can_not_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_names_and_features_stand_once():
    check_tables([table(), table(name="u", features=("g",))])
    with pytest.raises(ValueError, match="table named twice: t"):
        check_tables([table(), table(features=("g",))])
    with pytest.raises(ValueError, match="feature named twice: f"):
        check_tables([table(), table(name="u")])


@pytest.mark.parametrize(
    ("pooling", "kind"), [("sum", PoolingType.SUM), ("mean", PoolingType.MEAN)]
)
def test_pooled_table_becomes_a_bag_config(pooling, kind):
    config = table(pooling=pooling).to_config()
    assert isinstance(config, EmbeddingBagConfig)
    assert (config.pooling, config.num_embeddings, config.embedding_dim) == (kind, 100, 8)
    assert config.feature_names == ["f"]


def test_table_of_sequences_becomes_an_embedding_config_with_its_initial_spread():
    config = table(pooling="none", init_std=0.2).to_config()
    assert isinstance(config, EmbeddingConfig)
    weights = torch.empty(1000, 8)
    config.init_fn(weights)
    assert weights.std().item() == pytest.approx(0.2, rel=0.1)


def test_parameters_are_counted_by_role():
    tables = [table(), table(name="u", role="item_id", rows=7), table(name="v", rows=1)]
    counts = parameters_by_role(tables)
    assert counts == {
        "item_id": 56,
        "gen_token": 0,
        "mem_token": 0,
        "residual_id": 0,
        "side": 808,
    }


def test_mean_tables_are_never_split_by_rows():
    constraints = planner_constraints(
        [table(pooling="mean"), table(name="u", optimizer="rowwise_adagrad")], min_partition=4
    )
    assert set(constraints["t"].sharding_types) == {
        "data_parallel",
        "table_wise",
        "column_wise",
        "table_column_wise",
    }
    assert constraints["u"].sharding_types is None


def test_column_shards_are_as_wide_as_asked_where_the_table_is_wider():
    constraints = planner_constraints(
        [table(dim=64), table(name="narrow", dim=32)], min_partition=32
    )
    assert constraints["t"].min_partition == 32
    assert constraints["narrow"].min_partition is None
