"""A dry run for people and programs: JSON, markdown, HTML, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from sharding.cost import MEMORY_PARTS, TIERS, memory_by_part, predicted_step
from sharding.dry_run import DryRunResult, Target, table_capacity
from sharding.hardware import machine_to_json
from sharding.plan_io import plan_file

Report = dict[str, Any]
Rows = list[list[str]]

TABLE_HEADER = (
    "table",
    "role",
    "rows",
    "dim",
    "dtype",
    "bytes",
    "state",
    "sharding",
    "kernel",
    "shards",
    "ranks",
)
_SHOWN_RANKS = 4


def build_plan_report(result: DryRunResult) -> Report:
    """All of a dry run as JSON values, without the shards (`plan.json` has them)."""
    request = result.request
    return {
        "name": request.name,
        "fingerprint": request.fingerprint,
        "fits": result.fits,
        "batch_size_per_rank": request.batch_size,
        "reserve": request.reserve,
        "dense": asdict(request.dense),
        "num_parameters": sum(table.num_parameters for table in request.tables),
        "weight_bytes": sum(table.num_bytes for table in request.tables),
        "state_bytes": sum(table.num_state_bytes for table in request.tables),
        "targets": [_target(result, target) for target in result.targets],
    }


def _target(result: DryRunResult, target: Target) -> Report:
    request, cluster = result.request, target.cluster
    hbm, ddr = table_capacity(request, cluster)
    found: Report = {
        "cluster": cluster.title,
        "machine": machine_to_json(cluster.machine),
        "nodes": cluster.nodes,
        "num_ranks": cluster.num_ranks,
        "bytes_for_tables_per_rank": {"hbm": hbm, "ddr": ddr},
        "fits": target.fits,
        "reason": target.reason,
        "changes": list(target.changes),
        "planning_seconds": target.seconds,
    }
    if target.plan is None:
        return found
    memory = memory_by_part(request, target)
    found["step"] = asdict(predicted_step(target.plan, request.batch_size))
    found["step_ms_by_rank"] = target.plan.parts_by_rank().sum(axis=1).tolist()
    found["tables"] = [
        {
            "name": entry.table.name,
            "role": entry.table.role,
            "rows": entry.table.rows,
            "dim": entry.table.dim,
            "dtype": entry.table.dtype,
            "optimizer": entry.table.optimizer,
            "bytes": entry.table.num_bytes,
            "state_bytes": entry.table.num_state_bytes,
            "sharding_type": entry.way.sharding_type,
            "kernel": entry.way.kernel,
            "num_shards": entry.way.grid.num_shards,
            "ranks": entry.ranks_S.tolist(),
            "step_ms": entry.way.longest,
        }
        for entry in target.plan.tables
    ]
    found["memory_by_rank"] = {
        tier: {part: memory[:, place, index].tolist() for index, part in enumerate(MEMORY_PARTS)}
        for place, tier in enumerate(TIERS)
    }
    return found


def human_bytes(count: float) -> str:
    """Decimal units, as vendors sell memory."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:,.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def rank_ranges(ranks: Sequence[int]) -> str:
    """`0-127`, `0-7, 16-23` or `3`."""
    ordered = sorted(set(ranks))
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    shown = [f"{a}-{b}" if b > a else str(a) for a, b in runs[:_SHOWN_RANKS]]
    return ", ".join(shown) + (f" and {len(runs) - _SHOWN_RANKS} more" * (len(runs) > 4))


def table_rows(target: Report) -> Rows:
    """One row a table, under `TABLE_HEADER`."""
    return [
        [
            table["name"],
            table["role"],
            f"{table['rows']:,}",
            str(table["dim"]),
            table["dtype"],
            human_bytes(table["bytes"]),
            human_bytes(table["state_bytes"]),
            table["sharding_type"],
            table["kernel"],
            str(table["num_shards"]),
            rank_ranges(table["ranks"]),
        ]
        for table in target["tables"]
    ]


RANK_HEADER = ("ranks", "memory", *MEMORY_PARTS, "step ms")


