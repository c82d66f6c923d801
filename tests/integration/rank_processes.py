"""Ranks for tests: forked from a server that has imported torch and torchrec once.

`launch.ranks` starts ranks for users; here one machine also plays several hosts, and a rank that
dies is part of the test.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
import traceback
import warnings
from multiprocessing.connection import wait

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["trainer.loop"])


class RanksFailedError(Exception):
    """Some ranks failed; `errors` maps rank to traceback text or exit code."""

    def __init__(self, errors):
        super().__init__("\n".join(f"rank {rank}: {error}" for rank, error in errors.items()))
        self.errors = errors


def run_ranks(function, world_size, *arguments, hosts=1, timeout=150):
    """Call a function of an importable module on every rank of `hosts` pretended hosts.

    A rank's end with an error ends the others after two seconds, as torchrun would.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local_world_size = world_size // hosts
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # inherited by the server, which must not have threads
        processes = []
        for rank in range(world_size):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank % local_world_size),
                "LOCAL_WORLD_SIZE": str(local_world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_rank, args=(environment, sender, function, arguments), daemon=True
            )
            process.start()
            sender.close()
            processes.append((process, receiver))
    errors = _wait(processes, timeout)
    if errors:
        raise RanksFailedError(errors)


def _wait(processes, timeout):
    deadline = time.monotonic() + timeout
    errors = {}
    running = dict(enumerate(process for process, _ in processes))
    while running and time.monotonic() < deadline:
        wait([process.sentinel for process in running.values()], deadline - time.monotonic())
        for rank, process in list(running.items()):
            if process.is_alive():
                continue
            process.join()
            del running[rank]
            if process.exitcode != 0:
                errors[rank] = _error(process, processes[rank][1])
                deadline = min(deadline, time.monotonic() + 2)
    for rank, process in running.items():
        process.kill()
        process.join()
        if not errors:
            errors[rank] = f"still running after {timeout} s"
    return errors


def _error(process, receiver):
    try:
        return receiver.recv()
    except EOFError:
        return f"exit code {process.exitcode}"


def _rank(environment, sender, function, arguments):
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    try:
        function(*arguments)
    except BaseException:
        sender.send(traceback.format_exc())
        sender.close()
        os._exit(1)
    sender.close()
    os._exit(0)  # torch's threads of a process group that failed elsewhere could block a clean exit
