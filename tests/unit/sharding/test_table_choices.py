"""Kernels, dtypes and optimizers of tables: what is counted, and what is refused."""

from __future__ import annotations

import pytest

from sharding.tables import TableSpec, check_device, planner_constraints


def table(**changes):
    """A table of 1,000 rows of 32 values."""
    values = {"name": "t", "rows": 1000, "dim": 32, "features": ("f",), "role": "side"}
    return TableSpec(**{**values, **changes})


@pytest.mark.parametrize(
    ("dtype", "row_bytes"), [("fp32", 128), ("fp16", 64), ("bf16", 64), ("int8", 40)]
)
def test_bytes_of_a_row(dtype, row_bytes):
    """Int8 rows carry a scale and a shift of four bytes each."""
    assert table(dtype=dtype).num_bytes == 1000 * row_bytes


@pytest.mark.parametrize(
    ("optimizer", "values_a_row"),
    [
        ("sgd", 0),
        ("rowwise_adagrad", 1),
        ("adagrad", 32),
        ("adam", 64),
        ("partial_rowwise_adam", 33),
    ],
)
def test_state_is_fp32_in_every_dtype(optimizer, values_a_row):
    """Half-precision rows do not halve the state."""
    for dtype in ("fp32", "fp16"):
        assert table(optimizer=optimizer, dtype=dtype).num_state_bytes == 4000 * values_a_row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "no CPU kernel for optimizer 'adam'"),
        ({"optimizer": "partial_rowwise_adam"}, "no CPU kernel"),
        ({"dtype": "bf16"}, "trains bf16 rows"),
        ({"dtype": "int8"}, "trains int8 rows"),
        ({"kernels": ("fused_uvm", "key_value")}, "exist on GPUs alone"),
    ],
)
def test_what_fbgemm_has_not_on_the_cpu_is_said_at_planning_time(changes, message):
    """The same tables are fine on GPUs."""
    check_device([table(**changes)], "cuda")
    with pytest.raises(ValueError, match=f"'t'.*{message}"):
        check_device([table(**changes)], "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernels": ("hbm",)}, "kernels holds hbm"),
        ({"cache_load_factor": 0.0}, "cache_load_factor is 0.0"),
        ({"cache_load_factor": 0.5, "kernels": ("fused",)}, "no effect"),
        ({"pooling_factors": (1.0, 2.0)}, "each of the 1 features"),
    ],
)
def test_wrong_choices_are_refused(changes, message):
    """The message names table and field."""
    with pytest.raises(ValueError, match=f"'t'.*{message}"):
        table(**changes)


def test_a_fused_only_optimizer_is_never_replicated():
    """Data-parallel tables step a dense optimizer, which partial row-wise Adam has not."""
    constraints = planner_constraints([table(optimizer="partial_rowwise_adam")], min_partition=32)
    assert "data_parallel" not in constraints["t"].sharding_types
    with pytest.raises(ValueError, match="fused kernel alone"):
        check_device(
            [table(optimizer="partial_rowwise_adam", sharding_types=("data_parallel",))], "cuda"
        )


def test_choices_reach_torchrecs_constraints():
    """Kernels, cache, pooling factors."""
    spec = table(
        features=("a", "b"),
        pooling_factors=(2.0, 3.0),
        kernels=("fused", "fused_uvm_caching"),
        cache_load_factor=0.1,
    )
    constraints = planner_constraints([spec], min_partition=16)["t"]
    assert constraints.pooling_factors == [2.0, 3.0]
    assert set(constraints.compute_kernels) == {"fused", "fused_uvm_caching", "dense"}
    assert constraints.cache_params.load_factor == 0.1
    assert constraints.min_partition == 16