def rank_rows(target: Report) -> Rows:
    """One row a group of ranks with equal memory and step, by tier that tables use."""
    rows: Rows = []
    for tier in TIERS:
        parts = target["memory_by_rank"][tier]
        tables = [sum(values) for values in zip(*(parts[p] for p in MEMORY_PARTS[:4]), strict=True)]
        if not any(tables):
            continue
        groups: dict[tuple[Any, ...], list[int]] = {}
        for rank in range(target["num_ranks"]):
            key = tuple(parts[part][rank] for part in MEMORY_PARTS)
            groups.setdefault((*key, round(target["step_ms_by_rank"][rank], 6)), []).append(rank)
        heaviest = sorted(groups.items(), key=lambda item: item[0][len(MEMORY_PARTS) - 1])
        for values, ranks in heaviest[:12]:
            cells = [human_bytes(value) for value in values[:-1]]
            rows.append([rank_ranges(ranks), tier.upper(), *cells, f"{values[-1]:.3f}"])
        if len(heaviest) > 12:
            rest = sum(len(ranks) for _, ranks in heaviest[12:])
            rows.append([f"{rest} more ranks, all with more free", tier.upper(), *[""] * 7])
    return rows


def step_line(target: Report) -> str:
    """The predicted step in one sentence."""
    step = target["step"]
    return (
        f"predicted step of the tables: {step['step_ms']:.3f} ms (lookup {step['lookup_ms']:.3f}, "
        f"all-to-all {step['exchange_ms']:.3f}, backward {step['backward_ms']:.3f}, prefetch "
        f"{step['prefetch_ms']:.3f}; slowest rank {step['imbalance']:.2f} x the mean), "
        f"{step['samples_per_s']:,.0f} samples/s a rank"
    )


def verdict_lines(target: Report) -> list[str]:
    """Fits or not, and what would help."""
    if target["fits"]:
        return [f"fits; {step_line(target)}"]
    lines = [f"DOES NOT FIT: {target['reason']}"]
    if target["changes"]:
        lines.append("planned, and fits with any one of: " + "; ".join(target["changes"]))
    return lines


def title_line(report: Report) -> str:
    """Name, size and fingerprint."""
    return (
        f"{report['name']}: {report['num_parameters']:,} sparse parameters, "
        f"{human_bytes(report['weight_bytes'])} of weights + "
        f"{human_bytes(report['state_bytes'])} of optimizer state; "
        f"{report['batch_size_per_rank']} impressions a rank; request {report['fingerprint'][:12]}"
    )


def to_markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The report as markdown; `figures` are file names beside it."""
    lines = [f"# Sharding plan of {report['name']}", "", title_line(report), ""]
    for target in report["targets"]:
        lines += [f"## {target['cluster']}", "", *verdict_lines(target), ""]
        for header, rows in _tables(target):
            lines += [_markdown_row(header), _markdown_row(["---"] * len(header))]
            lines += [*map(_markdown_row, rows), ""]
    lines += [f"![{name}]({name})" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def to_html(report: Report, figures: Sequence[str] = ()) -> str:
    """The report as one HTML page; `figures` are file names beside it."""
    body = [f"<h1>Sharding plan of {escape(report['name'])}</h1>"]
    body.append(f"<p>{escape(title_line(report))}</p>")
    for target in report["targets"]:
        body.append(f"<h2>{escape(target['cluster'])}</h2>")
        body += [f"<p>{escape(line)}</p>" for line in verdict_lines(target)]
        for header, rows in _tables(target):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
            cells = "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            body.append(f"<table><tr>{head}</tr>{cells}</table>")
    body += [f'<img src="{escape(name)}" alt="{escape(name)}">' for name in figures]
    return _PAGE.format(title=escape(report["name"]), body="\n".join(body))


def _tables(target: Report) -> Iterator[tuple[Sequence[str], Rows]]:
    if target["fits"]:
        yield TABLE_HEADER, table_rows(target)
        yield RANK_HEADER, rank_rows(target)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sharding plan of {title}</title><style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 13px }}
td, th {{ padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }}
td:first-child, th:first-child {{ text-align: left }} img {{ max-width: 100% }}
</style></head><body>
{body}
</body></html>
"""


def plan_files(result: DryRunResult) -> dict[str, Report]:
    """`plan.json` of each target that fits, by cluster title."""
    tables = result.request.tables
    return {
        target.cluster.title: {
            "fingerprint": result.request.fingerprint,
            **plan_file(target.plan.to_sharding_plan(), tables, target.cluster.num_ranks),
        }
        for target in result.targets
        if target.plan is not None
    }
