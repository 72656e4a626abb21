"""Commands keep freed memory, in few arenas, for themselves and for the processes that they start."""

import subprocess
import sys

import pytest

from linseed.scripts.cli import heap

# Threads that all hold memory at once get an arena each, up to the limit; malloc_info tells how many there are.
COUNT = """
import ctypes, os, tempfile, threading
from linseed.scripts.cli import heap
heap.keep()
libc, together = ctypes.CDLL(None), threading.Barrier(12)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
def hold():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(12)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().decode().count("<heap "), os.environ["MALLOC_ARENA_MAX"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("given", "limit"), [(None, 2), (3, 3)])
def test_threads_share_few_arenas(monkeypatch, given, limit):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if given:
        monkeypatch.setenv("MALLOC_ARENA_MAX", str(given))
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    arenas, variable = done.stdout.split()
    assert 1 < int(arenas) <= limit and int(variable) == limit


# Page faults of NumPy arrays of 32 MiB, each freed before the next: new pages, or those of the one before.
FAULTS = """
import resource
import numpy as np
from linseed.scripts.cli import heap
heap.keep()
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**25, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(fill(), *(fill() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("chosen", [False, True])
def test_a_large_array_takes_the_pages_of_the_one_before_unless_the_user_chose_otherwise(monkeypatch, chosen):
    for variable in heap.SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    if chosen:
        monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")  # glibc's default
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    first, *later = map(int, done.stdout.split())
    assert min(later) > first / 2 if chosen else max(later) < first / 10
