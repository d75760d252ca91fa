"""Bodies that would take many times their bytes once they are read: refused in good time, and what is usual is not."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.errors import InputError
from model_store.store import ModelStore
from service.bounds import LARGE, check_json
from service.formats import JSON, MSGPACK, NPY, Body, content_of, turn
from service.inference import _encoded
from service.model import ServedModel
from service.protocol import parse
from tests.servers import Server, serving
from tests.service.test_requests import refused

TOO_MANY = 2**20


def listed(value: bytes) -> bytes:
    """msgpack of an array of a value, again and again."""
    return b"\xdd" + struct.pack(">I", TOO_MANY) + value * TOO_MANY


def in_json(value: bytes) -> bytes:
    return b'{"model": "sine", "inputs": [' + value * TOO_MANY + b"0]}"


COSTLY = {
    "rows": (JSON, in_json(b"[0,0],")),
    "empty arrays": (JSON, in_json(b"[],")),
    "nested arrays": (JSON, in_json(b"[[[]]],")),
    "objects": (JSON, in_json(b"{},")),
    "names": (JSON, b'{"inputs": [{' + b'"x":0,' * TOO_MANY + b'"x":0}]}'),
    "numbers": (JSON, in_json(b"0,0,0,0,0,")),
    "targets": (JSON, b'{"inputs": [[1, 2]], "targets": [' + b"[]," * TOO_MANY + b"0]}"),
    "objects in msgpack": (MSGPACK, b"\x81\xa6inputs" + listed(b"\x80")),
    "arrays in msgpack": (MSGPACK, b"\x81\xa6inputs" + listed(b"\x90")),
    "numbers in msgpack": (MSGPACK, b"\x81\xa6inputs\x95" + listed(b"\x00") * 5),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_too_much_is_refused_before_its_end(name: str) -> None:
    kind, data = COSTLY[name]
    # What is read to its end is refused for that.
    with pytest.raises(InputError, match="fewer rows in a request, or numbers as bytes") as e:
        content_of(Body(data + b"\xc1", kind), rows_alone=True)
    assert e.value.code == "body_too_large" and "at most 5000000 numbers" in str(e.value.expected)


def test_names_and_other_kinds_of_values_are_few_in_msgpack() -> None:
    names = b"\x81\xa6inputs\xdf" + struct.pack(">I", 70_000) + b"".join(b"\xa5%05d\x00" % i for i in range(70_000))
    with pytest.raises(InputError, match="70000 exceeds") as e:
        content_of(Body(names, MSGPACK), rows_alone=True)
    assert e.value.code == "invalid_msgpack"
    with pytest.raises(InputError, match="exceeds") as e:
        content_of(Body(b"\x81\xa6inputs" + listed(b"\xd4\x05\x00"), MSGPACK), rows_alone=True)
    assert e.value.code == "invalid_msgpack"


@pytest.mark.parametrize(
    ("row", "rows"),
    [
        (b"[" + b",".join([b"[" + b",".join([b"25"] * 28) + b"]"] * 28) + b"]", 4096),  # images of 28 x 28
        (b"{" + b",".join(b'"c%03d":1.5' % i for i in range(190)) + b"}", 4096),  # rows by name
        (b"[" + b",".join([b"0.123"] * 1300) + b"]", 4096),
        (b"[" + b",".join([b"1234.5"] * 5000) + b"]", 1200),  # larger ones may hold as much more
    ],
    ids=["images", "names", "wide", "large"],
)
def test_usual_rows_are_not_too_many(row: bytes, rows: int) -> None:
    body = b'{"inputs":[' + b",".join([row] * rows) + b"]}"
    assert len(body) > LARGE
    check_json(body)


def test_a_large_body_of_usual_rows_is_read() -> None:
    row = b"[" + b",".join([b"0.12345"] * 50) + b"]"
    found = parse(Body(b'{"inputs":[' + b",".join([row] * 4000) + b"]}"), max_rows=4000, predicts=True)
    assert len(found.inputs) == 4000 and found.inputs[3999] == [0.12345] * 50


def test_large_bodies_are_read_one_at_a_time_and_others_beside() -> None:
    large = b" " * (LARGE + 1)
    inside = threading.Event()

    def read(body: Body) -> Callable[[], None]:
        def run() -> None:
            with turn(body):
                inside.set()

        return run

    with turn(Body(large)):
        for body in (Body(b" " * LARGE), Body(large, NPY)):
            read(body)()
            assert inside.is_set()
            inside.clear()
        waiting = threading.Thread(target=read(Body(large, MSGPACK)))
        waiting.start()
        assert not inside.wait(0.2)
    waiting.join(10)
    assert inside.is_set()


def test_one_that_waits_for_its_model_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.formats._PATIENCE_SECONDS", 0.05)
    large = Body(b" " * (LARGE + 1))
    with turn(large), turn(large):
        pass
    with turn(large):  # and it is free again
        pass


def test_rows_as_objects_are_dropped_once_they_are_encoded(store: Path) -> None:
    model = ServedModel(ModelStore(store).open("prices"))
    request = parse(Body(b'{"inputs": [[5, 80.5, "Bonn"], [1, 2, "Bonn"]]}'), max_rows=2, predicts=True)
    assert len(_encoded(request, model, unseen=False)) == 2
    assert request.inputs == []


@pytest.fixture(scope="module")
def large_server(store: Path) -> Iterator[Server]:
    """A server with the usual limits for bodies, and a low one for answers."""
    with serving(store, max_values=100) as server:
        yield server


def resident(server: Server, what: str) -> int:
    """Bytes of a server's process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def test_the_costliest_bodies_at_once_leave_the_server_as_it_was(large_server: Server) -> None:
    rows = b'{"model":"sine","inputs":[' + b"[0,0]," * (5 * 2**20) + b"[0,0]]}"
    assert len(rows) < 2**25
    before, found = resident(large_server, "VmRSS"), []
    with large_server.client() as client:

        def send() -> None:
            with large_server.client() as own:
                found.append(own.post("/predict", content=rows))

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in threads):
            since = time.monotonic()
            client.get("/healthz").raise_for_status()
            slowest = max(slowest, time.monotonic() - since)
        for thread in threads:
            thread.join()
    for response in found:
        error = refused(response, 413)
        assert error["code"] == "body_too_large" and "values" in error["message"]
    # As they come a body takes its bytes, and as many again while its parts are joined.
    assert resident(large_server, "VmHWM") - before < 3 * 4 * len(rows)
    assert slowest < 2


