"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.memory import give_back, share_arenas

# In a process of its own: what others have allocated meanwhile would blur the figure.
HOLED = """
import sys
from service.memory import give_back

def resident():
    (line,) = (l for l in open("/proc/self/status") if l.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

# Blocks that malloc takes from its heap; every hundredth is kept, so that the end of the heap cannot simply be cut off.
blocks = [bytes(bytearray(20_000)) for _ in range(2000)]
kept = blocks[::100]
del blocks
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_what_was_freed_goes_back_to_the_system() -> None:
    root = Path(__file__).parent.parent.parent
    run = subprocess.run([sys.executable, "-c", HOLED], cwd=root, capture_output=True, text=True, check=True)
    assert int(run.stdout) > 25_000_000


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
