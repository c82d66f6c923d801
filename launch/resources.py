"""Named resources for torchx (`-h h100x8`): what a job asks of one node.

They are entry points in setup.cfg (`torchx.named_resources`), which is how torchx finds them.
Processors and memory are those of the machines of the same name in sharding/hardware.py, less a
share for the operating system and the scheduler's own daemons, so that a whole node still fits.
Like launch/components.py it imports torchx alone.
"""

from torchx.specs import Resource

GIB_IN_MIB = 1024
_SHARE = 0.9


def a100x8() -> Resource:
    """DGX A100: 256 threads (two EPYC 7742), 2 TB, eight A100 80 GB."""
    return _node(threads=256, gigabytes=2_000, gpu=8)


def h100x8() -> Resource:
    """DGX H100: 224 threads (two Xeon 8480C), 2 TB, eight H100."""
    return _node(threads=224, gigabytes=2_000, gpu=8)


def h200x8() -> Resource:
    """DGX H200: 224 threads (two Xeon 8480C), 2 TB, eight H200."""
    return _node(threads=224, gigabytes=2_000, gpu=8)


def b200x8() -> Resource:
    """DGX B200: 224 threads (two Xeon 8570), 2 TB, eight B200."""
    return _node(threads=224, gigabytes=2_000, gpu=8)


def cpu_host() -> Resource:
    """CPU host of sharding/hardware.py: 384 threads (two EPYC 9654), 1.5 TB, no accelerator."""
    return _node(threads=384, gigabytes=1_536, gpu=0)


def laptop() -> Resource:
    """Two processors and 4 GiB: the smoke experiments."""
    return Resource(cpu=2, gpu=0, memMB=4 * GIB_IN_MIB)


def _node(*, threads: int, gigabytes: int, gpu: int) -> Resource:
    return Resource(
        cpu=int(threads * _SHARE), gpu=gpu, memMB=int(gigabytes * _SHARE * 10**9 / 2**20)
    )
