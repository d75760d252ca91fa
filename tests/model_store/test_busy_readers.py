"""Bundles made to keep whoever reads them busy, or to take its memory, are refused at once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_store import Bundle, IncompatibleError, IntegrityError
from model_store.manifest import CARD_FILE
from tests import bundles


@pytest.fixture
def published(tmp_path: Path) -> Bundle:
    return bundles.mixed_regression().publish(tmp_path / "store")


def rewrite(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def nested(levels: int) -> Any:
    """Objects in objects."""
    found: Any = 1
    for _ in range(levels):
        found = {"a": found}
    return found


def shaped(shape: list[int]) -> Callable[[dict[str, Any]], None]:
    return lambda m: m["network"]["parameters"][0].update(shape=shape)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shaped([int("9" * 4000)] * 600), "parameters.0.shape: List should have at most 16 items"),
        (shaped([int("9" * 4000)] * 16), "parameters.0.shape.0: Input should be less than or equal to 2147483648"),
        (shaped([1] * 1_000_000), "parameters.0.shape: List should have at most 16 items"),
        (lambda m: m["network"].update(parameters=[{}] * 1_000_000), "parameters.0.name: Field required"),
        (lambda m: m.update({str(i): 1 for i in range(100_000)}), "breaks the schema in 100,000 places"),
        (lambda m: m.update({"a" * 1_000_000: 1}), "a: Extra inputs are not permitted"),
        (lambda m: m["build"]["config"].update(a=nested(300)), "nested too deeply, or is no text"),
        (lambda m: m["build"]["config"].update(a="\ud800"), "nested too deeply, or is no text"),
    ],
    ids=["product", "entries", "lengths", "parameters", "fields", "name", "nested", "half a character"],
)
def test_a_manifest_made_to_keep_its_reader_busy_is_refused_at_once(
    published: Bundle, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    rewrite(published, change)
    started = time.process_time()
    with pytest.raises(IntegrityError) as raised:
        Bundle(published.path)
    assert time.process_time() - started < 2  # reading so much JSON takes some tenths
    assert told in raised.value.message
    assert len(raised.value.message) < 1000


def test_a_schema_version_that_is_anything_is_shortened(published: Bundle) -> None:
    for version in ("x" * 1_000_000, nested(300), [[]] * 100_000):
        rewrite(published, lambda m, version=version: m.update(schema_version=version))
        with pytest.raises(IncompatibleError) as raised:
            Bundle(published.path)
        assert len(raised.value.message) < 1000


@pytest.mark.parametrize("size", [2**40, 2**36])
def test_a_size_that_is_only_claimed_takes_no_memory(published: Bundle, size: int) -> None:
    """With 2^36 bytes the file is as large as claimed, which is more than the reader may have."""
    card = published.path / CARD_FILE
    rewrite(published, lambda m: m["files"][CARD_FILE].update(size=size))
    if size == 2**36:
        os.truncate(card, size)
    script = f"""
import resource
from pathlib import Path
from model_store import Bundle, IntegrityError
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
try:
    Bundle(Path({str(published.path)!r})).read({CARD_FILE!r})
except IntegrityError as e:
    print(e.message)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert ("another size" if size == 2**40 else "does not fit into memory; publish") in told
