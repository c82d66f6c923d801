"""Calibration: bandwidths that make the planner's formulas true on this machine."""

from __future__ import annotations

import pytest
import torch

from launch import calibrate
from sharding.estimates import Estimator
from sharding.hardware import Cluster, Machine
from sharding.tables import TableSpec


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Milliseconds instead of seconds."""
    monkeypatch.setattr(calibrate, "ROWS", 10_000)
    monkeypatch.setattr(calibrate, "EXCHANGED_FLOATS", 1 << 14)


def test_the_estimate_of_a_lookup_is_the_time_measured(monkeypatch):
    """With half a second for a step, TorchRec's forward and backward estimate is half a second."""
    monkeypatch.setattr(calibrate, "_fastest_seconds", lambda run: 0.5)
    bandwidth = calibrate.row_bandwidth()
    machine = Machine(
        name="one",
        device="cpu",
        ranks_per_node=1,
        hbm_bytes=0,
        ddr_bytes=10**12,
        ssd_bytes=0,
        hbm_bandwidth=0,
        ddr_bandwidth=bandwidth,
        ssd_bandwidth=0,
        host_link_bandwidth=1e9,
        intra_node_bandwidth=1e9,
        inter_node_bandwidth=1e9,
        source="test",
    )
    table = TableSpec(
        name="t",
        rows=calibrate.ROWS,
        dim=calibrate.DIM,
        features=("f",),
        role="side",
        pooling_factors=(float(calibrate.IDS),),
        sharding_types=("table_wise",),
    )
    topology = Cluster(machine=machine, nodes=1).topology()
    estimator = Estimator([table], topology=topology, batch_size=calibrate.BATCH, min_partition=32)
    (way,) = estimator.candidates(table)
    forward, _, backward, *_ = way.parts_K6[0]
    assert forward + backward == pytest.approx(500.0)


def test_bandwidths_are_measured():
    """Positive, and an exchange with oneself is a copy."""
    torch.set_num_threads(1)
    assert calibrate.row_bandwidth() > 1e6
    assert calibrate.exchange_bandwidth(1) > 1e6
