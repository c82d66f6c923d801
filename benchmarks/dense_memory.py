"""Memory of a network of 352M parameters, sharded with FSDP2 on 1, 2 and 4 ranks.

Run::

    python benchmarks/dense_memory.py --json dense_memory.json
    python benchmarks/dense_memory.py --results    # also writes the dated note

The model is a TRM-RankMixer: hybrid tokens, a tower of 16 tokens, as many dense parameters as TRM's
Table 1 has for it. It is built on the meta device, sharded block by block, drawn on its ranks, and
trained on random batches through the trainer's own pipeline: tables under DistributedModelParallel
with fused row-wise Adagrad, AdamW on the network, bf16 under autocast, weights and their gradients
in fp32.

`state` is what a rank holds between two steps: its part of parameters, gradients and AdamW's two
moments, in bytes of real tensors. `peak` is the sum over ranks of each process's largest resident
memory, libraries, tables, activations and gathered blocks included; pages that processes share
count once for each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from record import Record, write_results
from torch.distributed.tensor import DTensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from launch.ranks import run_on_ranks
from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.distributed import Ranks, start_ranks, stop_ranks
from trainer.initialize import parameters_on_meta
from trainer.models.ranking_model import RankingModel, RankingModelConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.modules.hybrid_tokens import GEN_TOKEN, MEM_TOKEN, HybridTokensConfig
from trainer.optim import OptimConfig
from trainer.parallelize import ParallelModel, ShardingConfig, parallelize
from trainer.pipeline import RankingPipeline
from trainer.run_cost import peak_memory_bytes
from trainer.run_folder import package_versions, write_json

MODEL = RankingModelConfig(
    item=HybridTokensConfig(num_levels=4, table_dim=64, item_dim=128, hidden_dims=(256,)),
    tower=RankMixerConfig(num_tokens=16, dim=1168, num_layers=2),
)
NUM_CODES, NUM_MERGES, NUM_IDS, NUM_FEATURES, HISTORY = 1024, 20_000, 20_000, 12, 50
NUM_DENSE = 16
LIMIT_BYTES = 24 * 2**30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure memory per rank, and real steps.

    Args:
        ranks: Numbers of ranks.
        batch_size: Impressions of a rank and step.
        steps: On each number of ranks.
        activation_checkpointing: Compute the blocks' activations twice.
        json: Result file.
        results: Write the dated note into benchmarks/results.
    """

    ranks: tuple[int, ...] = (1, 2, 4)
    batch_size: int = 256
    steps: int = 2
    activation_checkpointing: bool = False
    json: Path | None = None
    results: bool = False


def tables() -> list[TableSpec]:
    """Twelve pooled tables and the two of an item's tokens."""
    pooled = [
        TableSpec(
            name=f"ids_{number}", rows=NUM_IDS, dim=64, features=(f"id_{number}",), role="side"
        )
        for number in range(NUM_FEATURES)
    ]
    tokens = [
        TableSpec(
            name=f"table_{feature}",
            rows=rows,
            dim=MODEL.item.table_dim,
            features=(feature,),
            role=feature,
            pooling="none",
        )
        for feature, rows in (
            (GEN_TOKEN, MODEL.item.num_levels * NUM_CODES),
            (MEM_TOKEN, NUM_MERGES),
        )
    ]
    return pooled + tokens