@pytest.mark.parametrize(
    ("asked", "values", "most"),
    [
        ({"model": "digits", "inputs": [[0.0] * 16] * 26}, 104, 25),
        ({"model": "sine", "inputs": [[1, 2]] * 26, "quantiles": [0.1, 0.5, 0.9]}, 104, 25),
        ({"model": "sine", "inputs": [[1, 2]] * 101}, 101, 100),
    ],
    ids=["classes", "quantiles", "numbers"],
)
def test_answers_are_bounded(large_server: Server, asked: dict[str, Any], values: int, most: int) -> None:
    def ask(rows: int) -> httpx.Response:
        return client.post("/predict", json=asked | {"inputs": asked["inputs"][:rows]})

    with large_server.client() as client:
        assert ask(most).status_code == 200
        error = refused(ask(most + 1), 422)
    assert (error["code"], error["field"], error["got"]) == ("too_many_values", "inputs", f"{values} numbers")
    assert f"at most {most} rows" in error["message"] and error["expected"] == "at most 100 numbers"


def test_what_feedback_is_held_against_is_bounded_too(large_server: Server) -> None:
    def tell(rows: int) -> httpx.Response:
        return client.post("/feedback", json={"model": "digits", "inputs": [[0.0] * 16] * rows, "targets": [1] * rows})

    with large_server.client() as client:
        assert tell(25).status_code == 200
        assert refused(tell(26), 422)["code"] == "too_many_values"
