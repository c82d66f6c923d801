"""A side of the comparison as a process that trains when it is told to.

Needs the standard library alone, so that the peers' virtual environment can import it too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from throughput_workload import BATCH_SIZE

MARK = "@result "
"""Begins the lines that are meant for the parent; the peers print lines of their own."""


def serve(train: dict[str, Callable[[int], None]]) -> None:
    """Obey lines `<mode> <steps>` on standard input until it ends.

    Args:
        train: mode -> function that trains so many steps.
    """
    say({"ready": True})
    for line in sys.stdin:
        mode, steps = line.split()
        begin = time.perf_counter()
        train[mode](int(steps))
        seconds = time.perf_counter() - begin
        say({"samples_per_s": int(steps) * BATCH_SIZE / seconds})


def say(value: dict[str, object]) -> None:
    """Send one answer to the parent."""
    print(MARK + json.dumps(value), flush=True)