def random_batch(batch_size: int, seed: int) -> Batch:
    """Uniform ids; each impression has an item of its own and a history of some of them."""
    rng = np.random.default_rng(seed)
    levels = MODEL.item.num_levels
    gen = rng.integers(0, NUM_CODES, (batch_size, levels)) + NUM_CODES * np.arange(levels)
    mem_lengths = rng.integers(0, 4, batch_size)
    ids = rng.integers(0, NUM_IDS, NUM_FEATURES * batch_size)
    return Batch(
        dense_BF=torch.from_numpy(rng.random((batch_size, NUM_DENSE), dtype=np.float32)),
        pooled=KeyedJaggedTensor(
            keys=[f"id_{number}" for number in range(NUM_FEATURES)],
            values=torch.from_numpy(ids),
            lengths=torch.ones(len(ids), dtype=torch.int64),
        ),
        items=KeyedJaggedTensor(
            keys=[GEN_TOKEN, MEM_TOKEN],
            values=torch.from_numpy(
                np.concatenate([gen.ravel(), rng.integers(0, NUM_MERGES, mem_lengths.sum())])
            ),
            lengths=torch.from_numpy(np.concatenate([np.full(batch_size, levels), mem_lengths])),
        ),
        candidate_B=torch.arange(batch_size),
        history_T=torch.from_numpy(rng.integers(0, batch_size, batch_size * HISTORY)),
        history_kind_T=torch.zeros(batch_size * HISTORY, dtype=torch.int64),
        history_offsets=torch.arange(batch_size + 1) * HISTORY,
        labels_BN=torch.from_numpy(rng.integers(0, 2, (batch_size, 1)).astype(np.float32)),
        row_B=torch.arange(batch_size),
    )


def model_without_memory() -> RankingModel:
    """Tables and network on the meta device."""
    with parameters_on_meta():
        return RankingModel(
            MODEL,
            tables=tables(),
            num_dense=NUM_DENSE,
            num_tasks=1,
            num_histories=1,
            sparse_device=torch.device("meta"),
            precision="bf16",
        )


def build(ranks: Ranks, settings: Settings) -> ParallelModel:
    """The model on its ranks, as the trainer builds it."""
    return parallelize(
        model_without_memory(),
        tables=tables(),
        ranks=ranks,
        optim=OptimConfig(),
        sharding=ShardingConfig(fsdp_min_parameters=1),
        batch_size=settings.batch_size,
        num_steps=settings.steps,
        activation_checkpointing=settings.activation_checkpointing,
    )


def train(settings: Settings, path: Path) -> None:
    """Train some steps on this rank; rank 0 writes what all of them held."""
    ranks = start_ranks()
    begin = time.perf_counter()
    parallel = build(ranks, settings)
    build_seconds = time.perf_counter() - begin
    built_bytes = peak_memory_bytes()
    pipeline = RankingPipeline(parallel, ranks, path.parent / "non_finite")
    parallel.model.train()
    batches = [
        random_batch(settings.batch_size, seed=step * ranks.world_size + ranks.rank)
        for step in range(settings.steps)
    ]
    pipeline.read_from(iter(batches))
    seconds, losses = [], []
    for _ in range(settings.steps):
        start = time.perf_counter()
        pipeline.step()
        seconds.append(time.perf_counter() - start)
        losses.append(pipeline.loss)
    gathered = ranks.gather(
        {
            "state": state_bytes(parallel),
            "built": built_bytes,
            "peak": peak_memory_bytes(),
            "build_seconds": build_seconds,
            "seconds": seconds,
        }
    )
    if gathered is not None:
        parameters = sum(weight.numel() for weight in parallel.network.parameters())
        write_json(path, {"parameters": parameters, "losses": losses, "ranks": gathered})
    ranks.barrier()
    stop_ranks()


