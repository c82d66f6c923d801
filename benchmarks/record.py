"""The record that every benchmark writes, and the dated note of results worth keeping."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.run_folder import describe_machine, git_revision, package_versions

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One comparison.

    Attributes:
        benchmark: what was measured, with the settings that matter.
        ours: median of ours.
        peer: median of the peer.
        peer_name: with version.
        ratio: median over pairs of ours / peer.
        spread: smallest and largest ratio of a pair.
        target: in words; empty where a number is printed for information.
        holds: whether the target is met; True without one.
        versions: packages on both sides.
        runs: every single value, by side.
        machine: processor, cores, memory.
        date: UTC, ISO 8601.
    """

    benchmark: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    spread: tuple[float, float]
    target: str
    holds: bool
    versions: dict[str, str]
    runs: dict[str, list[float]]
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def compare_in_turn(
    benchmark: str,
    *,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    at_least: float | None,
    peer_versions: dict[str, str] | None = None,
) -> Record:
    """Summarise runs that were made in turn, ours and the peer's, more being better.

    Args:
        benchmark: what was measured.
        ours: one value a round.
        peer: one value a round, in the same rounds.
        peer_name: of the peer.
        at_least: target of the median ratio; None for a number without target.
        peer_versions: of packages in the peer's own virtual environment.
    """
    ratios = [own / other for own, other in zip(ours, peer, strict=True)]
    ratio = statistics.median(ratios)
    return Record(
        benchmark=benchmark,
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        peer_name=peer_name,
        ratio=ratio,
        spread=(min(ratios), max(ratios)),
        target="" if at_least is None else f"at least {at_least:g} x",
        holds=at_least is None or ratio >= at_least,
        versions={**package_versions(), **(peer_versions or {})},
        runs={"ours": list(ours), "peer": list(peer)},
    )


def records_table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a table in markdown, one a line; see :meth:`Record.to_dict`."""
    lines = [
        "| what | ours | peer | ratio (smallest, largest) | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for record in records:
        low, high = record["spread"]
        peer = f"{record['peer']:.5g} ({record['peer_name']})" if record["peer_name"] else ""
        ratio = f"{record['ratio']:.3g} ({low:.3g}, {high:.3g})" if record["peer_name"] else ""
        held = f"{record['target']}: {'holds' if record['holds'] else 'MISSED'}"
        lines.append(
            f"| {record['benchmark']} | {record['ours']:.5g} | {peer} | {ratio} | "
            f"{held if record['target'] else ''} |"
        )
    return "\n".join(lines)


def results_file(theme: str) -> Path:
    """Where today's results of a theme on this machine go."""
    machine = describe_machine()
    accelerators = machine["accelerators"]
    hardware = accelerators[0] if accelerators else machine["processor"].split("@")[0]
    words = "".join(c if c.isalnum() else " " for c in hardware.lower()).split()
    noise = {"intel", "amd", "r", "tm", "cpu", "processor", "nvidia", "core"}
    name = "-".join([word for word in words if word not in noise] or ["unknown"])
    count = len(accelerators) or machine["cores"]
    kind = "gpu" if accelerators else "core"
    return RESULTS / f"{theme}_{name}-{count}{kind}_{datetime.now(UTC):%Y%m%d}.md"


def write_results(theme: str, *, title: str, command: str, notes: str, body: str) -> None:
    """Write a note of results with machine, versions and revision, and say where.

    Args:
        theme: name of the note; see :func:`results_file`.
        title: heading.
        command: that reproduces it.
        notes: what is equal and what differs between the sides.
        body: tables in markdown.
    """
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    text = f"""# {title}

{datetime.now(UTC):%Y-%m-%d}, revision {git_revision()}.

    {command}

{machine["processor"]}, {machine["cores"]} cores, {machine["memory_bytes"] / 2**30:.0f} GiB. \
{versions}.

{body}

## What is equal and what differs

{notes}
"""
    path = results_file(theme)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
    print(f"wrote {path}")
