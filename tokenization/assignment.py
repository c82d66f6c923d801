"""Nearest centroids of many points: the inner loop of k-means, by the fastest way at hand.

| way | where |
|---|---|
| `fused` | processors with bf16 dot products (AVX512-BF16) and a C++ compiler; `assign.cpp` |
| `faiss-gpu` | where a GPU build of faiss sees a GPU |
| `plain` | everywhere: matrix products in blocks, by torch |

`fused` rounds points and centroids to bf16 to compare them (distortion of a fit within 0.1 %) and
never for the means. The codes that items get in the end are exact (`residual.nearest`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from tokenization.base import Embeddings

logger = logging.getLogger(__name__)

Way = Literal["fused", "faiss-gpu", "plain"]

_SOURCE = Path(__file__).with_name("assign.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
_BLOCK_VALUES = 1 << 24  # scores held at a time by `plain`

_Assign = Callable[
    [Embeddings, NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]], NDArray[np.int32]
]


def assign(
    points: Embeddings,
    centroids: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    way: Way,
) -> NDArray[np.int32]:
    """Return each point's nearest centroid and add the points to their centroids' sums.

    Args:
        points: float32 `(N, D)`.
        centroids: float32 `(K, D)`.
        sums: float64 `(K, D)`, added to in place.
        counts: int64 `(K,)`, added to in place.
        way: see the module.

    Returns:
        int32 `(N,)`.
    """
    return _WAYS[way](points, centroids, sums, counts)


@functools.cache
def best_way() -> Way:
    """The fastest way that runs here; says in the log why it is not `fused`."""
    if hasattr(faiss, "GpuIndexFlatL2") and faiss.get_num_gpus():
        return "faiss-gpu"
    missing = why_not_fused()
    if missing is None:
        return "fused"
    logger.info("k-means takes the plain way, about half as fast: %s", missing)
    return "plain"


def why_not_fused() -> str | None:
    """What `fused` lacks here; None where it runs."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "this processor has no bf16 dot products (AVX512-BF16)"
    if compiler() is None:
        return "no C++ compiler found; install g++, or set CXX to one"
    return None


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, g++ or c++."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    """Compile `assign.cpp` for this processor once, and load it.

    Raises:
        RuntimeError: the compiler fails.
    """
    name = compiler()
    assert name is not None  # best_way asks first
    version = subprocess.run([name, "--version"], capture_output=True, check=True).stdout
    processor = subprocess.run(
        [name, "-march=native", "-Q", "--help=target"], capture_output=True, check=False
    ).stdout
    digest = hashlib.sha256(_SOURCE.read_bytes() + version + processor + repr(_FLAGS).encode())
    cache = os.environ.get("FAREWELL_CACHE")
    folder = (Path(cache) if cache else Path.home() / ".cache" / "farewell") / "native"
    library = folder / f"assign-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("compiling %s to %s", _SOURCE.name, library)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / library.name
            built = subprocess.run(
                [name, *_FLAGS, str(_SOURCE), "-o", str(fresh)], capture_output=True, text=True
            )
            if built.returncode:
                raise RuntimeError(f"{name} cannot compile {_SOURCE}:\n{built.stderr}")
            fresh.replace(library)
    loaded = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.assign.argtypes = [pointer, size, size, pointer, size, *[pointer] * 4, ctypes.c_int]
    loaded.assign.restype = None
    return loaded


def _fused(
    points: Embeddings,
    centroids: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    points = np.ascontiguousarray(points, dtype=np.float32)
    centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    assert sums.flags.c_contiguous and sums.dtype == np.float64
    assert counts.flags.c_contiguous and counts.dtype == np.int64
    shift = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
    codes = np.empty(len(points), dtype=np.int32)
    _library().assign(
        points.ctypes.data,
        len(points),
        points.shape[1],
        centroids.ctypes.data,
        len(centroids),
        shift.ctypes.data,
        codes.ctypes.data,
        sums.ctypes.data,
        counts.ctypes.data,
        torch.get_num_threads(),
    )
    return codes


def _plain(
    points: Embeddings,
    centroids: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    c_KD = torch.from_numpy(centroids)
    half_squares_K = 0.5 * c_KD.square().sum(dim=1)
    codes_N = torch.empty(len(points), dtype=torch.int64)
    block = max(1, _BLOCK_VALUES // len(centroids))
    for start in range(0, len(points), block):
        x_BD = torch.from_numpy(points[start : start + block])
        scores_BK = torch.addmm(half_squares_K, x_BD, c_KD.T, beta=-1)
        codes_N[start : start + block] = scores_BK.argmax(dim=1)
    _add(points, codes_N, sums, counts)
    return codes_N.int().numpy()


def _faiss_gpu(
    points: Embeddings,
    centroids: NDArray[np.float32],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(points.shape[1]))
    index.add(centroids)
    codes_N = torch.from_numpy(index.search(points, 1)[1][:, 0])
    _add(points, codes_N, sums, counts)
    return codes_N.int().numpy()


def _add(
    points: Embeddings,
    codes_N: torch.Tensor,
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    sums_KD = torch.from_numpy(sums)
    block = max(1, _BLOCK_VALUES // points.shape[1])
    for start in range(0, len(points), block):
        x_BD = torch.from_numpy(points[start : start + block])
        sums_KD.index_add_(0, codes_N[start : start + block], x_BD.double())
    counts += torch.bincount(codes_N, minlength=len(counts)).numpy()


_WAYS: dict[Way, _Assign] = {"fused": _fused, "faiss-gpu": _faiss_gpu, "plain": _plain}
