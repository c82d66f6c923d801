"""Run a function on several ranks of this machine, through torch's own elastic agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.stop import EXIT_STOPPED, STOP_SIGNALS, StoppedError

GRACE_SECONDS = 120
"""Time that ranks have to save when they are told to stop."""
_ELASTIC_LOGGERS = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.multiprocessing.errors.error_handler",
)


class RankFailedError(RuntimeError):
    """A rank ended with an error."""


def under_torchrun() -> bool:
    """True when torchrun or torchx started this process as one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def run_on_ranks(
    function: Callable[..., None], num_ranks: int, *arguments: Any, log_folder: Path
) -> None:
    """Call `function(*arguments)` on every rank; processors are shared out evenly.

    Under torchrun the ranks are there already, and this process is one of them.

    Args:
        function: picklable, of a module that can be imported.
        num_ranks: processes to start.
        arguments: picklable.
        log_folder: where the standard output and error of ranks above 0 go.

    Raises:
        RankFailedError: with the message of the first rank that failed.
        StoppedError: when this process or a rank was told to stop; ranks had time to save.
        ValueError: when torchrun started another number of ranks.
    """
    if under_torchrun():
        if int(os.environ["WORLD_SIZE"]) != num_ranks:
            raise ValueError(
                f"torchrun started {os.environ['WORLD_SIZE']} ranks, but {num_ranks} are needed"
            )
        function(*arguments)
        return
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    # Ranks and readers share the processors: a thread that waits must not keep one busy.
    added = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    added = {name: value for name, value in added.items() if name not in os.environ}
    os.environ.update(added)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    log_folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("FAREWELL_TRACEBACK") != "1":
        for logger in _ELASTIC_LOGGERS:  # they repeat a rank's traceback; its message is enough
            logging.getLogger(logger).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"farewell_{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        signals_to_handle=",".join(number.name for number in STOP_SIGNALS),
        shutdown_timeout=GRACE_SECONDS,
        logs_specs=DefaultLogsSpecs(
            log_dir=str(log_folder),
            redirects=dict.fromkeys(range(1, num_ranks), Std.ALL),
        ),
    )
    try:
        elastic_launch(config, _recorded)(function, threads, *arguments)
    except SignalException as error:
        raise StoppedError(f"told to stop by {error.sigval.name}") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if all(failure.exitcode == EXIT_STOPPED for failure in error.failures.values()):
            raise StoppedError(f"rank {rank} was told to stop") from error
        if failure.exitcode == -signal.SIGKILL:
            raise RankFailedError(
                f"rank {rank} was killed (SIGKILL): by the system when memory runs out (see dmesg; "
                "take a smaller batch or more hosts), or by somebody. What was saved is whole; go "
                "on with --resume"
            ) from error
        message = failure.message
        if isinstance(message, dict):
            message = message.get("message", message)
        raise RankFailedError(f"rank {rank} failed: {_first_line(str(message))}") from error
    finally:
        for name in added:
            os.environ.pop(name, None)
        for number, handler in handlers.items():  # the agent leaves its own behind
            signal.signal(number, handler)


@record
def _recorded(function: Callable[..., None], threads: int, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    try:
        function(*arguments)
    except StoppedError:
        sys.exit(EXIT_STOPPED)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "no message"
