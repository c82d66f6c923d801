import functools
import itertools
from dataclasses import replace

import pytest
import torch

from sharding.tables import TableSpec
from tests.integration.rank_processes import run_ranks
from tests.integration.reference import Trajectory, train_unsharded
from tests.integration.tiny_model import DIM, Case, initial_table
from tests.integration.workers import train_cases
from trainer.models.autoint import AutoIntConfig
from trainer.models.dcn import DCNConfig
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.deepfm import DeepFMConfig
from trainer.models.dhen import DHENConfig
from trainer.models.fm import FMConfig
from trainer.models.gdcn import GDCNConfig
from trainer.models.masknet import MaskNetConfig
from trainer.models.onetrans import OneTransConfig
from trainer.models.pepnet import PEPNetConfig
from trainer.models.rankmixer_moe import RankMixerMoEConfig
from trainer.models.store import StoreConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wide_deep import WideDeepConfig
from trainer.models.wukong import WuKongConfig
from trainer.modules.next_token_config import NextTokenConfig
from trainer.optim import OptimConfig

ONE_HOST = [
    Case(name="data_parallel", pooled_type="data_parallel", mean=("adagrad",)),
    Case(name="table_wise", pooled_type="table_wise", mean=("adagrad",), item_type="table_wise"),
    Case(name="row_wise", pooled_type="row_wise", item_type="row_wise"),
    Case(name="column_wise", pooled_type="column_wise", mean=("adagrad",), item_type="column_wise"),
    Case(
        name="items_row_wise_swapped",
        item_type="row_wise",
        gen_optimizer="sgd",
        mem_optimizer="rowwise_adagrad",
    ),
    Case(
        name="items_column_wise_swapped",
        item_type="column_wise",
        gen_optimizer="adagrad",
        mem_optimizer="sgd",
    ),
]
TWO_HOSTS = [
    Case(name="table_row_wise", pooled_type="table_row_wise"),
    Case(name="table_column_wise", pooled_type="table_column_wise", mean=("adagrad",)),
    Case(name="grid_shard", pooled_type="grid_shard"),
]
CLIPPED = OptimConfig(
    sparse_lr=0.05,
    sparse_eps=1e-6,
    warmup_steps=4,
    decay="linear",
    max_dense_norm=0.2,
    max_sparse_gradient=3e-4,
)
MIXED = [
    Case(
        name="mixed",
        types=("row_wise", "table_wise", "column_wise"),
        item_type="row_wise",
        mean=("adagrad",),
    )
]
FSDP = [
    Case(name="fsdp", pooled_type="row_wise", fsdp=True),
    Case(name="clipped_row_wise", pooled_type="row_wise", item_type="row_wise", optim=CLIPPED),
    Case(name="clipped_table_wise", optim=CLIPPED),
]
TIGHT = replace(CLIPPED, max_dense_norm=0.02, max_sparse_gradient=None)
# With an eps near the smallest gradients, their rounding would become steps of the tables.
ROUND = replace(CLIPPED, max_sparse_gradient=None, sparse_eps=1e-4)
SHORT = {"num_steps": 6, "pooled_type": "row_wise"}
DENSE_OPTIONS = [
    Case(name="drawn", drawn=True, optim=TIGHT, **SHORT),
    Case(name="fsdp_drawn", fsdp=True, drawn=True, optim=TIGHT, **SHORT),
    Case(name="in_parts", parts=4, **SHORT),
    Case(name="in_uneven_parts", pooled_type="data_parallel", parts=5, num_steps=6),
    Case(name="fsdp_in_parts", fsdp=True, parts=3, **SHORT),
    Case(name="fsdp_checkpointed", fsdp=True, checkpointed=True, **SHORT),
    Case(
        name="fsdp_all",
        fsdp=True,
        drawn=True,
        parts=2,
        checkpointed=True,
        optim=TIGHT,
        **SHORT,
    ),
]
NEXT_TOKEN = NextTokenConfig(dim=8, num_layers=2, num_heads=2, expansion=2.0)
# No positive on the first of two ranks, so ranks' losses weigh differently.
UNEVEN = {"next_token": NEXT_TOKEN, "negatives": 12, **SHORT}
JOINT = [
    Case(name="joint", **UNEVEN),
    Case(
        name="joint_feeds_tower", **{**UNEVEN, "next_token": replace(NEXT_TOKEN, feeds_tower=True)}
    ),
    Case(name="fsdp_joint", fsdp=True, **UNEVEN),
    Case(name="fsdp_joint_all", fsdp=True, drawn=True, parts=2, checkpointed=True, **UNEVEN),
]
TOWERS = {
    "dcn_v2": DCNv2Config(num_layers=2, hidden_dims=(12,), rank=4),
    "dhen": DHENConfig(num_tokens=4, dim=8, num_heads=2, dot_hidden_dim=6),
    "wukong": WuKongConfig(num_tokens=4, dim=8, num_fm_tokens=2, rank=2, hidden_dims=(10,)),
    "transformer": TransformerConfig(num_tokens=4, dim=8, num_heads=2, weights="per_token"),
    "experts": RankMixerMoEConfig(
        num_tokens=4, dim=8, num_experts=3, training="sparse", penalty=1e-3
    ),
    "store": StoreConfig(
        num_tokens=4,
        groups=(
            ("sgd_a", "sgd_b", "adagrad_a"),
            ("adagrad_b", "rowwise_adagrad_a", "rowwise_adagrad_b", "dense"),
            ("history", "candidate_x_history", "feedback_sum"),
        ),
        group_dim=4,
        group_hidden_dim=8,
        ffn_dim=16,
        diversity=0.01,
        network_steps=2,
    ),
}
EVERY_TOWER = [
    Case(name=f"fsdp_{name}", fsdp=True, drawn=True, tower=tower, optim=ROUND, **SHORT)
    for name, tower in TOWERS.items()
]
COMPILED = [
    Case(name="compiled", compiled=True, **SHORT),
    Case(name="fsdp_compiled", fsdp=True, compiled=True, checkpointed=True, parts=2, **SHORT),
]
ROUND_TIGHT = replace(ROUND, max_dense_norm=0.02)
BASELINES = [
    Case(name=f"fsdp_{name}", fsdp=True, drawn=True, tower=tower, optim=ROUND_TIGHT, **SHORT)
    for name, tower in {
        "fm": FMConfig(field_dim=DIM),
        "wide_deep": WideDeepConfig(hidden_dims=(12,)),
        "deepfm": DeepFMConfig(hidden_dims=(12,), field_dim=8),
        "dcn": DCNConfig(num_layers=2, hidden_dims=(12,)),
        "gdcn": GDCNConfig(num_layers=2, hidden_dims=(12,), structure="stacked"),
        "autoint": AutoIntConfig(num_layers=2, head_dim=4, hidden_dims=(12,), field_dim=DIM),
        "masknet": MaskNetConfig(num_blocks=2, block_dim=8, hidden_dims=(12,)),
        "pepnet": PEPNetConfig(
            hidden_dims=(12,),
            gate_dim=6,
            prior_features=("sgd_a", "candidate"),
            domain_features=("adagrad_b",),
        ),
        "onetrans": OneTransConfig(num_tokens=2, dim=8, num_heads=2),
    }.items()
]
ON_TWO = [*ONE_HOST, *MIXED, *FSDP, *DENSE_OPTIONS, *JOINT, *EVERY_TOWER]
WORLDS = {
    (2, 1): ON_TWO,
    (4, 1): ONE_HOST,
    (2, 2): TWO_HOSTS,
    (4, 2): TWO_HOSTS,
}
ALL = [(case.name, *world) for world, cases in WORLDS.items() for case in cases]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(world size, hosts) -> folder of what the ranks left; each world starts once."""

    @functools.cache
    def run(world_size, hosts):
        folder = tmp_path_factory.mktemp(f"ranks_{world_size}_{hosts}")
        run_ranks(train_cases, world_size, WORLDS[world_size, hosts], folder, hosts=hosts)
        return folder

    return run


def load(folder, name, world_size):
    """Trajectory of the sharded run, and the plan."""
    ranks = [torch.load(folder / f"{name}_rank{rank}.pt") for rank in range(world_size)]
    tables = {}
    for rank in ranks:
        for table, (first_row, first_column), part in rank["tables"]:
            full = tables.setdefault(table, {})
            full[first_row, first_column] = part
    case = find(name)
    return (
        Trajectory(
            logits=[torch.cat(parts) for parts in zip(*(r["logits"] for r in ranks), strict=True)],
            losses=ranks[0]["losses"],
            norms=ranks[0]["norms"],
            tables={spec.name: assembled(tables[spec.name], spec) for spec in case.tables()},
            network=ranks[0]["network"],
        ),
        {table: where for module in ranks[0]["plan"].values() for table, where in module.items()},
        ranks,
    )


def find(name):
    cases = itertools.chain(COMPILED, BASELINES, *WORLDS.values())
    return next(case for case in cases if case.name == name)


def assembled(parts, spec: TableSpec):
    full = torch.full((spec.rows, DIM), float("nan"))
    for (row, column), part in parts.items():
        full[row : row + part.shape[0], column : column + part.shape[1]] = part
    assert not full.isnan().any(), f"{spec.name}: a part is missing"
    return full


def columns_of(plan):
    return {
        table: sorted({tuple(shard["columns"]) for shard in where["shards"]}) or [(0, DIM)]
        for table, where in plan.items()
    }


@pytest.mark.parametrize(("name", "world_size", "hosts"), ALL)
def test_logits_and_weights_equal_one_unsharded_process(trained, name, world_size, hosts):
    check(trained(world_size, hosts), name, world_size)


@pytest.mark.slow
def test_compiled_equals_one_unsharded_process(tmp_path):
    run_ranks(train_cases, 2, COMPILED, tmp_path, timeout=280)
    for case in COMPILED:
        check(tmp_path, case.name, 2)


@pytest.mark.slow
def test_baselines_equal_one_unsharded_process(tmp_path):
    run_ranks(train_cases, 2, BASELINES, tmp_path, timeout=280)
    for case in BASELINES:
        check(tmp_path, case.name, 2)


def check(folder, name, world_size):
    """Logits, losses, tables, network and gradient norms against the reference's."""
    found, plan, ranks = load(folder, name, world_size)
    case = find(name)
    for spec in case.tables():
        assert (plan[spec.name]["sharding_type"],) == spec.sharding_types
    expected = train_unsharded(case, world_size, columns_of(plan))
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    for step, (one, other) in enumerate(zip(found.logits, expected.logits, strict=True)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=f"logits of step {step}")
    for table, weight in expected.tables.items():
        moved = float((weight - initial_table(table, weight.shape[0])).abs().max())
        assert moved > 5e-5, f"{table} hardly moved: {moved}"
        torch.testing.assert_close(
            found.tables[table],
            weight,
            atol=min(1e-5, 0.01 * moved),  # plain SGD moves a table little
            rtol=0,
            msg=lambda m, t=table: f"{t}: {m}",
        )
    for rank in ranks:
        for path, weight in expected.network.items():
            torch.testing.assert_close(
                rank["network"][path], weight, atol=1e-5, rtol=0, msg=lambda m, p=path: f"{p}: {m}"
            )
    # The norm that was clipped to is the global one, above the limit in every step.
    torch.testing.assert_close(found.norms, expected.norms, atol=1e-5, rtol=1e-4)
    assert min(expected.norms) > 0
    assert max(expected.norms) > case.optim.max_dense_norm
