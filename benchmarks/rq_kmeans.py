"""RQ-KMeans against faiss: time at equal iterations, distortion, and memory from disk.

Run::

    python benchmarks/rq_kmeans.py --rounds 3 --json rq_kmeans.json
    python benchmarks/rq_kmeans.py --disk-items 20000000 --json rq_kmeans_disk.json

Embeddings are drawn around 20,000 centres whose spectrum decays, which leaves residuals that are
harder than the first level, as with real ones. All sides run in turn in one process with the same
number of threads. Distortion is that of the exact residual walk over each side's codebooks.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from record import Record, compare_in_turn, records_table, write_results

from tokenization import residual
from tokenization.assignment import best_way
from tokenization.base import Embeddings
from tokenization.points import NpyFile
from tokenization.rq_kmeans import RQKMeans
from trainer.run_folder import package_versions, write_json

MEMORY_TARGET = 3 * 2**30
DISTORTION_SAMPLE = 200_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time RQ-KMeans and faiss in turn.

    Args:
        num_items: embeddings in memory.
        dim: dimensions.
        num_levels: levels.
        num_codes: codes a level.
        num_iterations: Lloyd iterations a level, on all sides.
        rounds: pairs of runs.
        residual_quantizer: also time faiss.ResidualQuantizer, once.
        disk_items: measure the memory of a fit of so many embeddings on disk instead.
        disk_levels: levels of that fit.
        disk_iterations: iterations of that fit.
        folder: where the embeddings on disk go; by default a temporary folder.
        json: result file.
        write_note: leave a dated note under benchmarks/results.
    """

    num_items: int = 1_000_000
    dim: int = 128
    num_levels: int = 5
    num_codes: int = 1024
    num_iterations: int = 10
    rounds: int = 3
    residual_quantizer: bool = True
    disk_items: int | None = None
    disk_levels: int = 2
    disk_iterations: int = 2
    folder: Path | None = None
    json: Path | None = None
    write_note: bool = False


def draw(rng: np.random.Generator, centres: Embeddings, num_items: int) -> Embeddings:
    """Embeddings around random centres."""
    noise = rng.standard_normal((num_items, centres.shape[1]), dtype=np.float32)
    noise *= 0.3
    noise += centres[rng.integers(0, len(centres), num_items)]
    return noise


def draw_centres(rng: np.random.Generator, dim: int) -> Embeddings:
    """20,000 centres with a decaying spectrum."""
    spectrum = (1.0 + np.arange(dim, dtype=np.float32)) ** -0.5
    return rng.standard_normal((20_000, dim), dtype=np.float32) * spectrum


def chained_faiss(
    embeddings: Embeddings, settings: Settings, points_per_centroid: int
) -> NDArray[np.float32]:
    """faiss.Kmeans, level after level over what is left."""
    left_over = embeddings.copy()
    codebooks = []
    for level in range(settings.num_levels):
        kmeans = faiss.Kmeans(
            settings.dim,
            settings.num_codes,
            niter=settings.num_iterations,
            seed=level,
            max_points_per_centroid=points_per_centroid,
        )
        kmeans.train(left_over)
        codebooks.append(kmeans.centroids)
        if level + 1 < settings.num_levels:
            left_over -= kmeans.centroids[kmeans.index.search(left_over, 1)[1][:, 0]]
    return np.stack(codebooks)


def ours(
    embeddings: Embeddings, settings: Settings, points_per_code: int | None
) -> NDArray[np.float32]:
    """RQKMeans at the same settings, on all points or on a sample as large as faiss's."""
    config = RQKMeans(
        num_levels=settings.num_levels,
        num_codes=settings.num_codes,
        num_iterations=settings.num_iterations,
        points_per_code=points_per_code,
    )
    return config.fit(embeddings).codebooks


