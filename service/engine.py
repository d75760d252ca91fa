"""A bundle's networks in ONNX Runtime, resident.

Lengths: S samples, B rows, P weights, O outputs, F features, k latent dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.errors import IntegrityError, StoreError
from model_store.layout import WIDE, has_blocks, laid_out
from model_store.manifest import (
    BASE_FILE,
    BLOCKED_FILE,
    BLOCKS_FILE,
    DECODER_FILE,
    FEATURES_FILE,
    ROW_FILE,
    TRUNK_FILE,
    ParameterSpec,
)
from service.binding import BoundWeights
from service.blocks import computes_the_same
from service.predictive import AnchorSamples
from service.providers import Device, Wanted, possible_devices, providers_of, runs_on

_log = logging.getLogger(__name__)

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Parts = Mapping[str, Float32]
"""The parameters of S weight vectors, each contiguous (S, *shape), by the base network's input."""

_MOST_ROWS = 64
"""Rows of one run: more are no faster, as activations of many samples then outgrow the processor's cache."""

_SET_BYTES = 2**14
"""What a set takes beside its arrays and buffers, in objects of Python and of ONNX Runtime."""


@dataclass(frozen=True)
class WeightSet:
    """S decoded weight vectors as the base network takes them.

    Attributes:
        arrays: the base network's input -> contiguous (S, *shape).
        anchors: (S,), the anchor of every sample.
        base: the arrays, ready to run.
        row: the same for single rows, where the bundle has a network for them.
        beside: bytes that it takes beside the arrays: of what that network takes in another layout, and of the buffers
            of a run and what ONNX Runtime keeps of it.
    """

    arrays: Mapping[str, Float32]
    anchors: Int64
    base: BoundWeights = field(repr=False)
    row: BoundWeights | None = field(repr=False)
    beside: int

    @property
    def samples(self) -> int:
        return len(self.anchors)

    @cached_property
    def members(self) -> AnchorSamples:
        """Which samples are of which anchor."""
        return AnchorSamples.of(self.anchors)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values()) + self.anchors.nbytes + self.beside


