"""What systems of tables need at scale: bytes, machines, steps. No training, no GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sharding.dry_run import DryRunRequest, needed_bytes
from sharding.folder_names import check_folder_name
from sharding.hardware import Cluster, Machine
from sharding.report import Report, human_bytes
from sharding.smallest_cluster import SmallestCluster, smallest_cluster
from sharding.tables import TableSpec, check_tables, parameters_by_role


@dataclass(frozen=True, kw_only=True)
class StorageSystem:
    """One system: a set of tables.

    Args:
        title: shown in the report.
        tables: all of them.
        published_parameters: sparse parameters that a paper reports, where it does.
    """

    title: str
    tables: tuple[TableSpec, ...]
    published_parameters: float | None = None

    @property
    def num_parameters(self) -> int:
        """Weights of all tables."""
        return sum(table.num_parameters for table in self.tables)


@dataclass(frozen=True, kw_only=True)
class StorageComparison:
    """Systems on the same machines with the same batch.

    Args:
        name: of the report and its folder.
        systems: rows, the one that the others are compared with first.
        machines: for which the least number of nodes is searched.
        batch_size: impressions per rank and step.
        reserve: share of memory kept for activations and the allocator.
        assumption: what the tables rest on, in words; printed with the report.

    Raises:
        ValueError: when there is no system or no machine, a title stands twice, or a system's
            tables do not go together.
    """

    name: str
    systems: tuple[StorageSystem, ...]
    machines: tuple[Machine, ...]
    batch_size: int
    reserve: float = 0.15
    assumption: str = ""

    def __post_init__(self) -> None:
        """Check the parts."""
        check_folder_name(self.name, of="comparison")
        if not self.systems or not self.machines:
            raise ValueError(f"comparison {self.name!r}: expected systems and machines")
        titles = [system.title for system in self.systems]
        if len(set(titles)) < len(titles):
            raise ValueError(f"comparison {self.name!r}: a title stands twice: {titles}")
        for system in self.systems:
            check_tables(system.tables)


def compare_storage(
    comparison: StorageComparison, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Plan every system on every machine at the least number of nodes.

    Args:
        comparison: what is compared.
        progress: told what is planned next.
    """
    start = time.perf_counter()
    systems = []
    for system in comparison.systems:
        found = {}
        for machine in comparison.machines:
            progress(f"{system.title} on {machine.name}")
            request = DryRunRequest(
                name=system.title,
                tables=system.tables,
                clusters=(Cluster(machine=machine, nodes=1),),
                batch_size=comparison.batch_size,
                reserve=comparison.reserve,
            )
            smallest = smallest_cluster(request, machine, multiples=(1, 2))
            found[machine.name] = _machine_entry(smallest)
        systems.append(_system_entry(system, found))
    return {
        "name": comparison.name,
        "assumption": comparison.assumption,
        "batch_size_per_rank": comparison.batch_size,
        "reserve": comparison.reserve,
        "machines": [asdict(machine) for machine in comparison.machines],
        "systems": systems,
        "seconds": time.perf_counter() - start,
    }


def _system_entry(system: StorageSystem, machines: dict[str, Any]) -> Report:
    weights = sum(table.num_bytes for table in system.tables)
    return {
        "title": system.title,
        "num_parameters": system.num_parameters,
        "published_parameters": system.published_parameters,
        "parameters_by_role": parameters_by_role(system.tables),
        "weight_bytes": weights,
        "state_bytes": needed_bytes(system.tables) - weights,
        "checkpoint_bytes": needed_bytes(system.tables),
        "tables": [
            {
                "name": table.name,
                "role": table.role,
                "rows": table.rows,
                "dim": table.dim,
                "dtype": table.dtype,
                "num_parameters": table.num_parameters,
                "pooling_factors": list(table.pooling_factors or (1.0,)),
            }
            for table in system.tables
        ],
        "machines": machines,
    }


