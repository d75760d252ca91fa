"""Memory that was freed goes back to the system."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.memory import give_back, share_arenas
from tests import bundles
from tests.servers import Server, serving

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")

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

# The same, where nobody asks for it.
LATER = """
import threading, time
from service import memory

memory._TURN_SECONDS = 0.05
blocks = [bytes(bytearray(20_000)) for _ in range(2000)]
kept = blocks[::100]
stop = threading.Event()
thread = threading.Thread(target=memory.keep_giving_back, args=(stop,))
thread.start()
before = resident()
del blocks
end = time.monotonic() + 20
while before - resident() < 25_000_000 and time.monotonic() < end:
    time.sleep(0.01)
stop.set()
thread.join()
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

# What requests of many rows take comes and goes at the end of the heap; 195 pages, each a fault where it comes anew.
REQUESTED = """
import resource
from service.memory import keep_large_apart

keep_large_apart()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for i in range(101):
    if i == 1:
        before = faults()
    bytearray(800_000)
print(faults() - before)
"""


@of_glibc
def test_what_a_request_needed_is_at_hand_for_the_next() -> None:
    assert printed(REQUESTED) < 1000


@of_glibc
def test_large_blocks_leave_no_holes() -> None:
    assert printed(RESIDENT + CHURNED, "apart") < 1_000_000 < printed(RESIDENT + CHURNED, "together")


@of_glibc
def test_threads_share_two_heaps() -> None:
    assert printed(HEAPS, "shared") <= 2 < printed(HEAPS, "of their own")


@of_glibc
def test_what_was_freed_goes_back_to_the_system() -> None:
    assert printed(RESIDENT + HOLED) > 25_000_000


@of_glibc
def test_what_was_freed_goes_back_as_time_passes() -> None:
    assert printed(RESIDENT + LATER) > 25_000_000


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


def resident(server: Server) -> int:
    """Bytes of a server's process that lie in memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from /proc")
def test_requests_that_are_refused_leave_nothing(tmp_path: Path) -> None:
    bundles.numeric_regression().publish(tmp_path)
    body = json.dumps({"inputs": [{"x": float(i), "unknown": 1.0} for i in range(4000)], "more": "-" * 3_000_000})
    with serving(tmp_path, max_rows=5000) as server, server.client() as client:
        found = []
        for i in range(60):
            assert client.post("/predict", content=body).status_code == 422
            if i in {9, 59}:
                found.append(resident(server))
        assert client.post("/predict", json={"inputs": [[1.0]]}).status_code == 200
    # Fifty of them; three megabytes each and more, were they kept.
    assert found[1] - found[0] < 30_000_000


# Many sets of one sample, of a small network and of one whose rows are large; each has run once.
HELD = """
import sys
from pathlib import Path
import numpy as np
from tests import bundles
from model_store.plan import draw_latents
from service.model import Asked, ServedModel

bundle = getattr(bundles, sys.argv[1])().publish(Path(sys.argv[2]))
model = ServedModel(bundle)
x = np.repeat(model.encoder.typical(), 64, axis=0)

def one(seed):
    latents, anchors = draw_latents(model.plan("predict"), model.nodes, 1, seed)
    weights = model.engine.bind(model.engine.decode(latents, anchors), anchors)
    model.predict(weights, x, Asked(0.9))
    return weights

first = [one(seed) for seed in range(100)]
before = resident()
held = [one(seed) for seed in range(2000)]
print(round(100 * (resident() - before) / sum(weights.nbytes for weights in held)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from /proc")
@pytest.mark.parametrize("kind", ["numeric_regression", "image_classification"])
def test_a_set_takes_no_more_than_it_counts_for(tmp_path: Path, kind: str) -> None:
    """In percent."""
    assert 10 < printed(RESIDENT + HELD, kind, str(tmp_path)) < 110
