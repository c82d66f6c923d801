"""Named machines: how much memory a rank has, and how fast it reads and sends.

Memory is in bytes and bandwidth in bytes per second, both of ONE RANK and in one direction; a
node's figure is divided by its ranks. NVIDIA's NVLink figures add both directions and are halved
here. Numbers are the vendors' peaks, which no program reaches: predicted steps are lower bounds
that rank plans, and `farewell plan --calibrate` measures the machine at hand instead.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torchrec.distributed.planner.types import Topology

from sharding.folder_names import check_folder_name

GB = 10**9
TB = 10**12
SSD_ROWS_PER_SECOND = 1_500_000
"""Random 4 KiB reads a second of one enterprise NVMe drive (PCIe 4.0, vendors' data sheets)."""
SSD_BANDWIDTH = SSD_ROWS_PER_SECOND * 512
"""Bytes of 128-float rows a second, one drive a rank: rows are read one by one, not in a stream."""

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of node; all figures are of one rank.

    Args:
        name: on the command line.
        device: `cuda` or `cpu`.
        ranks_per_node: accelerators of a node, or processes of a CPU host.
        hbm_bytes: device memory; 0 on the CPU.
        ddr_bytes: host memory.
        ssd_bytes: local NVMe.
        hbm_bandwidth: bytes/s.
        ddr_bandwidth: bytes/s.
        ssd_bandwidth: bytes/s of random row reads.
        host_link_bandwidth: bytes/s between device and host memory.
        intra_node_bandwidth: bytes/s to the other ranks of the node.
        inter_node_bandwidth: bytes/s to other nodes.
        source: where the figures come from.
    """

    name: str
    device: Device
    ranks_per_node: int
    hbm_bytes: int
    ddr_bytes: int
    ssd_bytes: int
    hbm_bandwidth: float
    ddr_bandwidth: float
    ssd_bandwidth: float
    host_link_bandwidth: float
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    source: str

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming machine and field.
        """
        check_folder_name(self.name, of="machine")
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"machine {self.name!r}: device is {self.device!r}, not cuda or cpu")
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("ssd_bytes", "ssd_bandwidth") or (
                field.name.startswith("hbm") and self.device == "cpu"
            )
            if isinstance(value, int | float) and (value < 0 or (value == 0 and not may_be_zero)):
                raise ValueError(
                    f"machine {self.name!r}: {field.name} is {value}, expected more than 0"
                )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """So many nodes of one kind.

    Args:
        machine: kind of node.
        nodes: number of them.
    """

    machine: Machine
    nodes: int

    def __post_init__(self) -> None:
        """Check the number of nodes.

        Raises:
            ValueError: when there is none.
        """
        if self.nodes < 1:
            raise ValueError(f"cluster of {self.machine.name}: nodes is {self.nodes}, at least 1")

    @property
    def num_ranks(self) -> int:
        """Ranks of all nodes."""
        return self.nodes * self.machine.ranks_per_node

    @property
    def title(self) -> str:
        """Readable size, such as `16 x h100 (128 GPUs)`."""
        unit = "GPUs" if self.machine.device == "cuda" else "ranks"
        return f"{self.nodes} x {self.machine.name} ({self.num_ranks:,} {unit})"

    def topology(self, *, hbm_bytes: int | None = None, ddr_bytes: int | None = None) -> Topology:
        """TorchRec's record of this cluster.

        Args:
            hbm_bytes: device memory left for tables on a rank; all of it by default.
            ddr_bytes: host memory left for tables on a rank; all of it by default.
        """
        machine = self.machine
        # TorchRec says in a warning that its factory is preferred; that one takes a detected host.
        planner_log = logging.getLogger("torchrec.distributed.planner.types")
        level = planner_log.level
        planner_log.setLevel(logging.ERROR)
        try:
            return Topology(
                world_size=self.num_ranks,
                local_world_size=machine.ranks_per_node,
                compute_device=machine.device,
                hbm_cap=machine.hbm_bytes if hbm_bytes is None else hbm_bytes,
                ddr_cap=machine.ddr_bytes if ddr_bytes is None else ddr_bytes,
                ssd_cap=machine.ssd_bytes,
                hbm_mem_bw=machine.hbm_bandwidth / 1000,
                ddr_mem_bw=machine.ddr_bandwidth / 1000,
                ssd_mem_bw=machine.ssd_bandwidth / 1000,
                hbm_to_ddr_mem_bw=machine.host_link_bandwidth / 1000,
                intra_host_bw=machine.intra_node_bandwidth / 1000,
                inter_host_bw=machine.inter_node_bandwidth / 1000,
            )
        finally:
            planner_log.setLevel(level)


def a100() -> Machine:
    """DGX A100 80 GB: eight A100-SXM4-80GB.

    HBM 80 GB at 2,039 GB/s and NVLink 600 GB/s (A100 80GB data sheet); 2 TB DDR4, two EPYC 7742
    with 8 channels DDR4-3200 each (409.6 GB/s), 8 x 3.84 TB NVMe, eight 200 Gb/s adapters, PCIe 4
    x16 (DGX A100 data sheet and user guide).
    """
    return Machine(
        name="a100",
        device="cuda",
        ranks_per_node=8,
        hbm_bytes=80 * GB,
        ddr_bytes=2 * TB // 8,
        ssd_bytes=3_840 * GB,
        hbm_bandwidth=2_039 * GB,
        ddr_bandwidth=409.6 * GB / 8,
        ssd_bandwidth=SSD_BANDWIDTH,
        host_link_bandwidth=32 * GB,
        intra_node_bandwidth=300 * GB,
        inter_node_bandwidth=25 * GB,
        source="NVIDIA A100 80GB and DGX A100 data sheets",
    )