def state_bytes(parallel: ParallelModel) -> dict[str, int]:
    """Bytes of this rank's part of the network, by what they hold."""
    weights = list(parallel.network.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    states = parallel.optimizer.network_optimizer.state.values()
    moments = [value for state in states for value in state.values() if value.ndim]
    return {
        name: sum(local(tensor).nbytes for tensor in tensors)
        for name, tensors in (
            ("parameters", weights),
            ("gradients", gradients),
            ("optimizer", moments),
        )
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def measure(num_ranks: int, settings: Settings) -> dict[str, Any]:
    """What the ranks of one number wrote."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "found.json"
        run_on_ranks(train, num_ranks, settings, path, log_folder=Path(temporary) / "log")
        found: dict[str, Any] = json.loads(path.read_text())
    return {"num_ranks": num_ranks, **found}


def total_state(found: dict[str, Any]) -> int:
    """Bytes of the fullest rank."""
    return max(sum(rank["state"].values()) for rank in found["ranks"])


def total_peak(found: dict[str, Any]) -> int:
    """Bytes of all ranks."""
    return sum(rank["peak"] for rank in found["ranks"])


def table(measured: list[dict[str, Any]]) -> str:
    """One line a number of ranks."""
    lines = [
        "| ranks | parameters of a rank, GiB | gradients | optimizer | state in all of a rank "
        "| x ranks | peak of all ranks, GiB | build, s | last step, s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in measured:
        fullest = max(found["ranks"], key=lambda rank: sum(rank["state"].values()))
        state = [fullest["state"][name] for name in ("parameters", "gradients", "optimizer")]
        whole = 16 * found["parameters"]  # four values of 4 bytes for each parameter
        lines.append(
            f"| {found['num_ranks']} | "
            + " | ".join(f"{part / 2**30:.2f}" for part in (*state, sum(state)))
            + f" | {sum(state) * found['num_ranks'] / whole:.3f} of the whole "
            f"| {total_peak(found) / 2**30:.1f} "
            f"| {max(rank['build_seconds'] for rank in found['ranks']):.0f} "
            f"| {max(rank['seconds'][-1] for rank in found['ranks']):.1f} |"
        )
    return "\n".join(lines)


def records(measured: list[dict[str, Any]], settings: Settings) -> list[Record]:
    """State against the 1 / ranks that it should be, and peak memory against the limit."""
    records = []
    for found in measured:
        count = found["num_ranks"]
        title = f"{found['parameters'] / 1e6:.0f}M network, {count} ranks"
        ideal = 16 * found["parameters"] / count
        state, peak = total_state(found), total_peak(found)
        for what, ours, other, name, limit in (
            ("state of a rank, bytes", state, ideal, "the whole / ranks", 1.02),
            (
                f"peak of all ranks at batch {settings.batch_size} a rank, bytes",
                peak,
                LIMIT_BYTES,
                "24 GiB",
                1.0,
            ),
        ):
            records.append(
                Record(
                    benchmark=f"{title}: {what}",
                    ours=ours,
                    peer=other,
                    peer_name=name,
                    ratio=ours / other,
                    spread=(ours / other, ours / other),
                    target=f"at most {limit:g} x",
                    holds=ours / other <= limit,
                    versions=package_versions(),
                    runs={"ours": [ours], "peer": [other]},
                )
            )
    return records


def run(settings: Settings) -> bool:
    """Measure, print and write; True when every target holds."""
    network = model_without_memory().network
    parameters = sum(weight.numel() for weight in network.parameters())
    needed = 20 * parameters + max(settings.ranks) * 2**30
    free = psutil.virtual_memory().available
    if free < needed:
        raise SystemExit(
            f"{free / 2**30:.1f} GiB of memory are free, about {needed / 2**30:.0f} are needed"
        )
    measured = []
    for num_ranks in settings.ranks:
        measured.append(measure(num_ranks, settings))
        print(table(measured[-1:]), flush=True)
    found = records(measured, settings)
    for record in found:
        print(f"{record.benchmark}: {record.ratio:.3f} x {record.peer_name} ({record.target})")
    if settings.json is not None:
        write_json(settings.json, [record.to_dict() for record in found])
    if settings.results:
        assert __doc__ is not None
        losses = "; ".join(
            f"{one['num_ranks']} ranks " + ", ".join(f"{loss:.4f}" for loss in one["losses"])
            for one in measured
        )
        write_results(
            "dense_memory",
            title="Memory of a sharded network",
            command="python benchmarks/dense_memory.py --results",
            notes=__doc__.partition("    # also writes the dated note\n\n")[2].strip(),
            body=f"{parameters:,} dense parameters, batch {settings.batch_size} a rank. Losses: "
            f"{losses}.\n\n" + table(measured),
        )
    return all(record.holds for record in found)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    sys.exit(0 if run(settings) else 1)


if __name__ == "__main__":
    main()
