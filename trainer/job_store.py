"""The job's key-value store, in which ranks find each other before they can exchange tensors.

Under torchrun its agent holds the store, and keeps it when it starts ranks again. torch puts the
addresses of ranks there under names that do not change, so that a rank of a new start may find what
a rank of the last one left, and try to connect to a process that is dead. Ranks therefore first
agree on a name for their start, which then stands before every key.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

_POLL_SECONDS = 0.01
_SOME_SECONDS = timedelta(minutes=1)
_agreed: list[str] = []
"""Names of the starts of this process that its ranks agreed on; the last one is in force."""


def connect_store(name: str, timeout: timedelta = _SOME_SECONDS) -> Store:
    """The job's key-value store, under a name of its own; works before the process group is there.

    Under torchrun its agent holds the store; otherwise rank 0 does, on the announced port.

    Args:
        name: that keeps keys apart from others'.
        timeout: for the store to answer.

    Raises:
        RuntimeError: when it does not answer.
    """
    start = "0"
    if _held_by_agent():  # it outlives its ranks; what earlier ones left must not be found
        start = _agreed[-1] if _agreed else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"farewell/{name}/{start}", _connect(timeout))


def append_line(store: Store, key: str, line: str) -> None:
    """Add a line to what a key of the store holds; lines of several ranks do not mix."""
    store.append(key, line + "\n")  # type: ignore[attr-defined]  # missing in torch's stub


def store_of_this_start(timeout: timedelta) -> Store | None:
    """Where the process group of this start finds its ranks; None where the store is new anyway.

    Args:
        timeout: for all ranks to come.

    Raises:
        RuntimeError: when the store does not answer, or ranks do not come, which it names.
    """
    if not _held_by_agent():
        return None
    store = _connect(timeout)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = PrefixStore("farewell/starts", store)
    _agreed.append(agree_on_start(meeting, rank, world_size, timeout))
    return PrefixStore(f"farewell/ranks/{_agreed[-1]}", store)


def agree_on_start(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that the ranks of this start share, and none of an earlier one had.

    How often torchrun has started ranks would not do: agents of several nodes count apart. Each
    rank announces itself by a name that it has just drawn. Rank 0 draws the name of the start, and
    answers each name that it finds, until all ranks have taken the answer to their own; what is
    left of earlier starts gets answers that nobody reads.

    Args:
        store: that outlives ranks.
        rank: of this process.
        world_size: number of ranks.
        timeout: for all ranks to come.

    Raises:
        RuntimeError: on rank 0, naming ranks that did not come; elsewhere, when rank 0 did not.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"announced/{rank}", own)
        try:
            store.wait([f"answer/{own}"], timeout)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank 0 did not answer rank {rank} within "
                f"{timeout.total_seconds():g} s: see its log"
            ) from error
        start = store.get(f"answer/{own}").decode()
        store.set(f"{start}/{rank}", "has come")
        return start
    answered: dict[int, bytes] = {}
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"announced/{other}"]):
                name = store.get(f"announced/{other}")
                if answered.get(other) != name:
                    store.set(f"answer/{name.decode()}", own)
                    answered[other] = name
        if missing and time.monotonic() > deadline:
            raise RuntimeError(
                f"ranks {sorted(missing)} of {world_size} did not come within "
                f"{timeout.total_seconds():g} s: see their logs, and whether their nodes reach "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            )
        time.sleep(_POLL_SECONDS)
    return own


def _held_by_agent() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connect(timeout: timedelta) -> TCPStore:
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=os.environ["RANK"] == "0" and not _held_by_agent(),
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )
