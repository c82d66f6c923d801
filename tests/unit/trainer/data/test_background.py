from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from trainer.data.background import in_background


def count(
    stop: int, closed: threading.Event, made: list[int] | None = None
) -> Generator[int, None, None]:
    try:
        for number in range(stop):
            if made is not None:
                made.append(number)
            yield number
        raise KeyError("the end")
    finally:
        closed.set()


def test_yields_everything_then_the_error_and_ends_the_thread() -> None:
    closed = threading.Event()
    seen = []
    with pytest.raises(KeyError, match="the end"):
        for number in in_background(count(50, closed), ahead=3):
            seen.append(number)
    assert seen == list(range(50))
    assert closed.is_set()
    assert not [t for t in threading.enumerate() if t.name == "background"]


def test_closing_early_closes_the_source() -> None:
    closed = threading.Event()
    made: list[int] = []
    numbers = in_background(count(10**9, closed, made), ahead=3)
    assert [next(numbers), next(numbers)] == [0, 1]
    numbers.close()
    assert closed.is_set()
    assert len(made) <= 2 + 3 + 1  # yielded, waiting, one in hand
    assert not [t for t in threading.enumerate() if t.name == "background"]


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    made: list[int] = []
    in_background(count(3, threading.Event(), made), ahead=1).close()
    assert made == []