def _machine_entry(smallest: SmallestCluster) -> Report:
    target = smallest.target
    assert target.plan is not None
    ways = Counter(f"{entry.way.sharding_type} {entry.way.kernel}" for entry in target.plan.tables)
    return {
        "nodes": target.cluster.nodes,
        "num_ranks": target.cluster.num_ranks,
        "fits": target.fits,
        "one_node_less_fits": None if smallest.below is None else smallest.below.fits,
        "one_node_less": None if smallest.below is None else smallest.below.reason,
        "ways": dict(ways.most_common()),
        "steps": {str(nodes): asdict(step) for nodes, step in smallest.steps.items()},
    }


def human_count(count: float) -> str:
    """Thousands, millions, billions or trillions."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size / 10:
            return f"{count / size:.3f} {unit}"
    return f"{count:.0f}"


def system_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a system: size, and the least number of ranks and nodes."""
    names = [machine["name"] for machine in report["machines"]]
    header = ["system", "params", "paper", "weights", "with state"]
    header += [f"{name} ranks (nodes)" for name in names]
    rows = []
    for system in report["systems"]:
        published = system["published_parameters"]
        entries = [system["machines"][name] for name in names]
        rows.append(
            [
                system["title"],
                human_count(system["num_parameters"]),
                "-" if published is None else f"{published / 1e12:.2f} T",
                human_bytes(system["weight_bytes"]),
                human_bytes(system["checkpoint_bytes"]),
                *(f"{entry['num_ranks']:,} ({entry['nodes']})" for entry in entries),
            ]
        )
    return header, rows


def step_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a system: milliseconds, and samples/s a rank, at the least size."""
    names = [machine["name"] for machine in report["machines"]]
    rows = []
    for system in report["systems"]:
        row = [system["title"]]
        for name in names:
            entry = system["machines"][name]
            step = entry["steps"][str(entry["nodes"])]
            row.append(f"{step['step_ms']:,.1f} ms, {step['samples_per_s']:,.0f}/s")
        rows.append(row)
    return ["system", *names], rows


def way_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a system: how its tables lie at the least number of nodes."""
    names = [machine["name"] for machine in report["machines"]]
    rows = [
        [
            system["title"],
            *(
                ", ".join(f"{n} x {way}" for way, n in system["machines"][name]["ways"].items())
                for name in names
            ),
        ]
        for system in report["systems"]
    ]
    return ["system", *(f"tables on {name}" for name in names)], rows


def assumed_tables(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a table, with the systems that have it."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    for system in report["systems"]:
        for table in system["tables"]:
            key = (
                table["name"],
                table["role"],
                table["rows"],
                table["dim"],
                table["dtype"],
                table["num_parameters"],
                " + ".join(f"{factor:g}" for factor in table["pooling_factors"]),
            )
            seen.setdefault(key, []).append(system["title"])
    rows = [
        [
            name,
            role,
            f"{rows:,}",
            str(dim),
            dtype,
            human_count(parameters),
            factors,
            "all" if len(titles) == len(report["systems"]) else "; ".join(titles),
        ]
        for (name, role, rows, dim, dtype, parameters, factors), titles in seen.items()
    ]
    header = ["table", "role", "rows", "dim", "dtype", "parameters", "ids an impression", "in"]
    return header, rows


def storage_markdown(report: Report, figures: tuple[str, ...] = ()) -> str:
    """The comparison as markdown; `figures` are file names beside it."""
    lines = [
        f"# {report['name']}",
        "",
        f"{report['batch_size_per_rank']} impressions a rank and step, "
        f"{report['reserve']:.0%} of memory kept free; planned in {report['seconds']:.0f} s.",
        "",
    ]
    for title, (header, rows) in (
        ("Systems, and the least number of ranks that holds them", system_rows(report)),
        ("Predicted step there, and samples/s a rank", step_rows(report)),
        ("How tables lie at the least number of nodes", way_rows(report)),
        ("Tables", assumed_tables(report)),
    ):
        lines += [f"## {title}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    lines += ["## Assumption", "", report["assumption"], ""]
    lines += [f"![{name}]({name})" for name in figures]
    return "\n".join(lines).rstrip() + "\n"
