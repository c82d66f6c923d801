"""What ranks do in the tests of managed tables; spawned processes import it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.managed_ids import ManagedIds
from sharding.managed_sharder import ShardedManagedTables
from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.distributed import Ranks, start_ranks, stop_ranks
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModel, RankingModelConfig
from trainer.modules.hybrid_tokens import ItemIdConfig
from trainer.modules.managed_ids import row_managers
from trainer.optim import OptimConfig
from trainer.parallelize import ShardingConfig, parallelize
from trainer.pipeline import RankingPipeline
from trainer.scoring import score

ROWS, DIM, INTERVAL, NUM_STEPS = 12, 8, 3, 24
RAW_IDS = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40)
OLD_WEIGHT, OLD_STATE = 5.0, 7.0


def tables(optimizer: str, policy: str) -> list[TableSpec]:
    """A pooled table and the managed table of items."""
    return [
        TableSpec(name="user", rows=5, dim=DIM, features=("user",), role="side"),
        TableSpec(
            name="item_id",
            rows=ROWS,
            dim=DIM,
            features=("item_id",),
            role="item_id",
            pooling="none",
            optimizer=optimizer,
            managed=ManagedIds(policy=policy, eviction_interval=INTERVAL),
        ),
    ]


def item_ids(step: int, rank: int) -> list[int]:
    """Distinct raw ids of a rank's batch; which ids are frequent moves on."""
    rng = np.random.default_rng((step, rank))
    weights = np.exp(-(((np.arange(len(RAW_IDS)) - 30 * step / NUM_STEPS) / 4) ** 2)) + 1e-3
    places = rng.choice(len(RAW_IDS), 6, p=weights / weights.sum(), replace=False)
    return RAW_IDS[places].tolist()


def batch_of(ids: list[int], seed: int) -> Batch:
    """One impression of each item, whose history is the item before."""
    size = len(ids)
    rng = torch.Generator().manual_seed(seed)
    ones = torch.ones(size).long()
    return Batch(
        dense_BF=torch.rand(size, 2, generator=rng),
        pooled=KeyedJaggedTensor(
            keys=["user"], values=torch.randint(5, (size,), generator=rng), lengths=ones
        ),
        items=KeyedJaggedTensor(keys=["item_id"], values=torch.tensor(ids), lengths=ones),
        candidate_B=torch.arange(size),
        history_T=torch.arange(size).roll(1),
        history_kind_T=torch.zeros(size).long(),
        history_offsets=torch.arange(size + 1),
        labels_BN=torch.randint(2, (size, 1), generator=rng).float(),
        row_B=torch.arange(size),
    )


def old_weights(first_row: int, num_rows: int) -> torch.Tensor:
    """Weights that tell rows apart (num_rows, DIM)."""
    rows = torch.arange(first_row, first_row + num_rows)
    return (OLD_WEIGHT + 0.3 * rows)[:, None].repeat(1, DIM)


def follow_all(cases: list[tuple[str, str]], folder: Path) -> None:
    """Follow each (optimizer, policy) and leave `<optimizer>_<policy>_rank<r>.pt`."""
    ranks = start_ranks()
    for optimizer, policy in cases:
        noted = follow(ranks, optimizer, policy, folder)
        torch.save(noted, folder / f"{optimizer}_{policy}_rank{ranks.rank}.pt")
    stop_ranks()


def follow(ranks: Ranks, optimizer: str, policy: str, folder: Path) -> dict:
    """Train; note after each step the rank's map, and its rows' weights and state."""
    specs = tables(optimizer, policy)
    torch.manual_seed(3)
    model = RankingModel(
        RankingModelConfig(
            item=ItemIdConfig(table_dim=DIM, item_dim=8, rows="managed"),
            tower=DLRMConfig(hidden_dims=(8,)),
            dense_bins=4,
            dense_dim=4,
        ),
        tables=specs,
        num_dense=2,
        num_tasks=1,
        num_histories=1,
        sparse_device=torch.device("meta"),
    )
    parallel = parallelize(
        model,
        tables=specs,
        ranks=ranks,
        optim=OptimConfig(sparse_lr=2e-2, decay="linear"),
        sharding=ShardingConfig(),
        batch_size=6,
        num_steps=NUM_STEPS,
    )
    (manager,) = row_managers(parallel.model).values()
    managed = next(m for m in parallel.model.modules() if isinstance(m, ShardedManagedTables))
    tbe, index = managed._table_to_tbe_and_index["item_id"]
    weights = tbe.split_embedding_weights()[int(index)]
    states = [state for table in tbe.split_optimizer_states() for state in table]
    pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
    parallel.model.train()
    seen = []
    probe = [batch_of(RAW_IDS[:20].tolist(), seed=1)]
    for step in range(NUM_STEPS):
        with torch.no_grad():
            weights.copy_(old_weights(ranks.rank * len(weights), len(weights)))
            for state in states:
                state.fill_(OLD_STATE)
        pipeline.read_from(iter([batch_of(item_ids(step, ranks.rank), seed=step)]))
        pipeline.step()
        pipeline.detach()
        ids, rows = manager._mch_sorted_raw_ids, manager._mch_remapped_ids_mapping
        held = ids != torch.iinfo(torch.int64).max
        note = {
            "rows": dict(zip(ids[held].tolist(), rows[held].tolist(), strict=True)),
            "weights": weights.detach().clone(),
            "states": [state.clone() for state in states],
        }
        before = {name: value.clone() for name, value in manager.state_dict().items()}
        pending = manager.pending
        scored = score(parallel.model, probe, ranks, ("label",))
        assert all(torch.equal(v, before[n]) for n, v in manager.state_dict().items())
        assert torch.equal(manager.pending, pending)
        note["scores"] = None if scored is None else scored.scores["label"].tolist()
        seen.append(note)
    plan = next(p for path, p in parallel.plan.plan.items() if path == "sparse.managed")
    kind = (plan["item_id"].sharding_type, plan["item_id"].compute_kernel)
    parallel.optimizer.zero_grad()  # puts the rates after the last step in force
    return {"seen": seen, "plan": kind, "rate": tbe.get_learning_rate()}
