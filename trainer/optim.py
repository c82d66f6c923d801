"""Optimizers: fused into the backward pass for tables, AdamW for the network, one schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from sharding.tables import OPTIMIZER_CLASSES, TableSpec


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates, schedule and clipping.

    Args:
        dense_lr: of AdamW on the network.
        weight_decay: of AdamW.
        sparse_lr: of the tables' optimizers (each table names its own kind).
        sparse_eps: of the Adagrad and Adam kinds.
        warmup_steps: both rates rise linearly from 0 over these steps.
        decay: `linear` falls to `final_fraction` at the last step, `constant` stays.
        final_fraction: of the rates, at the end of the decay.
        max_dense_norm: global norm to which the network's gradient is clipped; None for no clip.
        max_sparse_gradient: largest absolute value in the gradient of what a table returns (pooled
            vectors, item vectors), clipped inside the fused kernel before the gradients of a row
            are summed; the kernel never holds a whole gradient that could be normed. Data-parallel
            tables have no fused kernel and are not clipped. None for no clip.
    """

    dense_lr: float = 1e-3
    weight_decay: float = 0.0
    sparse_lr: float = 0.05
    sparse_eps: float = 1e-8
    warmup_steps: int = 0
    decay: str = "constant"
    final_fraction: float = 0.1
    max_dense_norm: float | None = 10.0
    max_sparse_gradient: float | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        if self.decay not in ("constant", "linear"):
            raise ValueError(f"optim.decay is {self.decay!r}, expected 'constant' or 'linear'")
        for field in ("dense_lr", "sparse_lr"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"optim.{field} is {getattr(self, field)}, expected above 0")
        for field in ("max_dense_norm", "max_sparse_gradient"):
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"optim.{field} is {value}, expected above 0, or None for no clip")
        for field in ("weight_decay", "sparse_eps", "warmup_steps"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"optim.{field} is {getattr(self, field)}, expected at least 0")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"optim.final_fraction is {self.final_fraction}, expected a share of 0 to 1"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """Share of the learning rates in force at `step` (0-based) of `num_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return 1.0 - (1.0 - self.final_fraction) * min(1.0, progress)

    def fused_params(self) -> dict[str, Any]:
        """What the TBE kernels take beside the optimizer's own arguments."""
        if self.max_sparse_gradient is None:
            return {}
        return {"gradient_clipping": True, "max_gradient": self.max_sparse_gradient}


def table_optimizer_arguments(table: TableSpec, config: OptimConfig) -> dict[str, Any]:
    """Keyword arguments of a table's optimizer."""
    arguments: dict[str, Any] = {"lr": config.sparse_lr}
    if table.optimizer != "sgd":
        arguments["eps"] = config.sparse_eps
    return arguments


def attach_table_optimizers(
    collections: Iterable[nn.Module], tables: Sequence[TableSpec], config: OptimConfig
) -> None:
    """Tell TorchRec to update each table inside the backward pass.

    Args:
        collections: the model's EmbeddingBagCollection and EmbeddingCollection, not yet sharded.
        tables: specs by which each table's optimizer is chosen.
        config: rates.
    """
    by_name = {table.name: table for table in tables}
    for collection in collections:
        for path, weight in collection.named_parameters():
            table = by_name[path.split(".")[-2]]
            apply_optimizer_in_backward(
                OPTIMIZER_CLASSES[table.optimizer],
                [weight],
                table_optimizer_arguments(table, config),
            )


class DenseOptimizer:
    """AdamW on the network, each data-parallel table's own optimizer, and the schedule of all.

    TorchRec attaches no optimizer to data-parallel tables, so theirs are made here.

    Args:
        network: the replicated or FSDP-sharded network.
        replicated_tables: weight of each data-parallel table by table name.
        fused: the optimizer of the sharded tables, whose rate follows the schedule too.
        tables: specs.
        config: rates, clipping, schedule.
        num_steps: length of the schedule.
        waiting: asked after each backward pass, with the step's number from 0, for the parameters
            that do not learn in it.
    """

    def __init__(
        self,
        network: nn.Module,
        replicated_tables: dict[str, nn.Parameter],
        fused: Optimizer,
        *,
        tables: Sequence[TableSpec],
        config: OptimConfig,
        num_steps: int,
        waiting: Callable[[int], Iterable[nn.Parameter]] = lambda step: (),
    ) -> None:
        self.config = config
        self.waiting = waiting
        self.num_steps = num_steps
        self.step_number = 0
        self.gradient_norm = float("nan")
        self.network_parameters = list(network.parameters())
        by_name = {table.name: table for table in tables}
        self.network_optimizer = torch.optim.AdamW(
            self.network_parameters,
            lr=config.dense_lr,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over memory in place of ten
        )
        self.table_optimizers: dict[str, Optimizer] = {
            name: OPTIMIZER_CLASSES[by_name[name].optimizer](
                [weight], **table_optimizer_arguments(by_name[name], config)
            )
            for name, weight in replicated_tables.items()
        }
        self.fused = fused
        self._set_rates()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients of the step before, and put this step's rates in force."""
        self._set_rates()
        self.network_optimizer.zero_grad(set_to_none)
        for optimizer in self.table_optimizers.values():
            optimizer.zero_grad(set_to_none)
        self.fused.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:
        """Clip the network's gradient, then step everything that is not fused."""
        for parameter in self.waiting(self.step_number):
            parameter.grad = None  # AdamW leaves it, its moments and its step count alone
        if self.config.max_dense_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.network_parameters, self.config.max_dense_norm)
            self.gradient_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self.network_optimizer.step()
        for optimizer in self.table_optimizers.values():
            optimizer.step()
        self.fused.step()
        self.step_number += 1

    def _set_rates(self) -> None:
        factor = self.config.factor(self.step_number, self.num_steps)
        for group in self.network_optimizer.param_groups:
            group["lr"] = self.config.dense_lr * factor
        for optimizer in (*self.table_optimizers.values(), self.fused):
            for group in optimizer.param_groups:
                group["lr"] = self.config.sparse_lr * factor
