"""Towers of a wanted size, and how fast one computes a training step."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.dense_network import compile_training
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.dhen import DHENConfig
from trainer.models.dlrm import DLRMConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.tower import TowerConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wukong import WuKongConfig

Precision = Literal["fp32", "bf16"]
FEATURE_DIMS = {f"feature_{number}": 64 for number in range(16)}
IN_DIM = sum(FEATURE_DIMS.values())
NUM_TOKENS = 16
WIDTH_STEP = 16
MATRIX_DIM = 4096
"""Of the square matrices whose product is what the machine can do."""


def _dcn_v2(width: int) -> DCNv2Config:
    rank = width // 4
    return DCNv2Config(
        num_layers=3, hidden_dims=(width, width), rank=rank if 2 * rank < IN_DIM else None
    )


FAMILIES: dict[str, Callable[[int], TowerConfig]] = {
    "dlrm": lambda width: DLRMConfig(hidden_dims=(width, width, width // 2)),
    "dcn_v2": _dcn_v2,
    "dhen": lambda width: DHENConfig(
        num_tokens=NUM_TOKENS, dim=width, cross_rank=width, dot_hidden_dim=width
    ),
    "wukong": lambda width: WuKongConfig(
        num_tokens=NUM_TOKENS, dim=width, num_fm_tokens=8, rank=8, hidden_dims=(2 * width,)
    ),
    "transformer": lambda width: TransformerConfig(
        num_tokens=NUM_TOKENS, dim=width, weights="per_token"
    ),
    "rankmixer": lambda width: RankMixerConfig(num_tokens=NUM_TOKENS, dim=width),
}
"""One family of sizes a tower; what grows is the width, depth stays."""


def num_parameters(config: TowerConfig) -> int:
    """Counted without memory."""
    with torch.device("meta"):
        tower = config.build(FEATURE_DIMS)
    assert isinstance(tower, nn.Module)
    return sum(weight.numel() for weight in tower.parameters())


def tower_of_size(name: str, parameters: int) -> TowerConfig:
    """The member of a family whose number of parameters is nearest to the wanted one."""
    family = FAMILIES[name]
    below, above = WIDTH_STEP, 2 * WIDTH_STEP
    while num_parameters(family(above)) < parameters:
        below, above = above, 2 * above
    while above - below > WIDTH_STEP:
        middle = (below + above) // 2 // WIDTH_STEP * WIDTH_STEP
        if num_parameters(family(middle)) < parameters:
            below = middle
        else:
            above = middle
    return min(
        (family(below), family(above)), key=lambda config: abs(num_parameters(config) - parameters)
    )


def training_flops(config: TowerConfig, batch_size: int) -> int:
    """Matrix products of a forward and a backward pass, also to the features."""
    with torch.device("meta"):
        tower = config.build(FEATURE_DIMS)
        x_BF = torch.empty(batch_size, IN_DIM, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tower(x_BF).sum().backward()
    return counter.get_total_flops()


def batch_for(config: TowerConfig, flops: float, largest: int = 4096) -> int:
    """Impressions, a power of two, with which a step costs about so many FLOPs."""
    batch_size = largest
    while batch_size > 64 and training_flops(config, batch_size) > 1.5 * flops:
        batch_size //= 2
    return batch_size


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """bf16 under autocast, as the trainer does it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        yield


def step_of(
    config: TowerConfig, batch_size: int, precision: Precision, *, compiled: bool
) -> Callable[[], None]:
    """One forward and backward pass, gradients to weights and features included."""
    torch.manual_seed(0)
    tower = config.build(FEATURE_DIMS)
    assert isinstance(tower, nn.Module)
    if compiled:
        compile_training(tower)
    x_BF = torch.randn(batch_size, IN_DIM, requires_grad=True)

    def step() -> None:
        with computing_in(precision):
            loss = tower(x_BF).float().square().mean()
        loss.backward()
        for weight in itertools.chain([x_BF], tower.parameters()):
            weight.grad = None

    return step


def matrix_product(precision: Precision) -> Callable[[], None]:
    """One product of two square matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(MATRIX_DIM, MATRIX_DIM).to(dtype) for _ in range(2))
    out = torch.empty_like(one)

    def product() -> None:
        torch.mm(one, other, out=out)

    return product


def seconds_of(work: Callable[[], None], seconds: float, at_least: int = 1) -> float:
    """Median seconds of one piece of work, repeated for about so long; the first is dropped."""
    work()
    times: list[float] = []
    while len(times) < at_least or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
