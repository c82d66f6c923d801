"""Networks that are built without memory and drawn once their place is known.

A network of billions of parameters fits on no single rank, so it is built on the meta device,
sharded, and only then filled. What each parameter becomes depends on the seed and its path alone:
every rank draws the same full tensors, one module at a time, and keeps its own part of each. One
process and many ranks therefore start from equal weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, modules are built with parameters that have a shape and no memory.

    Buffers are real: they hold what constructors compute, which no later draw could restore.

    Example::

        with parameters_on_meta():
            network = nn.Linear(1_000_000, 1_000_000)
    """
    hook: Callable[..., Any] = _to_meta  # torch's annotation leaves out that it may return
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if parameter.is_meta:
        return None
    return nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)


def initialize(network: nn.Module, *, seed: int, device: torch.device) -> None:
    """Give memory to all parameters that are on the meta device, and draw them.

    A module with `reset_parameters` draws its own parameters; where such a module holds others,
    they draw before it. Random state outside is left as it was.

    Args:
        network: with whole parameters, or sharded by FSDP2. Parameters that have memory already
            keep their values.
        seed: of all draws.
        device: where the parameters go.

    Raises:
        TypeError: when no `reset_parameters` draws some parameter, or two modules share one.
    """
    named = list(network.named_parameters(remove_duplicate=False))
    missing = {name for name, weight in named if weight.is_meta}
    if not missing:
        return
    if len({id(weight) for _, weight in named}) < len(named):
        raise TypeError(
            f"{type(network).__name__}: two modules share a parameter, which would become two; "
            "let one module hold it and the other take it as an argument"
        )
    network._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
    state = torch.default_generator.get_state()
    try:
        _initialize(network, "", missing, seed)
    finally:
        torch.default_generator.set_state(state)
    if missing:
        raise TypeError(
            f"{type(network).__name__}: no module with reset_parameters() draws "
            f"{', '.join(sorted(missing)[:5])}; a network that is built on the meta device needs "
            "one at the module that holds the parameter, or around it"
        )


def _initialize(module: nn.Module, path: str, missing: set[str], seed: int) -> None:
    """Draw the outermost modules below `module` that know how, one after the other."""
    if hasattr(module, "reset_parameters"):
        _draw(module, path, missing, seed)
        return
    for name, child in module.named_children():
        _initialize(child, f"{path}{name}.", missing, seed)


@torch.no_grad()
def _draw(module: nn.Module, path: str, missing: set[str], seed: int) -> None:
    """Draw all of a module in full, then keep this rank's part.

    Raises:
        TypeError: when a parameter is left without a value.
    """
    owned = [
        (owner, name, f"{path}{prefix}{'.' if prefix else ''}{name}", weight)
        for prefix, owner in module.named_modules()
        for name, weight in owner._parameters.items()
        if weight is not None
    ]
    drawn = []
    for owner, name, _, weight in owned:
        full = torch.full(weight.shape, float("nan"), dtype=weight.dtype)
        owner._parameters[name] = nn.Parameter(full, requires_grad=weight.requires_grad)
        drawn.append(full)
    for prefix, inner in reversed(list(module.named_modules())):
        if hasattr(inner, "reset_parameters"):
            torch.default_generator.manual_seed(_seed_of(seed, f"{path}{prefix}"))
            inner.reset_parameters()
    for (owner, name, full_name, weight), full in zip(owned, drawn, strict=True):
        owner._parameters[name] = weight
        if full.isnan().any():
            raise TypeError(
                f"{full_name}: reset_parameters() of {type(module).__name__} and of the modules "
                "inside leaves it without a value"
            )
        if full_name in missing:
            _keep_part(weight, full)
            missing.discard(full_name)


def _keep_part(weight: Tensor, full: Tensor) -> None:
    if isinstance(weight, DTensor):
        part = distribute_tensor(
            full.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
        weight.to_local().copy_(part.to_local())
    else:
        weight.copy_(full)


def _seed_of(seed: int, path: str) -> int:
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
