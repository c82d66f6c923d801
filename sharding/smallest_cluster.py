"""The least number of nodes that holds a set of tables, found by planning."""

from __future__ import annotations

from dataclasses import dataclass

from sharding.cost import Step, predicted_step
from sharding.dry_run import DryRunRequest, Target, needed_bytes, plan_target, reachable_bytes
from sharding.hardware import Cluster, Machine

MOST_NODES = 1 << 16


@dataclass(frozen=True, eq=False)
class SmallestCluster:
    """The smallest cluster of one machine type.

    Attributes:
        target: planned at the least number of nodes.
        below: planned with one node less; None where one node is enough.
        steps: predicted step by number of nodes, at 1, 2, 4 and 8 times the least.
    """

    target: Target
    below: Target | None
    steps: dict[int, Step]


def smallest_cluster(
    request: DryRunRequest, machine: Machine, *, multiples: tuple[int, ...] = (1, 2, 4, 8)
) -> SmallestCluster:
    """Search the least number of nodes with a plan.

    The search starts where weights and state just fill the memory, grows until a plan is found and
    then halves the interval, so both ends are planned, not computed.

    Args:
        request: what is planned; its own clusters are not looked at.
        machine: type of node.
        multiples: of the least number of nodes, at which the step is predicted too.

    Raises:
        ValueError: when no number of nodes fits, with the reason at the largest that was tried.
    """
    low, high = 0, _lower_bound(request, machine)
    targets: dict[int, Target] = {}

    def at(nodes: int) -> Target:
        if nodes not in targets:
            cluster = Cluster(machine=machine, nodes=nodes)
            targets[nodes] = plan_target(request, cluster, explain=False)
        return targets[nodes]

    growth = 1
    while not at(high).fits:
        if high >= MOST_NODES:
            raise ValueError(
                f"no plan on up to {high:,} nodes of {machine.name}: {at(high).reason}"
            )
        low, high = high, min(MOST_NODES, high + max(growth, high // 64))
        growth *= 2
    while low > 0 or high > 1:
        below = high - 1 if low == 0 else (low + high) // 2
        if below <= low:
            break
        if at(below).fits:
            high = below
        else:
            low = below
    steps = {}
    for multiple in multiples:
        plan = at(multiple * high).plan
        if plan is not None:
            steps[multiple * high] = predicted_step(plan, request.batch_size)
    return SmallestCluster(at(high), at(high - 1) if high > 1 else None, steps)


def _lower_bound(request: DryRunRequest, machine: Machine) -> int:
    """Nodes whose memory in sum equals weights and state."""
    needed = needed_bytes(request.tables)
    low, high = 1, 1
    while reachable_bytes(request, Cluster(machine=machine, nodes=high)) < needed:
        low, high = high, 2 * high
        if high > MOST_NODES:
            return MOST_NODES
    while low < high:
        middle = (low + high) // 2
        if reachable_bytes(request, Cluster(machine=machine, nodes=middle)) < needed:
            low = middle + 1
        else:
            high = middle
    return high
