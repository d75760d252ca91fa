"""A bundle's networks in ONNX Runtime, resident.

Lengths: S samples, B rows, P weights, O outputs, k latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.errors import IntegrityError
from model_store.manifest import BASE_FILE, DECODER_FILE, TRUNK_FILE
from service.predictive import AnchorSamples

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class WeightSet:
    """S decoded weight vectors as the base network takes them.

    Attributes:
        arrays: the base network's input -> contiguous (S, *shape).
        anchors: (S,), the anchor of every sample.
    """

    arrays: Mapping[str, Float32]
    anchors: Int64

    @property
    def samples(self) -> int:
        return len(self.anchors)

    @cached_property
    def members(self) -> AnchorSamples:
        """Which samples are of which anchor."""
        return AnchorSamples.of(self.anchors)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values()) + self.anchors.nbytes


class Engine:
    """Decoder, base network and, where there is one, trunk of one bundle."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Args:
            bundle: where the files come from; their hashes are checked before ONNX Runtime sees them.
            threads: threads within one operator; 0 is one a core.

        Raises:
            IntegrityError: a file changed, or ONNX Runtime cannot run it, or it is not what the manifest says.
        """
        self._network = bundle.manifest.network
        self._decoder = _session(bundle, DECODER_FILE, threads)
        self._base = _session(bundle, BASE_FILE, threads)
        self._trunk = _session(bundle, TRUNK_FILE, threads) if self._network.trunk_outputs else None
        features = self._network.trunk_outputs or ["inputs"]
        self._base_inputs = [i.name for i in self._base.get_inputs()]
        _expect(bundle, DECODER_FILE, self._decoder, ["latents", "anchors"], ["weights"])
        _expect(bundle, BASE_FILE, self._base, [*features, *(p.input for p in self._network.parameters)], ["outputs"])
        if self._trunk is not None:
            _expect(bundle, TRUNK_FILE, self._trunk, ["inputs"], features)

    def decode(self, latents: Float32, anchors: Int64) -> Float32:
        """Weights (S, P) of latents (S, k), each decoded by its anchor (S,)."""
        (weights,) = self._decoder.run(["weights"], {"latents": latents, "anchors": anchors})
        found: Float32 = weights
        return found

    def split(self, weights: Float32, anchors: Int64) -> WeightSet:
        """Cuts weights (S, P) into the base network's inputs, once for all later runs."""
        arrays: dict[str, Float32] = {}
        for p in self._network.parameters:
            part = weights[:, p.offset : p.offset + math.prod(p.shape)]
            if p.input in self._base_inputs:
                arrays[p.input] = np.ascontiguousarray(part).reshape(-1, *p.shape)
        return WeightSet(arrays, anchors)

    def outputs(self, weights: WeightSet, x: Float32, run_size: int) -> Iterator[Float32]:
        """Network outputs (S, b, O) for consecutive parts of the encoded rows x (B, ...).

        A part has as many rows as keep S * b within `run_size`, and at least one.
        """
        rows = max(run_size // weights.samples, 1)
        for start in range(0, len(x), rows):
            yield self._forward(weights, x[start : start + rows])

    def _forward(self, weights: WeightSet, x: Float32) -> Float32:
        if self._trunk is None:
            features = {"inputs": x}
        else:
            names = self._network.trunk_outputs
            features = dict(zip(names, self._trunk.run(names, {"inputs": x}), strict=True))
        (outputs,) = self._base.run(["outputs"], {**features, **weights.arrays})
        found: Float32 = outputs
        return found


def _session(bundle: Bundle, file: str, threads: int) -> ort.InferenceSession:
    data = bundle.read(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin would take the cores from the other models and servers on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's own classes share no public base
        raise IntegrityError(
            f"{bundle}: ONNX Runtime cannot load {file} ({str(e)[:200]}); build and publish it again."
        ) from e


def _expect(bundle: Bundle, file: str, session: ort.InferenceSession, inputs: list[str], outputs: list[str]) -> None:
    """What a graph needs must be among `inputs`, and what is read from it among its outputs."""
    unknown = {i.name for i in session.get_inputs()} - set(inputs)
    missing = set(outputs) - {o.name for o in session.get_outputs()}
    if unknown or missing:
        raise IntegrityError(
            f"{bundle}: {file} is not what the manifest says (unknown inputs {sorted(unknown)}, missing outputs "
            f"{sorted(missing)}); build and publish it again."
        )
