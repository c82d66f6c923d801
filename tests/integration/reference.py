"""One unsharded process with optimizers in a few lines each: what sharded training must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.integration.tiny_model import Case, batches_of_ranks, initial_table, joined
from trainer.models.tower import TowerWithTurns


@dataclass
class Trajectory:
    """Logits (steps, B, N), gradient norms by step, final weights by name."""

    logits: list[torch.Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    network: dict[str, torch.Tensor] = field(default_factory=dict)


def train_unsharded(
    case: Case, world_size: int, column_shards: dict[str, list[tuple[int, int]]]
) -> Trajectory:
    """Train on the joined batches of all ranks.

    Row-wise Adagrad keeps one number for each row and column shard [first, number].
    """
    model = case.model("cpu")
    optim = case.optim
    network = list(model.network.parameters())
    adam = torch.optim.AdamW(
        network, lr=optim.dense_lr, weight_decay=optim.weight_decay, fused=True
    )
    specs = {table.name: table for table in case.tables()}
    weights = {path.split(".")[-2]: weight for path, weight in model.sparse.named_parameters()}
    assert set(weights) == set(specs)
    for name, weight in weights.items():
        weight.data.copy_(initial_table(name, weight.shape[0]))
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    result = Trajectory()
    for step, parts in enumerate(batches_of_ranks(case, world_size)):
        factor = _factor(optim, step, case.num_steps)
        batch = joined(parts)
        model.zero_grad()
        pooled, items = model.sparse(batch)
        if optim.max_sparse_gradient is not None:
            for embedded in (pooled.values(), *(item.values() for item in items.values())):
                embedded.register_hook(
                    lambda gradient: gradient.clamp(
                        -optim.max_sparse_gradient, optim.max_sparse_gradient
                    )
                )
        logits, others = model.network(batch, pooled, items)
        loss = binary_cross_entropy_with_logits(logits, batch.labels_BN)
        if case.next_token is not None:
            loss = loss + case.next_token.weight * others["next_token"]
        loss = loss + others.get("tower", 0.0)
        loss.backward()
        result.logits.append(logits.detach())
        result.losses.append(float(loss.detach()))
        tower = model.network.tower
        if isinstance(tower, TowerWithTurns):
            own = {id(weight) for weight in tower.parameters_with_turns()}
            for weight in network:
                if (id(weight) in own) != tower.is_their_turn(step):
                    weight.grad = None
        learning = [weight for weight in network if weight.grad is not None]
        norm = torch.sqrt(sum(weight.grad.square().sum() for weight in learning))
        result.norms.append(float(norm))
        if norm > optim.max_dense_norm:
            for weight in learning:
                weight.grad *= optim.max_dense_norm / norm
        adam.param_groups[0]["lr"] = optim.dense_lr * factor
        adam.step()
        for name, weight in weights.items():
            _table_step(
                specs[name].optimizer,
                weight.data,
                weight.grad,
                sums[name],
                rate=optim.sparse_lr * factor,
                eps=optim.sparse_eps,
                columns=column_shards[name],
            )
    result.tables = {name: weight.detach() for name, weight in weights.items()}
    result.network = {name: weight.detach() for name, weight in model.network.named_parameters()}
    return result


def _factor(optim, step: int, num_steps: int) -> float:
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / (num_steps - optim.warmup_steps)
    return 1 - (1 - optim.final_fraction) * progress


def _table_step(kind, weight, gradient, sums, *, rate, eps, columns) -> None:
    if kind == "sgd":
        weight -= rate * gradient
        return
    if kind == "adagrad":
        sums += gradient**2
    else:
        for first, number in columns:
            part = slice(first, first + number)
            sums[:, part] += (gradient[:, part] ** 2).mean(dim=1, keepdim=True)
    weight -= rate * gradient / (sums.sqrt() + eps)
