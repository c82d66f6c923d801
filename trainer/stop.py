"""Being told to stop: finish the step, save, end with a code that says "start me again".

Schedulers announce the end of a job with a signal: SIGTERM (preemption, time limit, a pod that is
moved), SIGUSR1 (`sbatch --signal`), SIGHUP (the terminal is gone), SIGINT (Ctrl-C). It may reach
one rank alone; `trainer.pipeline` sums the notices over ranks with the loss, so that all stop after
the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
EXIT_STOPPED = os.EX_TEMPFAIL
"""Exit code (75) of a run that was told to stop and has saved: run the same command again."""


class StoppedError(RuntimeError):
    """The run was told to stop and has saved; the same command with --resume goes on."""


class StopNotice:
    """Notes stop signals while it is entered, instead of ending the process at once.

    Outside the main thread, where Python takes no signals, it never notes one.

    Attributes:
        received: the first signal that came, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopNotice:
        """Listen from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back to whoever listened before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            logger.warning("%s: finishing the step, then saving", self.received.name)
