import os
import signal
import threading

import pytest

from trainer.stop import EXIT_STOPPED, STOP_SIGNALS, StopNotice


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_instead_of_ending_the_process(number):
    with StopNotice() as notice:
        assert notice.received is None
        os.kill(os.getpid(), number)
        assert notice.received is number


def test_the_first_signal_counts_and_others_do_no_harm():
    with StopNotice() as notice:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received is signal.SIGUSR1


def test_signals_are_given_back():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopNotice():
        assert all(signal.getsignal(number) != before[number] for number in STOP_SIGNALS)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_in_another_thread_nothing_is_noted_and_nothing_fails():
    seen = []

    def listen():
        with StopNotice() as notice:
            seen.append(notice.received)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [None]


def test_exit_code_is_the_one_that_schedulers_retry():
    assert EXIT_STOPPED == 75
