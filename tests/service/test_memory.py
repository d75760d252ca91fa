"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.memory import give_back, share_arenas

RESIDENT = """
def resident():
    (line,) = (l for l in open("/proc/self/status") if l.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
"""

# In a process of its own: what others have allocated meanwhile would blur the figure.
HOLED = """
from service.memory import give_back

# Blocks that malloc takes from its heap; every hundredth is kept, so that the end of the heap cannot simply be cut off.
blocks = [bytes(bytearray(20_000)) for _ in range(2000)]
kept = blocks[::100]
del blocks
before = resident()
give_back()
print(before - resident())
"""

# Eight threads that all hold memory; glibc itself tells of its heaps.
HEAPS = """
import ctypes, re, sys, tempfile, threading
from service.memory import share_arenas

if sys.argv[1] == "shared":
    share_arenas()
there, done = threading.Barrier(9), threading.Event()

def hold():
    held = [bytes(bytearray(1000)) for _ in range(1000)]
    there.wait()
    done.wait()

threads = [threading.Thread(target=hold) for _ in range(8)]
for t in threads:
    t.start()
there.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(len(re.findall(b"<heap nr=", file.read())))
done.set()
"""

# Large blocks come and go, and a small one stays after each.
CHURNED = """
import sys
from service.memory import keep_large_apart

if sys.argv[1] == "apart":
    keep_large_apart()

bytearray(8_000_000)  # from here on malloc by itself takes such blocks from its heap
before, kept = resident(), []
for _ in range(20):
    large = bytearray(4_000_000)
    kept.append(bytearray(10_000))
    del large
    large = bytearray(3_900_000)
    kept.append(bytearray(10_000))
    del large
    kept.append(bytearray(10_000))
del kept[:-1]
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")
def test_large_blocks_leave_no_holes() -> None:
    assert printed(RESIDENT + CHURNED, "apart") < 1_000_000 < printed(RESIDENT + CHURNED, "together")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")
def test_threads_share_two_heaps() -> None:
    assert printed(HEAPS, "shared") <= 2 < printed(HEAPS, "of their own")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_what_was_freed_goes_back_to_the_system() -> None:
    assert printed(RESIDENT + HOLED) > 25_000_000


def test_threads_that_share_heaps_go_on() -> None:
    share_arenas()
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(len(bytearray(n)))) for n in (10, 10_000, 10_000_000)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    give_back()
    assert sorted(found) == [10, 10_000, 10_000_000]


def printed(script: str, *arguments: str) -> int:
    """The number that a script prints, run by a process of its own."""
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", script, *arguments]
    return int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
