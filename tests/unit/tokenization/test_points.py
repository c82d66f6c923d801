"""k-means over embeddings on disk and over the shares of several ranks."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization import points as points_module
from tokenization.kmeans import sample_points
from tokenization.points import NpyFile, ParquetFile, PointsInMemory, PointsOnDisk
from tokenization.rq_kmeans import RQKMeans
from tokenization.shares import Share

CONFIG = RQKMeans(num_levels=3, num_codes=16, num_iterations=6)


def embeddings(num_items=700, dim=8):
    return np.random.default_rng(0).normal(size=(num_items, dim)).astype(np.float32)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "embeddings.npy", embeddings())
    return tmp_path / "embeddings.npy"


@pytest.fixture
def parquet(tmp_path):
    table = pa.table({"item_id": range(700), "embedding": embeddings().tolist()})
    table = table.set_column(1, "embedding", table["embedding"].cast(pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "embeddings.parquet", row_group_size=130)
    return tmp_path / "embeddings.parquet"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(points_module, "_BLOCK_BYTES", 100 * 8 * 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_files_are_read_in_blocks_and_fit_as_memory_does(kind, npy, parquet):
    source = NpyFile(npy) if kind == "npy" else ParquetFile(parquet)
    assert source.shape == (700, 8)
    blocks = list(source.blocks())
    assert len(blocks) > 5
    np.testing.assert_array_equal(np.concatenate(blocks), embeddings())
    on_disk, in_memory = CONFIG.fit_source(source), CONFIG.fit(embeddings())
    np.testing.assert_allclose(on_disk.codebooks, in_memory.codebooks, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_residuals_on_disk_and_in_memory_are_the_same(npy):
    rng = np.random.default_rng(1)
    disk, memory = PointsOnDisk(NpyFile(npy)), PointsInMemory(embeddings())
    for _ in range(2):
        codewords = rng.normal(size=(4, 8)).astype(np.float32)
        codes = rng.integers(0, 4, 700).astype(np.int32)
        disk.descend(codewords, codes)
        memory.descend(codewords, codes)
    read = np.concatenate([block for _, block in disk.blocks()])
    np.testing.assert_array_equal(read, next(iter(memory.blocks()))[1])
    assert [start for start, _ in disk.blocks()] == list(range(0, 700, 100))


@pytest.mark.usefixtures("small_blocks")
def test_a_sample_of_shares_is_the_sample_of_the_whole():
    whole, share = sample_points(PointsInMemory(embeddings()), Share(0, 700, 700), 90, seed=3)
    assert (whole.num_points, share) == (90, Share(0, 90, 90))
    drawn = next(iter(whole.blocks()))[1]
    assert len(np.unique(drawn, axis=0)) == 90
    parts, start = [], 0
    for first, stop in ((0, 250), (250, 700)):
        points = PointsInMemory(embeddings()[first:stop])
        part, own = sample_points(points, Share(first, stop - first, 700), 90, seed=3)
        assert own == Share(start, part.num_points, 90)
        start += part.num_points
        parts.append(next(iter(part.blocks()))[1])
    np.testing.assert_array_equal(np.concatenate(parts), drawn)
    everything, all_rows = sample_points(points, Share(250, 450, 700), 700, seed=3)
    assert everything is points
    assert all_rows == Share(250, 450, 700)


def test_a_sample_costs_little_distortion():
    points = np.random.default_rng(5).normal(size=(4000, 8)).astype(np.float32)

    def error(config):
        tokenizer = config.fit(points)
        decoded = tokenizer.decode(tokenizer.encode(points))
        return ((points - decoded) ** 2).sum(axis=1).mean()

    sampled = dataclasses.replace(CONFIG, points_per_code=180)
    assert 1.0 < error(sampled) / error(CONFIG) < 1.05


def test_files_of_something_else(tmp_path, parquet):
    np.save(tmp_path / "integers.npy", np.ones((3, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="expected a floating matrix in C order, found int64"):
        _ = NpyFile(tmp_path / "integers.npy").shape
    with pytest.raises(ValueError, match=r"expected a matrix written by numpy\.save"):
        _ = NpyFile(parquet).shape
    table = pa.table({"embedding": [[1.0, 2.0], [3.0]]})
    pq.write_table(table, tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match="from row 0: expected lists of 2 floats"):
        list(ParquetFile(tmp_path / "ragged.parquet").blocks())


WORKER = """
import sys
import numpy as np
import torch.distributed as dist
from pathlib import Path
from tokenization.points import NpyFile
from tokenization.rq_kmeans import RQKMeans

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
cuts = np.linspace(0, 700, size + 1).astype(int) + np.array([0] + [3] * (size - 1) + [0])
source = NpyFile(Path(sys.argv[1]), int(cuts[rank]), int(cuts[rank + 1]))
config = RQKMeans(num_levels=3, num_codes=16, num_iterations=6)
np.save(f"{sys.argv[2]}/rank{rank}.npy", config.fit_source(source).codebooks)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_another_and_with_one_process(npy, tmp_path, world_size):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(npy), str(tmp_path)],
            env={
                **os.environ,
                **shared,
                "PYTHONPATH": os.getcwd(),
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    codebooks = [np.load(tmp_path / f"rank{rank}.npy") for rank in range(world_size)]
    for other in codebooks[1:]:
        np.testing.assert_array_equal(other, codebooks[0])
    alone = CONFIG.fit(embeddings())
    np.testing.assert_allclose(codebooks[0], alone.codebooks, rtol=1e-4, atol=1e-6)
    ranks = type(alone)(config=CONFIG, tensors={"codebooks": codebooks[0]})
    same = (ranks.encode(embeddings()) == alone.encode(embeddings())).all(axis=1)
    assert same.mean() >= 0.999
