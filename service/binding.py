"""Weights bound to a network in ONNX Runtime, so that a run hands over nothing but its rows.

Lengths: S samples, B rows, O outputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.providers import Device

Float32 = NDArray[np.float32]


class BoundWeights:
    """The weights of one set as inputs of one network, checked and wrapped once for all runs. Thread-safe."""

    def __init__(
        self, session: ort.InferenceSession, weights: Mapping[str, Float32], samples: int, device: Device = "cpu"
    ) -> None:
        """Args:
        session: the network, with the output `outputs` (S, B, O).
        weights: the inputs that stay the same from run to run, contiguous; on the processor they are not copied.
        samples: S.
        device: where they are to lie, that of the session.
        """
        self._session, self._samples, self._device = session, samples, device
        self._given, self._weights = weights, dict[str, ort.OrtValue]()
        self._lock = Lock()
        (output,) = (o for o in session.get_outputs() if o.name == "outputs")
        self._outputs = int(output.shape[-1])
        # As many as ever ran at the same time.
        self._idle: deque[_Binding] = deque()

    def run(self, rows: Mapping[str, NDArray[Any]]) -> Float32:
        """Outputs (S, B, O) for the other inputs (B, ...)."""
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = _Binding(self._session, self._wrapped())
        found = binding.run(rows, (self._samples, len(next(iter(rows.values()))), self._outputs))
        self._idle.append(binding)
        return found

    def _wrapped(self) -> Mapping[str, ort.OrtValue]:
        """The weights as ONNX Runtime takes them: when first needed, as one of a set's two networks may never be."""
        with self._lock:
            if not self._weights:
                wrap = ort.OrtValue.ortvalue_from_numpy
                self._weights = {name: wrap(array, self._device, 0) for name, array in self._given.items()}
            return self._weights


class _Binding:
    """One run at a time. Its buffers serve all runs until the number of rows changes."""

    def __init__(self, session: ort.InferenceSession, weights: Mapping[str, ort.OrtValue]) -> None:
        self._session = session
        self._binding = session.io_binding()
        for name, value in weights.items():
            self._binding.bind_ortvalue_input(name, value)
        self._rows: dict[str, NDArray[Any]] = {}
        self._outputs: Float32 = np.empty(0, dtype=np.float32)

    def run(self, rows: Mapping[str, NDArray[Any]], shape: tuple[int, int, int]) -> Float32:
        if self._outputs.shape != shape:
            self._rows = {name: np.empty_like(array, order="C") for name, array in rows.items()}
            self._outputs = np.empty(shape, dtype=np.float32)
            for name, array in self._rows.items():
                self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            self._binding.bind_ortvalue_output("outputs", ort.OrtValue.ortvalue_from_numpy(self._outputs))
        for name, array in rows.items():
            np.copyto(self._rows[name], array)
        self._session.run_with_iobinding(self._binding)
        return self._outputs.copy()