def h100() -> Machine:
    """DGX H100: eight H100-SXM5-80GB.

    HBM 80 GB at 3.35 TB/s, NVLink 900 GB/s, PCIe 5 x16 (H100 data sheet); 2 TB DDR5, two Xeon
    8480C with 8 channels DDR5-4800 each (614.4 GB/s), 8 x 3.84 TB NVMe, eight 400 Gb/s adapters
    (DGX H100 data sheet and user guide).
    """
    return Machine(
        name="h100",
        device="cuda",
        ranks_per_node=8,
        hbm_bytes=80 * GB,
        ddr_bytes=2 * TB // 8,
        ssd_bytes=3_840 * GB,
        hbm_bandwidth=3_350 * GB,
        ddr_bandwidth=614.4 * GB / 8,
        ssd_bandwidth=SSD_BANDWIDTH,
        host_link_bandwidth=64 * GB,
        intra_node_bandwidth=450 * GB,
        inter_node_bandwidth=50 * GB,
        source="NVIDIA H100 and DGX H100 data sheets",
    )


def h200() -> Machine:
    """DGX H200: eight H200-SXM-141GB.

    HBM 141 GB at 4.8 TB/s, NVLink 900 GB/s, PCIe 5 x16 (H200 data sheet); the host is that of DGX
    H100: 2 TB DDR5 at 614.4 GB/s, 8 x 3.84 TB NVMe, eight 400 Gb/s adapters (DGX H200 data sheet).
    """
    return Machine(
        name="h200",
        device="cuda",
        ranks_per_node=8,
        hbm_bytes=141 * GB,
        ddr_bytes=2 * TB // 8,
        ssd_bytes=3_840 * GB,
        hbm_bandwidth=4_800 * GB,
        ddr_bandwidth=614.4 * GB / 8,
        ssd_bandwidth=SSD_BANDWIDTH,
        host_link_bandwidth=64 * GB,
        intra_node_bandwidth=450 * GB,
        inter_node_bandwidth=50 * GB,
        source="NVIDIA H200 and DGX H200 data sheets",
    )


def b200() -> Machine:
    """DGX B200: eight B200.

    1,440 GB of HBM at 64 TB/s and NVLink 14.4 TB/s over the node, 2 TB DDR5, two Xeon 8570 with 8
    channels DDR5-5600 each (716.8 GB/s), 8 x 3.84 TB NVMe, eight 400 Gb/s adapters (DGX B200 data
    sheet); PCIe 5 x16 to the host.
    """
    return Machine(
        name="b200",
        device="cuda",
        ranks_per_node=8,
        hbm_bytes=180 * GB,
        ddr_bytes=2 * TB // 8,
        ssd_bytes=3_840 * GB,
        hbm_bandwidth=8_000 * GB,
        ddr_bandwidth=716.8 * GB / 8,
        ssd_bandwidth=SSD_BANDWIDTH,
        host_link_bandwidth=64 * GB,
        intra_node_bandwidth=900 * GB,
        inter_node_bandwidth=50 * GB,
        source="NVIDIA DGX B200 data sheet",
    )


def cpu() -> Machine:
    """CPU host: two EPYC 9654, one rank for each of its eight NUMA quarters (NPS4).

    24 channels DDR5-4800 (921.6 GB/s, EPYC 9004 data sheet) with 64 GB each (1.536 TB); ranks of a
    host exchange through memory, which a copy reads and writes (half the bandwidth); one 200 Gb/s
    adapter; four 3.84 TB drives. Memory size, adapter and drives are an assumption: a common order.
    """
    return Machine(
        name="cpu",
        device="cpu",
        ranks_per_node=8,
        hbm_bytes=0,
        ddr_bytes=1_536 * GB // 8,
        ssd_bytes=4 * 3_840 * GB // 8,
        hbm_bandwidth=0,
        ddr_bandwidth=921.6 * GB / 8,
        ssd_bandwidth=SSD_BANDWIDTH / 2,
        host_link_bandwidth=921.6 * GB / 16,
        intra_node_bandwidth=921.6 * GB / 16,
        inter_node_bandwidth=25 * GB / 8,
        source="AMD EPYC 9004 data sheet; memory, network and drives assumed",
    )


MACHINES = {machine.name: machine for machine in (a100(), h100(), h200(), b200(), cpu())}


def machine_from_json(path: Path) -> Machine:
    """Read a machine from a file of :class:`Machine`'s fields.

    Raises:
        ValueError: naming the file and the fields that are missing, unknown or out of range.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise ValueError(f"{path}: not JSON ({error})") from error
    names = {field.name for field in fields(Machine)}
    if not isinstance(values, dict) or set(values) != names:
        found = set(values) if isinstance(values, dict) else set()
        raise ValueError(
            f"{path}: expected an object with {', '.join(sorted(names))}; missing: "
            f"{sorted(names - found) or 'none'}, unknown: {sorted(found - names) or 'none'}"
        )
    return Machine(**values)


def machine_to_json(machine: Machine) -> dict[str, Any]:
    """All figures of a machine, as `machine_from_json` reads them."""
    return asdict(machine)
