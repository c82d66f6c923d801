"""Before a job trains: does every rank answer every other?

A rank that never comes up, or a pair of hosts with a firewall between them, otherwise shows as a
job that does nothing until some time-out ends it without a name. Here each rank notes in the job's
key-value store what it enters and leaves; rank 0 reads the notes, and when time is up it says who
is missing. The exchanges are those that training uses: all-reduce and all-to-all.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.distributed import Ranks, start_ranks
from trainer.job_store import append_line, connect_store

PREFLIGHT_SECONDS = 180.0
NUM_VALUES = 1 << 20
"""fp32 values that each rank reduces, and exchanges (4 MiB)."""
_POLL_SECONDS = 0.1
_ARRIVED, _CONNECTED = "start", "connect to the others"

Probe = Callable[[Ranks, dist.ProcessGroup], None]


class PreflightError(RuntimeError):
    """Some rank does not answer; the message names it."""


@dataclass(frozen=True)
class Note:
    """What a rank writes into the store.

    Attributes:
        rank: of the job.
        local_rank: on its host.
        host: name of the machine.
        stage: that it has entered, or left.
        entered: False when it has left it.
        seconds: that the stage took; 0 on entry.
        error: what went wrong in it, else empty.
    """

    rank: int
    local_rank: int
    host: str
    stage: str
    entered: bool
    seconds: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        """Rank, host and local rank in words."""
        return f"rank {self.rank} (host {self.host}, local rank {self.local_rank})"


@dataclass(frozen=True)
class PreflightReport:
    """What a preflight found when all is well.

    Attributes:
        num_ranks: that answered.
        hosts: their machines.
        seconds: longest time over ranks, by stage.
    """

    num_ranks: int
    hosts: tuple[str, ...]
    seconds: dict[str, float]

    def __str__(self) -> str:
        """One line."""
        times = ", ".join(f"{stage} {1e3 * s:,.1f} ms" for stage, s in self.seconds.items())
        hosts = ", ".join(self.hosts[:4]) + (", ..." if len(self.hosts) > 4 else "")
        return f"preflight: {self.num_ranks} ranks on {len(self.hosts)} hosts ({hosts}): {times}"


def all_reduce(ranks: Ranks, group: dist.ProcessGroup) -> None:
    """Sum rank + 1 over ranks.

    Raises:
        RuntimeError: when the sum is wrong.
    """
    values = torch.full((NUM_VALUES,), float(ranks.rank + 1), device=ranks.device)
    dist.all_reduce(values, group=group)
    expected = ranks.world_size * (ranks.world_size + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"sum is {values[0]}, expected {expected}")


def all_to_all(ranks: Ranks, group: dist.ProcessGroup) -> None:
    """Send `rank x world size + peer` to each peer.

    Raises:
        RuntimeError: when something else came from a peer.
    """
    size = ranks.world_size
    width = max(1, NUM_VALUES // size)
    peers = torch.arange(size, dtype=torch.float32, device=ranks.device)
    sent = (ranks.rank * size + peers).repeat_interleave(width)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    expected = (peers * size + ranks.rank).repeat_interleave(width)
    if not torch.equal(received, expected):
        peer = int((received != expected).nonzero()[0]) // width
        raise RuntimeError(f"what came from rank {peer} is wrong")


PROBES: tuple[Probe, ...] = (all_reduce, all_to_all)


def print_preflight(
    seconds: float = PREFLIGHT_SECONDS, collective_timeout: timedelta = timedelta(minutes=10)
) -> None:
    """Run a preflight on this rank (see `preflight`); rank 0 prints what it found."""
    report = preflight(seconds=seconds, collective_timeout=collective_timeout)
    if os.environ["RANK"] == "0":
        print(report)


def preflight(
    *,
    seconds: float = PREFLIGHT_SECONDS,
    collective_timeout: timedelta = timedelta(minutes=10),
    probes: Sequence[Probe] = PROBES,
) -> PreflightReport:
    """Exchange with every rank; every rank calls this, before anything else of the job.

    Leaves the process group started.

    Args:
        seconds: until every rank must have answered.
        collective_timeout: of the process group that is left.
        probes: what is exchanged.

    Raises:
        PreflightError: on every rank that still runs, naming those that do not answer.
    """
    if seconds <= 0:
        raise ValueError(f"preflight seconds is {seconds}, expected more than 0")
    deadline = time.monotonic() + seconds
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        board = _Board(timedelta(seconds=seconds))
        board.write(_ARRIVED, entered=True)
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PreflightError(f"the job's store at {where} (node of rank 0): {error}") from error
    # The exchanges run beside, since a collective that hangs would never come back here.
    threading.Thread(
        target=_exchange,
        args=(timedelta(seconds=seconds), collective_timeout, probes),
        daemon=True,
        name="preflight",
    ).start()
    stages = [_ARRIVED, _CONNECTED, *(probe.__name__ for probe in probes)]
    if rank == 0:
        notes, problem = _collect(board, num_ranks, stages, deadline)
        board.publish(problem or "", notes)
    problem, notes = board.verdict(deadline - time.monotonic() + 10)
    if problem:
        raise PreflightError(problem)
    start_ranks(collective_timeout)  # it is there already; this thread gets its device
    seconds_by_stage = {
        stage: max(note.seconds for note in notes if note.stage == stage and not note.entered)
        for stage in stages[1:]
    }
    return PreflightReport(
        num_ranks=num_ranks,
        hosts=tuple(sorted({note.host for note in notes})),
        seconds=seconds_by_stage,
    )


def _exchange(timeout: timedelta, collective_timeout: timedelta, probes: Sequence[Probe]) -> None:
    """Connect and run the probes, with a note before and after each."""
    board = _Board(timeout)
    stage, start = _CONNECTED, time.monotonic()
    try:
        board.write(stage, entered=True)
        ranks = start_ranks(collective_timeout)
        group = dist.new_group(timeout=timeout)
        assert group is not None
        board.write(stage, entered=False, seconds=time.monotonic() - start)
        for probe in probes:
            stage = probe.__name__
            board.write(stage, entered=True)
            start = time.monotonic()
            probe(ranks, group)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize(ranks.device)
            board.write(stage, entered=False, seconds=time.monotonic() - start)
    except Exception as error:  # whatever it is, rank 0 says it for all
        board.write(stage, entered=True, error=f"{type(error).__name__}: {error}")


def _collect(
    board: _Board, num_ranks: int, stages: Sequence[str], deadline: float
) -> tuple[list[Note], str | None]:
    """Read notes until all ranks have left the last stage, one failed, or time is up."""
    while True:
        notes = board.read()
        failed = [note for note in notes if note.error]
        if failed and time.monotonic() < deadline:
            time.sleep(10 * _POLL_SECONDS)  # others may say what really happened
            notes = board.read()
        left = {note.rank for note in notes if note.stage == stages[-1] and not note.entered}
        if len(left) == num_ranks:
            return notes, None
        if failed or time.monotonic() >= deadline:
            return notes, diagnose(notes, num_ranks, stages)
        time.sleep(_POLL_SECONDS)


def diagnose(notes: Sequence[Note], num_ranks: int, stages: Sequence[str]) -> str:
    """Name the ranks that hold the others up.

    Args:
        notes: of all ranks.
        num_ranks: of the job.
        stages: in their order; the first is only entered.
    """
    by_rank = {note.rank: note for note in notes}
    entered = {stage: {n.rank for n in notes if n.stage == stage and n.entered} for stage in stages}
    left = {
        stage: {n.rank for n in notes if n.stage == stage and not n.entered} for stage in stages
    }
    absent = sorted(set(range(num_ranks)) - entered[stages[0]])
    if absent:
        names = ", ".join(_absent_name(rank, by_rank) for rank in absent)
        return (
            f"preflight: {names} did not start; {num_ranks - len(absent)} of {num_ranks} ranks "
            "did. Look at its log, its device, its file systems"
        )
    for stage in stages[1:]:
        late = sorted(set(range(num_ranks)) - entered[stage])
        if late:
            names = ", ".join(by_rank[rank].name for rank in late)
            return (
                f"preflight: {names} hangs before {stage}, which the other ranks wait in. Look at "
                "its log, its device, its host"
            )
        failed = {note.rank: note for note in notes if note.error and note.stage == stage}
        inside = sorted(set(range(num_ranks)) - left[stage])
        if inside:
            errors = "; ".join(f"{note.name}: {note.error}" for note in failed.values())
            names = ", ".join(by_rank[rank].name for rank in inside[:8])
            return (
                f"preflight: {len(inside)} of {num_ranks} ranks do not finish {stage}: {names}"
                f"{'; ' + errors if errors else ''}. Hosts reach the store but not each other: "
                "look at firewalls, and name the network interface (GLOO_SOCKET_IFNAME, "
                "NCCL_SOCKET_IFNAME; --network of the torchx components)"
            )
    return "preflight: all ranks answered, but too late; give it more time"


def _absent_name(rank: int, by_rank: dict[int, Note]) -> str:
    """A rank that left no note, with its host where another rank of that node left one."""
    size = int(os.environ["LOCAL_WORLD_SIZE"])
    node = rank // size
    host = next((note.host for note in by_rank.values() if note.rank // size == node), None)
    where = f"host {host}" if host else f"node {node}, of which no rank answers"
    return f"rank {rank} ({where}, local rank {rank % size})"


class _Board:
    """The notes of all ranks in the job's key-value store, through a connection of its own."""

    def __init__(self, timeout: timedelta) -> None:
        self._store = connect_store("preflight", timeout)

    def write(self, stage: str, *, entered: bool, seconds: float = 0.0, error: str = "") -> None:
        note = Note(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            host=socket.gethostname(),
            stage=stage,
            entered=entered,
            seconds=seconds,
            error=error,
        )
        append_line(self._store, "notes", json.dumps(asdict(note)))

    def read(self) -> list[Note]:
        return _parse(self._store.get("notes").decode())

    def publish(self, problem: str, notes: Sequence[Note]) -> None:
        lines = "".join(json.dumps(asdict(note)) + "\n" for note in notes)
        self._store.set("verdict", json.dumps({"problem": problem, "notes": lines}))

    def verdict(self, seconds: float) -> tuple[str, list[Note]]:
        try:
            self._store.wait(["verdict"], timedelta(seconds=max(1.0, seconds)))
        except RuntimeError as error:
            address = os.environ["MASTER_ADDR"]
            raise PreflightError(
                f"preflight: rank 0 (host {address}, local rank 0) gives no verdict: {error}"
            ) from error
        found = json.loads(self._store.get("verdict"))
        return found["problem"], _parse(found["notes"])


def _parse(lines: str) -> list[Note]:
    return [Note(**json.loads(line)) for line in lines.splitlines()]
