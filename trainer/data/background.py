"""Make items in a thread while the consumer uses earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Ended:
    """Last thing in the queue; `error` is what ended the generator, None for its own end."""

    error: BaseException | None


def in_background(items: Generator[Item, None, None], *, ahead: int) -> Generator[Item, None, None]:
    """Yield what `items` yields, up to `ahead` items made in advance by a thread.

    The thread starts with the first item that is asked for. It ends, and closes `items`, when
    `items` ends or when this generator is closed. An exception in `items` is raised here, after the
    items before it.

    Args:
        items: run in the thread alone.
        ahead: items that may wait, at least 1.
    """
    made: queue.Queue[Item | _Ended] = queue.Queue(ahead)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(items, made, stop), name="background", daemon=True
    )
    thread.start()
    try:
        while not isinstance(item := made.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


def _fill(
    items: Generator[Item, None, None],
    made: queue.Queue[Item | _Ended],
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not _put(made, item, stop):
                break
    except BaseException as raised:
        error = raised
    finally:
        items.close()
    _put(made, _Ended(error), stop)


def _put(made: queue.Queue[Item | _Ended], item: Item | _Ended, stop: threading.Event) -> bool:
    """Put an item as soon as there is room; False when the consumer has gone."""
    while not stop.is_set():
        try:
            made.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
