"""The one place that knows on what we run: ranks, device, backend."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from trainer.host_memory import reuse_freed_memory
from trainer.job_store import store_of_this_start

logger = logging.getLogger(__name__)

_ENVIRONMENT = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the job.

    Attributes:
        rank: of this process, 0 to `world_size` - 1.
        world_size: number of processes.
        local_rank: among the processes of this host.
        local_world_size: processes on this host.
        device: where tensors live.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes files and talks to people."""
        return self.rank == 0

    def all_reduce(self, value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Reduce `value` over ranks, in place."""
        dist.all_reduce(value, op=op)
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """Collect one picklable value per rank on rank 0; None elsewhere."""
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def pick_device() -> torch.device:
    """The CUDA device of this process's local rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_ranks(timeout: timedelta = timedelta(minutes=10)) -> Ranks:
    """Join the process group that torchrun announced; alone, form a group of one.

    Raises:
        ValueError: when torchrun's environment is there in part only.
        RuntimeError: when ranks can't meet where they were told to.
    """
    present = [name for name in _ENVIRONMENT if name in os.environ]
    if present and len(present) < len(_ENVIRONMENT):
        missing = sorted(set(_ENVIRONMENT) - set(present))
        raise ValueError(
            f"environment: {', '.join(present)} set but {', '.join(missing)} missing; "
            "start through torchrun, torchx or `farewell train --ranks N`"
        )
    if not present:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = ("0", "1", "0", "1", "127.0.0.1", str(port))
        os.environ.update(zip(_ENVIRONMENT, alone, strict=True))
    local_rank = int(os.environ["LOCAL_RANK"])
    device = pick_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        reuse_freed_memory()
    if not dist.is_initialized():
        try:
            store, backend = (
                store_of_this_start(timeout),
                "nccl" if device.type == "cuda" else "gloo",
            )
            if store is None:
                dist.init_process_group(backend, timeout=timeout)
            else:
                rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
                dist.init_process_group(
                    backend, timeout=timeout, store=store, rank=rank, world_size=num_ranks
                )
        except dist.DistNetworkError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RuntimeError(
                f"ranks can't meet at {where} (MASTER_ADDR and MASTER_PORT): {error}. Where the "
                "port is taken, choose another (--rdzv_port of the torchx components, "
                "--master-port or --rdzv-endpoint of torchrun)"
            ) from error
    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        local_rank=local_rank,
        local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        device=device,
    )


def stop_ranks() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def runs_bf16_natively(device: torch.device) -> bool:
    """True where bf16 matrix products are faster than fp32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def memory_per_rank(ranks: Ranks) -> tuple[int, int]:
    """Bytes of device memory (0 on the CPU) and of host memory that belong to one rank."""
    host = psutil.virtual_memory().total // ranks.local_world_size
    if ranks.device.type == "cuda":
        return torch.cuda.get_device_properties(ranks.device).total_memory, host
    return 0, host
