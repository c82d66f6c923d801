import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from trainer.host_memory import reuse_freed_memory

{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
size, faults = 64 << 20, []
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    libc.free(address)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def page_faults(call):
    """Of the first and the second use of 64 MiB, each freed before the next."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(count) for count in found.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own parameters")
def test_freed_memory_is_not_cleared_anew():
    first, second = page_faults("reuse_freed_memory()")
    assert second <= first // 100
    first, second = page_faults("")
    assert second > first // 2
