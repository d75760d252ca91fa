"""Where ONNX Runtime computes: the processor, or a CUDA device."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

import onnxruntime as ort

from model_store.errors import StoreError

Wanted = Literal["auto", "cpu", "cuda"]
Device = Literal["cpu", "cuda"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
# With TF32 a product has 10 bits of its factors: answers would differ from a processor's in their fourth digit.
_OF_CUDA: Final[dict[str, Any]] = {"device_id": 0, "use_tf32": 0}


def possible_devices(wanted: Wanted, available: Collection[str] | None = None) -> list[Device]:
    """Devices to try, the first first. That one is available here does not say yet that it works.

    Args:
        wanted: `FIBERWALK_DEVICE`.
        available: ONNX Runtime's providers, by default those of the package that is installed.

    Raises:
        StoreError: CUDA is wanted, and the package has none.
    """
    found = ort.get_available_providers() if available is None else available
    if wanted == "cpu" or (wanted == "auto" and CUDA not in found):
        return ["cpu"]
    if CUDA not in found:
        raise StoreError(
            "This installation of ONNX Runtime has no CUDA; install onnxruntime-gpu in place of onnxruntime, or choose "
            "FIBERWALK_DEVICE=cpu.",
            code="no_device",
            field="device",
            expected="onnxruntime-gpu",
            got="onnxruntime",
        )
    return ["cuda"] if wanted == "cuda" else ["cuda", "cpu"]


def providers_of(device: Device) -> list[str | tuple[str, dict[str, Any]]]:
    """What a session is created with."""
    return [CPU] if device == "cpu" else [(CUDA, _OF_CUDA), CPU]


def runs_on(session: ort.InferenceSession, device: Device) -> bool:
    """Whether a session got what it was created for: without a driver or its libraries ONNX Runtime goes to the
    processor without an error."""
    return device == "cpu" or CUDA in session.get_providers()
