import queue
import sys
import threading
import time

import pytest
import torch

from trainer.distributed import Ranks
from trainer.watchdog import Standstill, Watchdog, position, verdict


def standing(rank, where="trainer/loop.py:1 f", waits=True):
    return Standstill(
        rank=rank, local_rank=rank % 2, host=f"n{rank // 2}", where=where, waits=waits
    )


def everyone(size):
    return [standing(rank, where="", waits=False) for rank in range(size)]


def test_the_rank_that_does_not_wait_for_others_is_named():
    told = [standing(0), standing(1), standing(3), standing(2, "trainer/data/x.py:7 get", False)]
    message = verdict(told, everyone(4), 4, 600)
    assert "rank 2 (host n1, local rank 0) hangs in trainer/data/x.py:7 get" in message
    assert "3 of 4 ranks wait" in message
    assert "rank 1" not in message


def test_a_rank_that_says_nothing_comes_first():
    told = [standing(0), standing(1, "a.py:1 f", False), standing(2)]
    message = verdict(told, everyone(4), 4, 600)
    assert "rank 3 (host n1, local rank 1) does not answer" in message
    assert message.endswith("go on from the newest checkpoint with --resume")
    assert "hangs" not in message


def test_without_a_culprit_the_places_are_told():
    message = verdict([standing(0), standing(1)], everyone(2), 2, 600)
    assert "all 2 ranks wait for each other" in message
    assert "trainer/loop.py:1 f" in message


def position_of(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    time.sleep(0.2)
    return position(sys._current_frames()[thread.ident])


def test_position_skips_the_standard_library():
    empty = queue.Queue()

    def reads():
        empty.get()

    where, waits = position_of(reads)
    assert where.startswith("tests/unit/trainer/test_watchdog.py:")
    assert where.endswith(" reads")
    assert not waits


def test_position_in_torch_is_a_wait():
    code = compile("import time\ndef waits():\n    time.sleep(2)\n", torch.__file__, "exec")
    namespace = {}
    exec(code, namespace)
    _, waits = position_of(namespace["waits"])
    assert waits


def test_seconds_must_be_positive(tmp_path):
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="hang seconds is 0"):
        Watchdog(ranks, 0, tmp_path / "log")


def test_each_item_is_a_beat(tmp_path):
    watchdog = Watchdog(Ranks(0, 1, 0, 1, torch.device("cpu")), 1, tmp_path / "log")
    assert list(watchdog.beating([1, 2, 3])) == [1, 2, 3]
    assert watchdog._num_beats == 3
