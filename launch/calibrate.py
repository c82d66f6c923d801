"""Measure this machine for the planner: how fast tables are read here, and ranks exchange.

The planner predicts time as bytes over bandwidth, so what it needs are the bandwidths that make
its formulas true on this machine: of looking up and updating rows, and of an all-to-all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torchrec.distributed.planner.constants import BWD_COMPUTE_MULTIPLIER

from launch.ranks import run_on_ranks
from sharding.hardware import Machine
from trainer.distributed import start_ranks, stop_ranks
from trainer.run_folder import write_json

ROWS, DIM, BATCH, IDS = 1_000_000, 128, 2048, 10
EXCHANGED_FLOATS = 1 << 20
_REPEATS = 9


def calibrate(num_ranks: int, name: str = "this_machine") -> Machine:
    """Measure for some seconds; ranks are processes of this machine and exchange over gloo.

    Args:
        num_ranks: processes at a time, as training would use.
        name: of the machine.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bandwidths.json"
        run_on_ranks(_measure, num_ranks, path, log_folder=Path(folder) / "log")
        found = json.loads(path.read_text())
    return Machine(
        name=name,
        device="cpu",
        ranks_per_node=num_ranks,
        hbm_bytes=0,
        ddr_bytes=psutil.virtual_memory().total // num_ranks,
        ssd_bytes=0,
        hbm_bandwidth=0,
        ddr_bandwidth=found["rows"],
        ssd_bandwidth=0,
        host_link_bandwidth=found["rows"],
        intra_node_bandwidth=found["exchange"],
        inter_node_bandwidth=found["exchange"],
        source="farewell plan --calibrate",
    )


def _measure(path: Path) -> None:
    ranks = start_ranks()
    rows, exchange = row_bandwidth(), exchange_bandwidth(ranks.world_size)
    slowest = torch.tensor([rows, exchange], dtype=torch.float64)
    ranks.all_reduce(slowest, dist.ReduceOp.MIN)
    if ranks.is_first:
        write_json(path, {"rows": float(slowest[0]), "exchange": float(slowest[1])})
    ranks.barrier()
    stop_ranks()


def row_bandwidth() -> float:
    """Bytes/s at which TorchRec's estimate equals one fused forward and backward here."""
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
    )
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, ROWS, BATCH * IDS))
    offsets = torch.arange(0, BATCH * IDS + 1, IDS)
    gradient = torch.ones(BATCH, DIM)
    seconds = _fastest_seconds(lambda: table(ids, offsets).backward(gradient))
    read = BATCH * IDS * (8 + 4 * DIM) + BATCH * DIM * 4
    return (1 + BWD_COMPUTE_MULTIPLIER) * read / seconds


def exchange_bandwidth(num_ranks: int) -> float:
    """Bytes/s of an all-to-all, counting all that a rank sends, its own part included."""
    sent = torch.ones(EXCHANGED_FLOATS)
    received = torch.empty_like(sent)
    if num_ranks == 1:
        seconds = _fastest_seconds(lambda: received.copy_(sent))
    else:
        seconds = _fastest_seconds(lambda: dist.all_to_all_single(received, sent))
    return 4 * EXCHANGED_FLOATS / seconds


def _fastest_seconds(run: Callable[[], object]) -> float:
    """Of some repeats: other programs only slow a run, never speed it up."""
    times = []
    for _ in range(_REPEATS + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[2:])
