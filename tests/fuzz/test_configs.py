"""Configs at random: built and written down, or refused by our own words."""

import dataclasses
import json
import math

from hypothesis import strategies as st

from tests.faults import tiny_experiment
from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal

FIELDS = {
    "train": [
        *("batch_size", "num_epochs", "max_steps", "gradient_accumulation", "seed", "log_every"),
        *("eval_every", "checkpoint_every", "keep_checkpoints", "keep_best", "eval_batch_size"),
        "checkpoint_memory_bytes",
    ],
    "optim": [
        *("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "warmup_steps", "decay"),
        *("final_fraction", "max_dense_norm", "max_sparse_gradient"),
    ],
    "data.split": ["train", "valid"],
    "tables.0": [
        *("name", "rows", "dim", "features", "role", "pooling", "dtype", "optimizer"),
        *("sharding_types", "kernels", "cache_load_factor", "pooling_factors"),
    ],
}
VALUES = st.one_of(
    st.none(),
    st.integers(-3, 300),
    st.sampled_from([0.0, -1.0, 0.5, 1e-3, math.nan, math.inf]),
    st.sampled_from(
        ["sum", "mean", "none", "fp32", "int8", "adagrad", "linear", "valid/click_auc"]
    ),
    st.lists(st.sampled_from(["row_wise", "grid_shard", "user_id", "fused", "x"]), max_size=2).map(
        tuple
    ),
)
KINDS = {
    "keep_best": str | None,
    "decay": str,
    **dict.fromkeys(["name", "role", "pooling", "dtype", "optimizer"], str),
    **dict.fromkeys(["features", "sharding_types", "kernels", "pooling_factors"], tuple | None),
    **dict.fromkeys(
        [
            *("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "final_fraction"),
            *("max_dense_norm", "max_sparse_gradient", "cache_load_factor"),
        ],
        float | None,
    ),
}


@st.composite
def changes_of_configs(draw):
    """(part, field, value) of up to three fields, of types that the command line lets through."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(FIELDS)))
        field = draw(st.sampled_from(FIELDS[part]))
        kind = float if part == "data.split" else KINDS.get(field, int | None)
        value = draw(VALUES.filter(lambda v, kind=kind: isinstance(v, kind)))
        required = (*FIELDS["data.split"], "batch_size", "num_epochs", "seed", "log_every", "rows")
        required += ("keep_checkpoints", "eval_batch_size", "gradient_accumulation", "dim")
        required += ("dense_lr", "weight_decay", "sparse_lr", "sparse_eps", "warmup_steps")
        required += ("features", "final_fraction")
        if value is None and field in required:
            continue
        if field == "features":
            value = tuple(map(str, value))
        if field == "pooling_factors" and value is not None:
            value = tuple(float(len(word)) for word in value)
        found.append((part, field, value))
    return found


def replaced(experiment, part, field, value):
    """The experiment with one field changed."""
    if part == "tables.0":
        first, *others = experiment.tables
        return dataclasses.replace(
            experiment, tables=(dataclasses.replace(first, **{field: value}), *others)
        )
    if part == "data.split":
        split = dataclasses.replace(experiment.data.split, **{field: value})
        return dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, split=split)
        )
    own = dataclasses.replace(getattr(experiment, part), **{field: value})
    return dataclasses.replace(experiment, **{part: own})


@numbers_of_inputs(60, 1200)
def test_configs(number):
    outcomes = set()
    right = tiny_experiment.tiny()

    def check(changes):
        def build():
            experiment = right
            for part, field, value in changes:
                experiment = replaced(experiment, part, field, value)
            experiment.check_ranks(2)
            # JSON and back: a config that is no JSON could not be written down.
            text = json.dumps(experiment.to_dict(), allow_nan=False)
            assert json.loads(text)["train"]["batch_size"] == experiment.train.batch_size
            assert len(experiment.fingerprint) == 64
            for step in (0, 5, 11):
                assert 0 <= experiment.optim.factor(step, 12) <= 1

        outcomes.add(refusal(build) is None)

    fuzz(number, changes_of_configs(), check)
    assert outcomes == {True, False}
