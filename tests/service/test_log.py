"""The log's lines, and random bytes."""

from __future__ import annotations

import errno
import io
import json
import logging
import logging.config
import os
import re
import sys
import threading
from collections.abc import Callable

import pytest

from service.log import log_config, make_logger
from service.randomness import RandomBytes
from service.settings import Settings
from tests.servers import wait_until


def lines(capsys: pytest.CaptureFixture[str], wanted: int) -> list[str]:
    """What was written, once there are so many lines."""
    found = ""
    for _ in range(200):
        found += capsys.readouterr().err
        if found.count("\n") >= wanted:
            break
        threading.Event().wait(0.01)
    return found.splitlines()


def test_lines_are_written_soon_and_in_order(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    log = make_logger(Settings(store=tmp_path, log_level="info"))
    for i in range(50):
        log.info("request", status=i, path="/a b", model="")
    log.debug("unseen")
    found = lines(capsys, 50)
    assert [int(re.findall(r"status=(\d+)", line)[0]) for line in found] == list(range(50))
    assert re.fullmatch(r"\S+Z \[info\] request model='' path='/a b' status=0", found[0])


@pytest.mark.parametrize("shape", ["json", "console"])
def test_an_exception_is_shown_with_its_trace(capsys: pytest.CaptureFixture[str], tmp_path: object, shape: str) -> None:
    log = make_logger(Settings(store=tmp_path, log_format=shape))
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        log.exception("request_failed", path="/predict")
    if shape == "json":
        (line,) = lines(capsys, 1)
        content = json.loads(line)
        assert content["exception"][0]["exc_type"] == "ValueError"
        assert (content["event"], content["level"], content["path"]) == ("request_failed", "error", "/predict")
    else:
        found = lines(capsys, 4)
        assert "[error] request_failed path=/predict" in found[0]
        assert "ValueError: one" in "\n".join(found[1:])


@pytest.mark.parametrize("shape", ["json", "console"])
def test_what_libraries_log_has_the_same_form(capsys: pytest.CaptureFixture[str], tmp_path: object, shape: str) -> None:
    names = ("uvicorn", "asyncio")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    try:
        logging.config.dictConfig(log_config(Settings(store=tmp_path, log_format=shape)))
        logging.getLogger("uvicorn.error").warning("No %s.", "\nHTTP")
        logging.getLogger("asyncio").info("unseen")
        first, *_ = lines(capsys, 1)
        if shape == "json":
            content = json.loads(first)
            assert (content["event"], content["level"], content["logger"]) == ("No ; HTTP.", "warning", "uvicorn.error")
        else:
            assert first.endswith("Z [warning] No ; HTTP. logger=uvicorn.error")
        try:
            raise ValueError("one")
        except ValueError:
            logging.getLogger("asyncio").exception("Task exception was never retrieved")
        found = lines(capsys, 1 if shape == "json" else 4)
        assert "Task exception was never retrieved" in found[0] and "ValueError" in "\n".join(found)
        assert len(found) == 1 or shape == "console"
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def test_a_value_cannot_forge_a_line(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    make_logger(Settings(store=tmp_path)).info("request", path="/x\n2026 [info] request")
    assert len(lines(capsys, 1)) == 1


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, talk: Callable[[], None], last: str) -> str:
    """What a terminal is sent by what is said, up to and with the last word."""
    terminal, ours = os.openpty()
    found = ""
    with os.fdopen(ours, "w") as stream, os.fdopen(terminal, "rb", buffering=0) as read:
        monkeypatch.setattr(sys, "stderr", stream)
        talk()
        while last not in found:
            found += read.read(4096).decode()
        monkeypatch.undo()
    return found


def test_what_clients_say_commands_no_terminal(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk() -> None:
        log = make_logger(Settings(store=tmp_path))
        log.info("request", path="/x\x1b]0;pwned\x07\x1b[2J\x9b31m\nforged", models=["\x1b[2J"], unit="Köln")
        try:
            raise ValueError("one\x1b[2J")
        except ValueError:
            log.exception("request_failed\x1b[2J", path="/predict")
        log.info("last_words")

    found = on_a_terminal(monkeypatch, talk, "last_words")
    assert r"/x\u001b]0;pwned\u0007\u001b[2J\u009b31m\u000aforged" in found
    assert "Köln" in found
    assert r"ValueError: one\u001b[2J" in found and "Traceback" in found
    # The renderer's own colours are all that is left.
    assert set(re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[0-9;]*m", "", found))) == set()
    assert len(found.splitlines()) == 7


@pytest.mark.parametrize("shape", ["json", "console"])
def test_a_log_that_is_shown_later_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: object, shape: str
) -> None:
    log = make_logger(Settings(store=tmp_path, log_format=shape))
    try:
        raise ValueError("one\x9b2J")
    except ValueError:
        log.exception("request\x9b2J", path="/Köln\x9b31m\u202e\x1b[2J")
    found = "\n".join(lines(capsys, 1 if shape == "json" else 4))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", found)
    assert "Köln" in found
    if shape == "json":
        assert json.loads(found)["path"] == "/Köln\x9b31m\u202e\x1b[2J"


def test_lines_that_nobody_reads_hold_up_who_writes_them(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    reader, stream = os.fdopen(read), os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    log = make_logger(Settings(store=tmp_path))
    every, written = 60_000, 0

    def talk() -> None:
        nonlocal written
        for i in range(every):
            log.info("request", status=i)
            written = i + 1

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    before = -1
    while written > before:
        before = written
        thread.join(1.0)
    held = written
    found = [int(re.findall(r"status=(\d+)", reader.readline())[0]) for _ in range(every)]
    thread.join(10)
    monkeypatch.undo()
    reader.close()
    assert 10_000 <= held < every
    assert found == list(range(every))


def test_random_bytes_are_never_the_same() -> None:
    source, found = RandomBytes(8), []

    def take() -> None:
        found.extend(source.take() for _ in range(2000))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 8000
    assert {len(b) for b in found} == {8}


def test_what_an_error_saw_is_not_logged(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    log = make_logger(Settings(store=tmp_path, log_format="json"))
    sent = "3.14159265"
    try:
        raise ValueError(f"no {len(sent)}")
    except ValueError:
        log.exception("request_failed", path="/predict")
    (line,) = lines(capsys, 1)
    assert "no 10" in line and sent not in line


def test_a_line_that_cannot_be_written_is_not_the_last(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        failed = False

        def write(self, text: str) -> int:
            if not self.failed:
                self.failed = True
                raise OSError(errno.ENOSPC, "no space")
            return super().write(text)

    stream = Full()
    monkeypatch.setattr(sys, "stderr", stream)
    log = make_logger(Settings(store=tmp_path))
    log.info("request", status=0)
    wait_until(lambda: stream.failed)
    log.info("request", status=1)
    wait_until(lambda: "status=1" in stream.getvalue())
