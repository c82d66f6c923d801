"""Machines, clusters, and machines from a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sharding.hardware import MACHINES, Cluster, h100, machine_from_json, machine_to_json


def test_topology_carries_every_figure_in_torchrecs_units():
    """Bytes stay bytes, bytes per second become bytes per millisecond."""
    machine = h100()
    topology = Cluster(machine=machine, nodes=3).topology(hbm_bytes=123)
    assert (topology.world_size, topology.local_world_size) == (24, 8)
    device = topology.devices[23].storage
    assert (device.hbm, device.ddr, device.ssd) == (123, machine.ddr_bytes, machine.ssd_bytes)
    assert topology.hbm_mem_bw * 1000 == machine.hbm_bandwidth
    assert topology.ddr_mem_bw * 1000 == pytest.approx(machine.ddr_bandwidth)
    assert topology.ssd_mem_bw * 1000 == machine.ssd_bandwidth
    assert topology.hbm_to_ddr_mem_bw * 1000 == machine.host_link_bandwidth
    assert topology.intra_host_bw * 1000 == machine.intra_node_bandwidth
    assert topology.inter_host_bw * 1000 == machine.inter_node_bandwidth


def test_cpu_ranks_have_no_device_memory():
    """TorchRec's default of 32 GB must not slip in."""
    topology = Cluster(machine=MACHINES["cpu"], nodes=1).topology()
    assert topology.compute_device == "cpu"
    assert {device.storage.hbm for device in topology.devices} == {0}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_machines_round_trip_through_json(name, tmp_path):
    """Every named machine can be written, edited and read."""
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine_to_json(MACHINES[name])))
    assert machine_from_json(path) == MACHINES[name]


def test_wrong_machines_are_refused_by_name(tmp_path):
    """Field, machine and file are in the message."""
    with pytest.raises(ValueError, match="'h100': inter_node_bandwidth is 0"):
        replace(h100(), inter_node_bandwidth=0)
    with pytest.raises(ValueError, match="nodes is 0"):
        Cluster(machine=h100(), nodes=0)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"name": "mine", "speed": 3}))
    with pytest.raises(ValueError, match=r"machine.json.*missing.*unknown: \['speed'\]"):
        machine_from_json(path)
    for text in ("", "{", "[" * 100_000, "9" * 5000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"machine\.json: not JSON"):
            machine_from_json(path)
