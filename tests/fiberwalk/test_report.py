"""`fiberwalk report`."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from fiberwalk.cli import app
from model_store import ModelStore
from tests import bundles


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Two versions, of which the first has a report."""
    made, parts = ModelStore(tmp_path / "models"), bundles.numeric_regression()
    others = {name: data for name, data in parts.files.items() if name != "report.html"}
    made.publish(parts.manifest, others | {"report.html": b"<h1>sine</h1>"})
    made.publish(parts.manifest, others)
    return made


def run(store: ModelStore, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments, "--store", str(store.root)])


def test_the_page_is_found_copied_and_opened(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    found = run(store, "sine@1")
    assert (found.exit_code, found.stdout) == (0, f"{store.root / 'sine' / '1' / 'report.html'}\n")
    copy = tmp_path / "page.html"
    assert run(store, "sine@1", "--output", str(copy), "--open").stdout == f"{copy}\n"
    assert copy.read_bytes() == b"<h1>sine</h1>"
    assert opened == [copy.as_uri()]


def test_what_cannot_be_shown_is_refused(store: ModelStore, tmp_path: Path) -> None:
    nowhere = tmp_path / "none" / "page.html"
    for arguments, told in (
        (["sine"], "sine@2 has no report; build it again."),
        (["cosine"], "no model 'cosine'"),
        (["sine@1", "--output", str(nowhere)], "cannot be written (No such file or directory); choose another file."),
    ):
        refused = run(store, *arguments)
        assert refused.exit_code == 1
        assert told in refused.stderr and refused.stdout == ""
    (store.root / "sine" / "1" / "report.html").write_bytes(b"<h1>other</h1>")
    assert "report.html" in run(store, "sine@1").stderr
