"""The quality report of a token artifact: figures a machine reads, a page and a picture."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact
from tokenization.figures import draw_quality
from tokenization.floor_bound import floor_bound
from tokenization.points import EmbeddingSource
from tokenization.quality import checked_source, measure_quality, squared_errors

_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report is made of besides the artifact.

    Args:
        embeddings: floating `(N, D)`, of the artifact's items in its order; or where they are read
            from, block by block.
        titles: one an item, or None.
        neighbours: rows of co-click neighbours int64 `(N, V)`, -1 in unused places, or None.
        exponent: s of the floor bound.
        holder_constant: L_eta of the floor bound, where it is known.
        num_examples: groups of items shown.
    """

    embeddings: NDArray[np.floating] | EmbeddingSource
    titles: Sequence[str] | None = None
    neighbours: NDArray[np.int64] | None = None
    exponent: float = 1.0
    holder_constant: float | None = None
    num_examples: int = 6


def neighbour_recall(
    codes: NDArray[np.integer], neighbours: NDArray[np.int64]
) -> list[dict[str, float]]:
    """Share of neighbours that share an item's first codes, by how many, beside chance.

    Args:
        codes: `(N, L)`.
        neighbours: rows int64 `(N, V)`, -1 in unused places.

    Returns:
        one entry a prefix length from 1: `recall`, and `chance`, that two random items share it.
    """
    rows, places = np.nonzero(neighbours >= 0)
    others = neighbours[rows, places]
    result = []
    for length in range(1, codes.shape[1] + 1):
        prefix = np.unique(codes[:, :length], axis=0, return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(prefix).astype(np.float64)
        total = float(len(codes))
        chance = float((sizes * (sizes - 1)).sum() / (total * max(total - 1, 1)))
        recall = float((prefix[rows] == prefix[others]).mean()) if len(rows) else 0.0
        result.append({"length": length, "recall": recall, "chance": chance})
    return result


def token_lengths(artifact: TokenArtifact) -> NDArray[np.int64]:
    """Codes that each mem-token stands for, int64 `(M,)`."""
    num_gen = artifact.num_levels * artifact.num_codes
    lengths = [1] * num_gen
    pairs = zip(artifact.merges.left.tolist(), artifact.merges.right.tolist(), strict=True)
    for left, right in pairs:
        lengths.append(1 if left == right else lengths[left] + lengths[right])
    return np.array(lengths[num_gen:], dtype=np.int64)


def examples(
    artifact: TokenArtifact, titles: Sequence[str], num_groups: int
) -> list[dict[str, Any]]:
    """Show what items share: whole tuples' neighbours by prefix, for well filled first codes."""
    counts = np.bincount(artifact.codes[:, 0], minlength=artifact.num_codes)
    used = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]
    chosen = used[np.linspace(0, len(used) - 1, min(num_groups, len(used))).astype(int)]
    groups = []
    for code in chosen.tolist():
        rows = np.flatnonzero(artifact.codes[:, 0] == code)
        order = rows[np.lexsort(artifact.codes[rows].T[::-1])]
        kept = order[np.linspace(0, len(order) - 1, min(8, len(order))).astype(int)]
        groups.append(
            {
                "code": code,
                "num_items": len(rows),
                "items": [
                    {"codes": artifact.codes[row].tolist(), "title": str(titles[row])}
                    for row in kept
                ],
            }
        )
    return groups


def measure(artifact: TokenArtifact, inputs: ReportInputs) -> dict[str, Any]:
    """Everything that the report says, as JSON values."""
    quality = measure_quality(artifact, inputs.embeddings)
    bound = floor_bound(
        squared_errors(artifact, checked_source(artifact, inputs.embeddings)),
        exponent=inputs.exponent,
        holder_constant=inputs.holder_constant,
    )
    use = np.bincount(artifact.mem_values, minlength=artifact.num_merges)
    lengths = token_lengths(artifact)
    edges = 2 ** np.arange(int(np.log2(max(use.max(initial=1), 1))) + 2)
    report: dict[str, Any] = {
        "fingerprint": artifact.fingerprint,
        "vocabulary_fingerprint": artifact.vocabulary_fingerprint,
        "manifest": dict(artifact.manifest),
        "quality": quality.to_dict(),
        "floor_bound": dataclasses.asdict(bound),
        "mem_token_frequency": {
            f"{low}-{high - 1}" if high - low > 1 else str(low): int(n)
            for (low, high), n in zip(
                itertools.pairwise(edges.tolist()),
                np.histogram(use[use > 0], bins=edges)[0],
                strict=True,
            )
        },
        "mem_token_length": {
            str(length): int(n) for length, n in enumerate(np.bincount(lengths)) if n
        },
        "code_counts": [
            np.bincount(codes, minlength=artifact.num_codes).tolist() for codes in artifact.codes.T
        ],
    }
    if inputs.neighbours is not None:
        report["neighbour_recall"] = neighbour_recall(artifact.codes, inputs.neighbours)
        report["items_with_neighbours"] = int((inputs.neighbours >= 0).any(axis=1).sum())
    if inputs.titles is not None:
        report["examples"] = examples(artifact, inputs.titles, inputs.num_examples)
    return report


def write_report(artifact: TokenArtifact, inputs: ReportInputs, folder: Path) -> dict[str, Any]:
    """Write `quality.json`, `quality.png` and `quality.html`, and return the JSON values.

    Args:
        artifact: the tokens.
        inputs: what else the report says.
        folder: made if it is not there.
    """
    report = measure(artifact, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "quality.json", (json.dumps(report, indent=2) + "\n").encode())
    picture = draw_quality(report)
    _write(folder / "quality.png", picture)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        quality=report["quality"],
        picture=base64.b64encode(picture).decode(),
        findings=findings(report),
    )
    _write(folder / "quality.html", page.encode())
    return report


def findings(report: dict[str, Any]) -> list[str]:
    """What a reader should see first, in sentences written from the numbers."""
    quality = report["quality"]
    levels = quality["levels"]
    worst = min(levels, key=lambda level: level["utilization"])
    last = levels[-1]
    found = [
        f"{quality['num_items']:,} items have {quality['distinct_gen_tuples']:,} different code "
        f"tuples; {quality['collision_rate']:.1%} of the items share theirs with another.",
        f"The least used level is {worst['level'] + 1}: {worst['utilization']:.1%} of its codes "
        f"occur, {worst['dead_codes']:,} never.",
        f"All levels together leave {last['distortion_share']:.1%} of the embeddings' variance.",
        f"{quality['gen_rows']:,} gen rows and {quality['mem_rows']:,} mem rows stand for "
        f"{quality['num_items']:,} items: {quality['row_share']:.1%} as many.",
    ]
    if "neighbour_recall" in report:
        first = report["neighbour_recall"][0]
        times = first["recall"] / first["chance"] if first["chance"] else float("inf")
        found.append(
            f"{first['recall']:.1%} of co-click neighbours share the first code, "
            f"{times:.1f} times as many as of random pairs."
        )
    bound = report["floor_bound"]
    s, delta = bound["exponent"], bound["delta"]
    if bound["bound"] is not None:
        limit = f"at most {bound['bound']:.4g} (L_eta {bound['holder_constant']:g} x {delta:.4g})"
    else:
        limit = f"at most L_eta x {delta:.4g}, L_eta being the unknown smoothness of the logit"
    found.append(f"Quantization raises the floor of the log loss by {limit}; delta_s at s = {s:g}.")
    return found


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