class Engine:
    """Decoder, base network and, where there are any, trunk and network for single rows of one bundle."""

    def __init__(self, bundle: Bundle, *, threads: int = 1, device: Wanted = "cpu") -> None:
        """Args:
            bundle: where the files come from; their hashes are checked before ONNX Runtime sees them.
            threads: threads within one operator; 0 is one a core.
            device: where networks are computed; `auto` is a CUDA device where one works.

        Raises:
            IntegrityError: a file changed, or ONNX Runtime cannot run it, or it is not what the manifest says.
            StoreError: a CUDA device is wanted, and does not work here.
        """
        self._network = bundle.manifest.network
        self.device, self._base = _first_that_works(bundle, threads, device)
        on = self.device
        self._decoder = _session(bundle, DECODER_FILE, threads, on)
        self._trunk = _session(bundle, TRUNK_FILE, threads, on) if self._network.trunk_outputs else None
        # Layouts for a processor's caches and vectors are nothing for a CUDA device.
        special = bundle.manifest.files.keys() if on == "cpu" else set[str]()
        self._row = _session(bundle, ROW_FILE, threads, on) if ROW_FILE in special else None
        self._features = features = self._network.trunk_outputs or ["inputs"]
        weights = [p.input for p in self._network.parameters]
        _expect(bundle, DECODER_FILE, self._decoder, ["latents", "anchors"], weights)
        _expect(bundle, BASE_FILE, self._base, [*features, *weights], ["outputs"])
        if self._row is not None:
            wide = [name + WIDE for name in weights]
            _expect(bundle, ROW_FILE, self._row, [*features, *weights, *wide], ["outputs"])
        self._blocks: ort.InferenceSession | None = None
        if {BLOCKED_FILE, BLOCKS_FILE} <= special and has_blocks():
            self._use_blocks(bundle, weights, threads)
        if self._trunk is not None:
            _expect(bundle, TRUNK_FILE, self._trunk, ["inputs"], features)
        taken = [i.shape[1:] for i in self._base.get_inputs() if i.name in features]
        self._row_values = sum(math.prod(n for n in shape if isinstance(n, int)) for shape in taken)
        self._threads = threads
        self._looks: ort.InferenceSession | None = None
        self._looks_at: list[str] = []

    def take_features(self, bundle: Bundle, count: int) -> None:
        """Takes up the network whose features (B, F) detectors look at.

        Raises:
            IntegrityError: it has other than `count` features, or cannot be run.
        """
        self._looks = _session(bundle, FEATURES_FILE, self._threads, self.device)
        self._looks_at = [i.name for i in self._looks.get_inputs()]
        behind = self._features if self._trunk is not None and self._looks_at != ["inputs"] else ["inputs"]
        _expect(bundle, FEATURES_FILE, self._looks, behind, ["features"])
        found = self._looks.get_outputs()[0].shape
        if len(found) != 2 or found[1] != count:
            raise IntegrityError(
                f"{bundle}: {FEATURES_FILE} gives features of shape {found}, and the detectors know {count}; "
                "build and publish it again."
            )

    def features(self, x: Float32) -> Float32:
        """Features (B, F) of encoded rows x (B, ...), by the network of `take_features`."""
        parts = [x[i : i + _MOST_ROWS] for i in range(0, len(x), _MOST_ROWS)]
        return np.concatenate([self._look(p, {} if self._looks_at == ["inputs"] else self._given(p)) for p in parts])

    def _look(self, x: Float32, given: Mapping[str, NDArray[Any]]) -> Float32:
        """Features of rows x, for which the trunk gives this."""
        assert self._looks is not None
        every = {**given, "inputs": x}
        (found,) = self._looks.run(["features"], {name: every[name] for name in self._looks_at})
        return np.asarray(found, dtype=np.float32)

    def _use_blocks(self, bundle: Bundle, weights: list[str], threads: int) -> None:
        """Takes the network in blocks for the base, where it computes the same on this machine."""
        blocked, blocks = (_session(bundle, file, threads, self.device) for file in (BLOCKED_FILE, BLOCKS_FILE))
        made = [o.name for o in blocks.get_outputs()]
        _expect(bundle, BLOCKS_FILE, blocks, weights, [])
        _expect(bundle, BLOCKED_FILE, blocked, [*self._features, *weights, *made], ["outputs"])
        if computes_the_same(self._base, blocked, blocks):
            self._base, self._blocks = blocked, blocks

    def decode(self, latents: Float32, anchors: Int64) -> Parts:
        """The weights of latents (S, k), each decoded by its anchor (S,)."""
        parameters = self._network.parameters
        found = self._decoder.run([p.input for p in parameters], {"latents": latents, "anchors": anchors})
        return {p.input: part.reshape(-1, *p.shape) for p, part in zip(parameters, found, strict=True)}

    def joined(self, parts: Parts) -> Float32:
        """The same as weight vectors (S, P)."""
        found = np.empty((len(next(iter(parts.values()))), self._network.weights), dtype=np.float32)
        for place, p in self._places():
            found[:, place] = parts[p.input].reshape(len(found), -1)
        return found

    def cut(self, weights: Float32) -> Parts:
        """The parameters of weight vectors (S, P)."""
        return {p.input: np.ascontiguousarray(weights[:, at]).reshape(-1, *p.shape) for at, p in self._places()}

    def _places(self) -> Iterator[tuple[slice, ParameterSpec]]:
        """Where each parameter is in a weight vector."""
        for p in self._network.parameters:
            yield slice(p.offset, p.offset + math.prod(p.shape)), p

    def bind(self, parts: Parts, anchors: Int64) -> WeightSet:
        """Lays weights out as the networks take them, once for all later runs."""
        given = dict(parts)
        if self._blocks is not None:
            made = [o.name for o in self._blocks.get_outputs()]
            taken = {i.name: given[i.name] for i in self._blocks.get_inputs()}
            given.update(zip(made, self._blocks.run(made, taken), strict=True))
        arrays = {i.name: given[i.name] for i in self._base.get_inputs() if i.name in given}
        base, row = BoundWeights(self._base, arrays, len(anchors), self.device), None
        beside = _SET_BYTES + 4 * _MOST_ROWS * (self._row_values + len(anchors) * self._network.outputs)
        if self._row is not None:
            own = {
                i.name: laid_out(i.name, i.shape, arrays)
                for i in self._row.get_inputs()
                if i.name not in self._features
            }
            row = BoundWeights(self._row, own, len(anchors))
            beside += sum(a.nbytes for name, a in own.items() if name.endswith(WIDE))
        return WeightSet(arrays, anchors, base, row, beside)

    def outputs(self, weights: WeightSet, x: Float32, run_size: int) -> Iterator[Float32]:
        """Network outputs (S, b, O) for consecutive parts of the encoded rows x (B, ...).

        A part has as many rows as keep S * b within `run_size`, no more than 64, and at least one.
        """
        return (outputs for outputs, _ in self.answers(weights, x, run_size))

    def answers(
        self, weights: WeightSet, x: Float32, run_size: int, look: bool = False
    ) -> Iterator[tuple[Float32, Float32 | None]]:
        """The same, each with the features (b, F) of its rows where they are wanted and detectors look at some."""
        rows = max(min(run_size // weights.samples, _MOST_ROWS), 1)
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            given = self._given(part)
            # By the number of rows alone: another choice would be another answer in its last bits.
            network = weights.row if weights.row is not None and len(part) == 1 else weights.base
            outputs = network.run(given)
            yield outputs, self._look(part, given) if look and self._looks is not None else None

    def _given(self, x: Float32) -> Mapping[str, NDArray[Any]]:
        """What the networks behind the trunk take of rows x: its outputs, or where there is none the rows."""
        if self._trunk is None:
            return {"inputs": x}
        return dict(zip(self._features, self._trunk.run(self._features, {"inputs": x}), strict=True))


def _first_that_works(bundle: Bundle, threads: int, wanted: Wanted) -> tuple[Device, ort.InferenceSession]:
    """The device to compute on, and the base on it."""
    for device in possible_devices(wanted):
        base = _session(bundle, BASE_FILE, threads, device)
        if runs_on(base, device):
            return device, base
        _log.warning("ONNX Runtime has CUDA, but no device or driver that works")
    raise StoreError(
        "No CUDA device works here; see what ONNX Runtime says of its driver and libraries, or choose "
        "FIBERWALK_DEVICE=cpu.",
        code="no_device",
        field="device",
        expected="a CUDA device, its driver, and the CUDA libraries that onnxruntime-gpu names",
        got="none that works",
    )


def _session(bundle: Bundle, file: str, threads: int, device: Device) -> ort.InferenceSession:
    data = bundle.read(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Nothing but what the guard has read: by its first bytes a file might be taken for another format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Idle threads that spin would take the cores from the other models and servers on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(data, options, providers=providers_of(device))
    except Exception as e:  # ONNX Runtime's own classes share no public base
        raise IntegrityError(
            f"{bundle}: ONNX Runtime cannot load {file} ({str(e)[:200]}); build and publish it again."
        ) from e
    # It keeps the file for the case that its providers are changed, which they never are here.
    session._model_bytes = None
    return session


def _expect(bundle: Bundle, file: str, session: ort.InferenceSession, inputs: list[str], outputs: list[str]) -> None:
    """What a graph needs must be among `inputs`, and what is read from it among its outputs."""
    unknown = {i.name for i in session.get_inputs()} - set(inputs)
    missing = set(outputs) - {o.name for o in session.get_outputs()}
    if unknown or missing:
        raise IntegrityError(
            f"{bundle}: {file} is not what the manifest says (unknown inputs {sorted(unknown)}, missing outputs "
            f"{sorted(missing)}); build and publish it again."
        )
