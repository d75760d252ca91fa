"""Where networks are computed, and what is said where that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from model_store.errors import StoreError
from model_store.store import ModelStore
from service import engine, providers
from service.engine import Engine
from service.providers import CPU, CUDA, Device, Wanted, possible_devices, providers_of
from tests import bundles


@pytest.mark.parametrize(
    ("wanted", "available", "devices"),
    [
        ("auto", [CPU], ["cpu"]),
        ("auto", [CUDA, CPU], ["cuda", "cpu"]),
        ("cpu", [CUDA, CPU], ["cpu"]),
        ("cuda", [CUDA, CPU], ["cuda"]),
    ],
)
def test_devices_are_tried_in_order(wanted: Wanted, available: list[str], devices: list[Device]) -> None:
    assert possible_devices(wanted, available) == devices


def test_without_the_package_cuda_is_refused() -> None:
    with pytest.raises(StoreError, match="install onnxruntime-gpu") as caught:
        possible_devices("cuda", [CPU])
    assert (caught.value.code, caught.value.field) == ("no_device", "device")


def test_a_device_that_does_not_work_is_left_for_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As onnxruntime-gpu does without a driver: it lists CUDA, and gives sessions on the processor."""
    bundle = bundles.classification().publish(tmp_path)
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(engine, "providers_of", lambda _: [CPU])
    assert Engine(bundle, device="auto").device == "cpu"
    assert "no device or driver that works" in caplog.text
    with pytest.raises(StoreError, match="No CUDA device works here") as caught:
        Engine(bundle, device="cuda")
    assert caught.value.code == "no_device"


def test_what_a_session_is_created_with() -> None:
    assert providers_of("cpu") == [CPU]
    (name, options), last = providers_of("cuda")
    assert (name, options["use_tf32"], last) == (CUDA, 0, CPU)
    assert providers.runs_on(SimpleNamespace(get_providers=lambda: [CUDA, CPU]), "cuda")  # type: ignore[arg-type]
    assert not providers.runs_on(SimpleNamespace(get_providers=lambda: [CPU]), "cuda")  # type: ignore[arg-type]


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this installation has CUDA")
def test_a_server_without_cuda_says_so(tmp_path: Path) -> None:
    bundles.classification().publish(ModelStore(tmp_path / "models"))
    command = [sys.executable, "-m", "fiberwalk", "serve", "--store", str(tmp_path / "models"), "--port", "0"]
    environment = os.environ | {"FIBERWALK_DEVICE": "cuda"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "install onnxruntime-gpu in place of onnxruntime" in ended.stderr
    assert "Traceback" not in ended.stderr
