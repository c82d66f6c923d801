"""A run that no longer moves ends, with every rank's stack in its log and the culprit's name.

When one rank hangs, the others wait for it in a collective, so all stand still and none knows why.
Each rank's watchdog is a thread that sees its own main thread standing still, writes all stacks to
the rank's log, and tells the others through the job's store whether it waits for others or hangs
itself, and where. Ranks that do not even tell are stopped processes or lost hosts.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from trainer.distributed import Ranks
from trainer.job_store import append_line, connect_store

logger = logging.getLogger(__name__)

EXIT_HUNG = os.EX_SOFTWARE
"""Exit code (70) of a rank whose run stood still."""
HANG_SECONDS = 600.0
"""Time without a step, an evaluated batch or a checkpoint after which a run counts as hung."""

_STORE_TIMEOUT = timedelta(seconds=20)
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_ROOT = Path(__file__).resolve().parent.parent
_WAITS_FOR_OTHERS = ("/torch/", "/torchrec/", "/trainer/pipeline.py", "/trainer/distributed.py")
_CURE = "mend the cause, then go on from the newest checkpoint with --resume"

Item = TypeVar("Item")


def collective_timeout(seconds: float) -> timedelta:
    """Time-out of collectives: later than the watchdog, which knows names, yet soon after."""
    return timedelta(seconds=2 * seconds + 60)


class HungError(RuntimeError):
    """The run stood still; the message names the rank that holds the others up."""


@dataclass(frozen=True)
class Standstill:
    """What a rank tells of itself when it stands still.

    Attributes:
        rank: of the job.
        local_rank: on its host.
        host: name of the machine.
        where: file, line and function of the main thread.
        waits: True where that is a place in which ranks wait for each other.
    """

    rank: int
    local_rank: int
    host: str
    where: str
    waits: bool


class Watchdog:
    """Watches over one rank while it is entered.

    Args:
        ranks: this process among all.
        seconds: standing still so long counts as hung.
        log: file of this rank that gets the stacks.
    """

    def __init__(self, ranks: Ranks, seconds: float, log: Path) -> None:
        if seconds <= 0:
            raise ValueError(f"hang seconds is {seconds}, expected more than 0")
        self._ranks = ranks
        self._seconds = seconds
        self._interval = min(seconds / 4, 5.0)
        self._log_path = log
        self._num_beats = 0
        self._paused = False
        self._done = threading.Event()
        self._main_thread = threading.main_thread().ident
        self._store: Store | None = None

    def __enter__(self) -> Watchdog:
        """Start watching."""
        self._store = connect_store("watchdog", _STORE_TIMEOUT)
        present = Standstill(*self._place(), where="", waits=False)
        append_line(self._store, "hosts", self._line(present))
        self._log = self._log_path.open("a")
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._log.close()

    def beat(self) -> None:
        """Say that the main thread moves."""
        self._num_beats += 1

    def beating(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; each one is a beat."""
        for item in items:
            self.beat()
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work of unknown length, such as writing a checkpoint, that has time limits of its own."""
        self._paused = True
        try:
            yield
        finally:
            self.beat()
            self._paused = False

    def _watch(self) -> None:
        seen, since = self._num_beats, time.monotonic()
        while not self._done.wait(self._interval):
            # Should C code hold Python's lock, this thread stops too: then faulthandler, which
            # needs no lock, writes the stacks and ends the process.
            faulthandler.dump_traceback_later(
                self._seconds + 4 * self._interval, exit=True, file=self._log
            )
            now = time.monotonic()
            if self._num_beats != seen or self._paused:
                seen, since = self._num_beats, now
            elif now - since >= self._seconds:
                self._end()

    def _end(self) -> None:
        """Write the stacks, hear the other ranks, name the culprit, end the process."""
        faulthandler.dump_traceback(file=self._log, all_threads=True)
        # The store gets its time to answer before faulthandler ends the process.
        limit = self._seconds + 4 * self._interval + 2 * _STORE_TIMEOUT.total_seconds()
        faulthandler.dump_traceback_later(limit, exit=True, file=self._log)
        message = self._verdict()
        logger.critical("%s", message)
        try:
            raise HungError(message)
        except HungError as error:
            get_error_handler().record_exception(error)  # the launching process shows this message
        logging.shutdown()
        os._exit(EXIT_HUNG)

    def _verdict(self) -> str:
        own = Standstill(*self._place(), *self._position())
        heard: list[tuple[list[Standstill], list[Standstill]]] = []
        # Calls of a store whose process is stopped never return, whatever their time-out.
        asking = threading.Thread(target=self._ask, args=(own, heard), daemon=True)
        asking.start()
        asking.join(2 * self._interval + _STORE_TIMEOUT.total_seconds())
        if not heard:
            return (
                f"{_name(own)} stands still in {own.where}, and the job's store does not answer: "
                f"the process or host of rank 0, which holds it, is stopped or lost; {_CURE}"
            )
        return verdict(*heard[0], self._ranks.world_size, self._seconds)

    def _ask(self, own: Standstill, heard: list[tuple[list[Standstill], list[Standstill]]]) -> None:
        """Tell the others of this rank, and hear who stands still, and of all ranks."""
        assert self._store is not None
        with suppress(RuntimeError, OSError):  # the store is gone with its host
            append_line(self._store, "standing", self._line(own))
            time.sleep(2 * self._interval)  # ranks notice within one interval of each other
            heard.append((self._read("standing"), self._read("hosts")))

    def _read(self, key: str) -> list[Standstill]:
        assert self._store is not None
        lines = self._store.get(key).decode().splitlines()
        return [Standstill(**json.loads(line)) for line in lines]

    def _place(self) -> tuple[int, int, str]:
        return self._ranks.rank, self._ranks.local_rank, socket.gethostname()

    @staticmethod
    def _line(standstill: Standstill) -> str:
        return json.dumps(asdict(standstill))

    def _position(self) -> tuple[str, bool]:
        assert self._main_thread is not None
        return position(sys._current_frames()[self._main_thread])


def position(frame: FrameType) -> tuple[str, bool]:
    """Where a thread is, outside the standard library, and whether ranks wait there for others."""
    current: FrameType | None = frame
    while current is not None and _in_standard_library(current.f_code.co_filename):
        current = current.f_back
    current = current or frame
    path = current.f_code.co_filename
    waits = any(part in path for part in _WAITS_FOR_OTHERS)
    shown = Path(path).relative_to(_ROOT) if Path(path).is_relative_to(_ROOT) else Path(path)
    return f"{shown}:{current.f_lineno} {current.f_code.co_name}", waits


def _in_standard_library(path: str) -> bool:
    return path.startswith((_STANDARD_LIBRARY, "<frozen")) and "site-packages" not in path


def verdict(
    standing: list[Standstill], everyone: list[Standstill], world_size: int, seconds: float
) -> str:
    """Name who holds the others up.

    Args:
        standing: what ranks that stand still told.
        everyone: ranks that ever told, for their hosts.
        world_size: number of ranks.
        seconds: after which they count as hung.
    """
    told = {entry.rank for entry in standing}
    hosts = {entry.rank: entry for entry in everyone}
    silent = [hosts[rank] for rank in sorted(hosts) if rank not in told]
    hanging = sorted((entry for entry in standing if not entry.waits), key=lambda entry: entry.rank)
    start = f"no step for {seconds:g} s: "
    end = f"; stacks of all ranks are in log/rank_<n>.log of the run folder; {_CURE}"
    if silent:
        names = ", ".join(map(_name, silent))
        return f"{start}{names} does not answer (process stopped, or host lost){end}"
    if hanging:
        names = ", ".join(f"{_name(entry)} hangs in {entry.where}" for entry in hanging)
        return f"{start}{names}, {world_size - len(hanging)} of {world_size} ranks wait{end}"
    places = ", ".join(f"{_name(entry)} in {entry.where}" for entry in standing[:8])
    return f"{start}all {world_size} ranks wait for each other: {places}{end}"


def _name(entry: Standstill) -> str:
    return f"rank {entry.rank} (host {entry.host}, local rank {entry.local_rank})"