def residual_quantizer(embeddings: Embeddings, settings: Settings) -> NDArray[np.float32]:
    """faiss.ResidualQuantizer with greedy encoding; its own subsample of training points."""
    quantizer = faiss.ResidualQuantizer(
        settings.dim, settings.num_levels, int(np.log2(settings.num_codes))
    )
    quantizer.max_beam_size = 1
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.cp.niter = settings.num_iterations
    quantizer.train(embeddings)
    return faiss.vector_to_array(quantizer.codebooks).reshape(
        settings.num_levels, settings.num_codes, settings.dim
    )


def distortion(embeddings: Embeddings, codebooks: NDArray[np.float32]) -> float:
    """Mean squared error of the residual walk on a sample."""
    sample = embeddings[:DISTORTION_SAMPLE]
    left = sample - residual.decode(residual.encode(sample, codebooks), codebooks)
    return float(np.einsum("nd,nd->", left, left, dtype=np.float64) / len(sample))


def in_memory(settings: Settings) -> list[dict[str, Any]]:
    """All sides in turn."""
    rng = np.random.default_rng(0)
    embeddings = draw(rng, draw_centres(rng, settings.dim), settings.num_items)
    all_points = -(-settings.num_items // settings.num_codes)
    sides: dict[str, Callable[[], NDArray[np.float32]]] = {
        "ours, all points": lambda: ours(embeddings, settings, None),
        "ours, 256 points a code": lambda: ours(embeddings, settings, 256),
        "faiss, all points": lambda: chained_faiss(embeddings, settings, all_points),
        "faiss, default subsample": lambda: chained_faiss(embeddings, settings, 256),
    }
    RQKMeans(num_levels=1, num_codes=2, num_iterations=1).fit(embeddings[:1000])  # compile
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    errors: dict[str, float] = {}
    for _ in range(settings.rounds):
        for name, fit in sides.items():
            seconds[name].append(timed(name, fit, embeddings, errors))
    if settings.residual_quantizer:
        name = "faiss.ResidualQuantizer, greedy"
        seconds[name] = settings.rounds * [
            timed(name, lambda: residual_quantizer(embeddings, settings), embeddings, errors)
        ]
    what = (
        f"RQ-KMeans {settings.num_items:,} x {settings.dim}, {settings.num_levels} x "
        f"{settings.num_codes}, {settings.num_iterations} iterations, way {best_way()}"
    )
    targets = {"faiss, all points": 2.0, "faiss, default subsample": 1.5}
    # At each peer's distortion: our sample against theirs, all points against all points.
    own = dict.fromkeys(seconds, "ours, all points")
    own["faiss, default subsample"] = "ours, 256 points a code"
    peers = [name for name in seconds if not name.startswith("ours")]
    records = [
        compare_in_turn(
            f"{what}: fits/s, {own[name]}",
            ours=[1 / value for value in seconds[own[name]]],
            peer=[1 / value for value in seconds[name]],
            peer_name=f"{name} ({faiss.__version__})",
            at_least=targets.get(name),
        )
        for name in peers
    ]
    for name in peers:
        ratio = errors[own[name]] / errors[name]
        records.append(
            Record(
                benchmark=f"{what}: distortion, {own[name]}",
                ours=errors[own[name]],
                peer=errors[name],
                peer_name=name,
                ratio=ratio,
                spread=(ratio, ratio),
                runs={"ours": [errors[own[name]]], "peer": [errors[name]]},
                target="at most 1.01 x" if name in targets else "",
                holds=name not in targets or ratio <= 1.01,
                versions=package_versions(),
            )
        )
    return [record.to_dict() for record in records]


def timed(
    name: str,
    fit: Callable[[], NDArray[np.float32]],
    embeddings: Embeddings,
    errors: dict[str, float],
) -> float:
    """Seconds of a fit; its distortion goes into `errors` the first time."""
    start = time.perf_counter()
    codebooks = fit()
    elapsed = time.perf_counter() - start
    if name not in errors:
        errors[name] = distortion(embeddings, codebooks)
    print(f"{name}: {elapsed:.1f} s, distortion {errors[name]:.5f}", flush=True)
    return elapsed


def from_disk(settings: Settings, num_items: int) -> list[dict[str, Any]]:
    """Peak memory of a fit of embeddings on disk, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
        path = Path(scratch) / "embeddings.npy"
        write_embeddings(path, num_items, settings.dim)
        config = [settings.disk_levels, settings.num_codes, settings.disk_iterations]
        command = [sys.executable, __file__, "fit", str(path), *map(str, config)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
    record = Record(
        benchmark=(
            f"RQ-KMeans from disk, {num_items:,} x {settings.dim}, {settings.disk_levels} x "
            f"{settings.num_codes}, {settings.disk_iterations} iterations: peak resident bytes "
            f"({result['seconds']:.0f} s)"
        ),
        ours=result["peak"],
        peer=num_items * settings.dim * 4,
        peer_name="the embeddings' own bytes",
        ratio=result["peak"] / (num_items * settings.dim * 4),
        spread=(0.0, 0.0),
        runs={"ours": [result["peak"]], "peer": []},
        target="under 3 GiB",
        holds=result["peak"] < MEMORY_TARGET,
        versions=package_versions(),
    )
    return [record.to_dict()]


def write_embeddings(path: Path, num_items: int, dim: int) -> None:
    """Write a .npy file block by block."""
    rng = np.random.default_rng(0)
    centres = draw_centres(rng, dim)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_items, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, num_items, 250_000):
            draw(rng, centres, min(250_000, num_items - start)).tofile(file)


def fit_from_disk(path: Path, num_levels: int, num_codes: int, num_iterations: int) -> None:
    """Fit and print seconds and peak memory as JSON."""
    config = RQKMeans(num_levels=num_levels, num_codes=num_codes, num_iterations=num_iterations)
    start = time.perf_counter()
    config.fit_source(NpyFile(path))
    elapsed = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": elapsed, "peak": peak}))


def main(settings: Settings) -> None:
    """Measure, print and write."""
    print(f"{torch.get_num_threads()} threads")
    if settings.disk_items is not None:
        records = from_disk(settings, settings.disk_items)
    else:
        records = in_memory(settings)
    for record in records:
        holds = "holds" if record["holds"] else "MISSED"
        print(
            f"{record['benchmark']} | {record['peer_name']}: {record['ours']:.5g} against "
            f"{record['peer']:.5g}, ratio {record['ratio']:.3f} "
            f"{record['target'] and record['target'] + ': ' + holds}"
        )
    if settings.json is not None:
        write_json(settings.json, records)
    if settings.write_note:
        write_note(settings, records)


def write_note(settings: Settings, records: list[dict[str, Any]]) -> None:
    """Leave today's note; that of a fit from disk stands in a file of its own."""
    disk = settings.disk_items is not None
    options = (
        f"--disk-items {settings.disk_items}"
        if disk
        else f"--num-items {settings.num_items} --rounds {settings.rounds}"
    )
    in_memory_notes = (
        "All sides cluster the same embeddings level by level, in one process and in turn, with "
        f"{torch.get_num_threads()} threads and the same number of Lloyd iterations; starting "
        "centroids and the points of a sample are each side's own. Rows of fits/s compare medians "
        "of the rounds (more is better), rows of distortion the exact residual walk over each "
        f"side's codebooks on {DISTORTION_SAMPLE:,} items (less is better). "
        "faiss.ResidualQuantizer is timed once."
    )
    disk_notes = (
        "The fit runs in a process of its own; its peak is ru_maxrss, which holds the interpreter "
        "and all libraries too, but not the pages of the file that the kernel caches."
    )
    write_results(
        "rq_kmeans_disk" if disk else "rq_kmeans",
        title="RQ-KMeans from disk" if disk else "RQ-KMeans against faiss",
        command=f"python benchmarks/rq_kmeans.py {options} --write-note",
        notes=disk_notes if disk else in_memory_notes,
        body=records_table(records),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit"]:
        fit_from_disk(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        main(tyro.cli(Settings, description=__doc__))
