import dataclasses
from itertools import pairwise

import pytest

from sharding.tables import TableSpec
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModelConfig
from trainer.modules.hybrid_tokens import HybridTokensConfig, ItemIdConfig
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.structure import (
    BatchShape,
    DescribedModel,
    Published,
    StructureComparison,
    compare_structure,
)
from trainer.structure_report import (
    missed,
    part_rows,
    reasons,
    size_rows,
    structure_markdown,
    write_structure_figure,
)

ROLES = ContextRoles(
    query_features=("query",),
    user_features=("user",),
    query_dense=(),
    user_dense=(),
    tasks=("click", "play"),
)
SHAPE = BatchShape(
    batch_size=32,
    history_length=5,
    num_distinct_items=70,
    num_dense=6,
    num_tasks=2,
    num_histories=3,
    positive_share=0.25,
    roles=ROLES,
)
POOLED = tuple(
    TableSpec(name=name, rows=100, dim=8, features=(name,), role="residual_id")
    for name in ("user", "query")
)


def table(feature, rows, role):
    return TableSpec(name=feature, rows=rows, dim=4, features=(feature,), role=role, pooling="none")


def ids(**published):
    return DescribedModel(
        title="ids",
        series="ids",
        model=RankingModelConfig(
            item=ItemIdConfig(table_dim=4, item_dim=8, hidden_dims=(12,)),
            tower=DLRMConfig(hidden_dims=(16,)),
            dense_bins=1,
            dense_dim=10,
        ),
        tables=(table("item_id", 50, "item_id"), *POOLED),
        published=Published(**published),
        reason="because",
    )


def tokens():
    return DescribedModel(
        title="tokens",
        series="tokens",
        model=RankingModelConfig(
            item=HybridTokensConfig(num_levels=3, table_dim=4, item_dim=8),
            tower=DLRMConfig(hidden_dims=(16,)),
            dense_bins=1,
            dense_dim=10,
            next_token=NextTokenConfig(dim=8, num_layers=1),
        ),
        tables=(table("gen_token", 15, "gen_token"), table("mem_token", 9, "mem_token"), *POOLED),
    )


def weights(*widths):
    return sum(a * b + b for a, b in pairwise(widths))


def report_of(*models, shape=SHAPE):
    return compare_structure(StructureComparison(name="test", models=models, batch=shape))


def test_counts_equal_counts_by_hand():
    (entry,) = report_of(ids())["models"]
    width = 2 * 8 + 5 * 8 + 10
    encoder, tower = weights(4, 12, 8), weights(width, 16)
    history = weights(8, 8) * 2 + 3 * (3 * 8 * 8)
    heads, dense = 2 * weights(16, 1), weights(6, 10)
    assert entry["dense_parameters_by_part"] == {
        "dense_arch": dense,
        "item_encoder": encoder,
        "history": weights(8, 8) + 2 * 3 * 8 * 8,
        "feedback_sum": weights(8, 8) + 3 * 8 * 8,
        "tower": tower,
        "heads": heads,
    }
    assert entry["dense_parameters"] == encoder + tower + history + heads + dense
    assert entry["sparse_parameters"] == 50 * 4 + 2 * 100 * 8
    items = 4 * 12 + 12 * 8 + 3 * 3 * 8 * 8
    rows = 2 * 8 * 8 + width * 16 + 2 * 16
    assert entry["training_flops"] == 6 * (70 * items + 32 * rows) + 4 * 32 * 6 * 10
    assert entry["training_flops_of_items"] == 6 * 69 * items
    assert entry["training_flops_of_next_token"] == 0


def test_generative_module_is_counted_in_parameters_and_flops():
    full = report_of(tokens())["models"][0]
    plain = dataclasses.replace(
        tokens(), model=dataclasses.replace(tokens().model, next_token=None)
    )
    without = report_of(plain)["models"][0]
    assert full["dense_parameters_by_part"]["next_token"] > 0
    assert full["dense_parameters"] == (
        without["dense_parameters"] + full["dense_parameters_by_part"]["next_token"]
    )
    assert full["training_flops_of_next_token"] == (
        full["training_flops"] - without["training_flops"]
    )
    cost = [
        report_of(tokens(), shape=dataclasses.replace(SHAPE, positive_share=share))["models"][0][
            "training_flops_of_next_token"
        ]
        for share in (0.25, 0.5, 0.75)
    ]
    assert cost[1] - cost[0] == cost[2] - cost[1] > 0.5 * cost[0]
    assert full["sparse_parameters"] == (15 + 9) * 4 + 2 * 100 * 8


@pytest.mark.parametrize(
    ("parameters", "flops", "expected"),
    [
        (1.019, 1.14, []),
        (1.021, 1.0, ["dense_parameters"]),
        (1.0, 0.84, ["training_flops"]),
        (0.97, 1.16, ["dense_parameters", "training_flops"]),
    ],
)
def test_what_misses_the_paper_is_marked_and_explained(parameters, flops, expected):
    (entry,) = report_of(ids())["models"]
    model = ids(
        dense_parameters=entry["dense_parameters"] / parameters,
        training_flops=entry["training_flops"] / flops,
    )
    report = report_of(model)
    assert missed(report["models"][0]) == expected
    row = dict(zip(*(lambda rows: (rows[0], rows[1][0]))(size_rows(report)), strict=False))
    assert row["model"] == "ids"
    assert sum(cell.endswith(" *") for cell in size_rows(report)[1][0]) == len(expected)
    assert len(reasons(report)) == bool(expected)
    assert all("because" in line for line in reasons(report))


def test_report_and_figure_are_written(tmp_path):
    report = report_of(ids(dense_parameters=1e3, training_flops=1e6), tokens())
    name = write_structure_figure(report, tmp_path)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = structure_markdown(report, (name,))
    for part in ("| ids |", "| tokens |", "What is missed, and why", "6 P B", name):
        assert part in text
    header, rows = part_rows(report)
    assert all(len(row) == len(header) for row in rows)


def test_models_need_titles_of_their_own_and_tables_that_fit():
    with pytest.raises(ValueError, match="titles of their own"):
        StructureComparison(name="test", models=(ids(), ids()), batch=SHAPE)
    wrong = dataclasses.replace(ids(), tables=tokens().tables)
    with pytest.raises(ValueError, match=r"model\.item reads"):
        StructureComparison(name="test", models=(wrong,), batch=SHAPE)
