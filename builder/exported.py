"""Exported files as ONNX Runtime runs them, and what is said where it cannot.

Lengths: S weight vectors, P random weights, B rows, O outputs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from builder.mixing import Mixture
from builder.network import FunctionalNetwork
from builder.onnx_graph import INPUTS, OUTPUTS
from model_store.errors import ConfigError
from model_store.layout import laid_out
from model_store.manifest import BASE_FILE, BLOCKED_FILE, BLOCKS_FILE, MIXING, ROW_FILE, TRUNK_FILE, NetworkSpec

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ExportedNetwork:
    """The network's files and what the manifest says of them; `trunk` is None where the base does everything, `row`
    where the base serves single rows too, `blocked` and `blocks` where there is no faster layout, and `mixture` where
    the base takes all weights."""

    spec: NetworkSpec
    base: bytes
    trunk: bytes | None = None
    row: bytes | None = None
    blocked: bytes | None = None
    blocks: bytes | None = None
    mixture: Mixture | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """Those of a bundle, by name."""
        files = {
            BASE_FILE: self.base,
            TRUNK_FILE: self.trunk,
            ROW_FILE: self.row,
            BLOCKED_FILE: self.blocked,
            BLOCKS_FILE: self.blocks,
        }
        return {name: data for name, data in files.items() if data is not None}


class Session:
    """An ONNX file in ONNX Runtime, on one core."""

    def __init__(self, data: bytes) -> None:
        # Read by ONNX Runtime when it is imported: from 1.29 on it sends telemetry unless this is set.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._outputs = [o.name for o in self._session.get_outputs()]
        self.inputs: dict[str, list[object]] = {i.name: i.shape for i in self._session.get_inputs()}

    def run(self, feeds: dict[str, NDArray[np.generic]]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


class Runner:
    """Exported files, ready to run."""

    def __init__(self, exported: ExportedNetwork, network: FunctionalNetwork) -> None:
        self._network, self._mixture = network, exported.mixture
        try:
            self._base = Session(exported.base)
            self._trunk = Session(exported.trunk) if exported.trunk is not None else None
            self._row = Session(exported.row) if exported.row is not None else None
            self._blocked = Session(exported.blocked) if exported.blocked is not None else None
            self._blocks = Session(exported.blocks) if exported.blocks is not None else None
        except Exception as e:  # ONNX Runtime's errors have no public base class
            raise refusal("network", f"ONNX Runtime does not take the file: {reason(e)}") from e

    def __call__(self, thetas: Tensor, x: Tensor, coefficients: Tensor | None = None) -> list[Array]:
        """Outputs (S, B, O) of the base, of the file in blocks and, for one row, of the row's, where there are any.

        Args:
            thetas: weights (S, P).
            x: inputs (B, ...).
            coefficients: (S, C) of the weights in the decoder's head, where the base mixes some.
        """
        weights = self._network.unflatten(thetas.detach().cpu())
        feeds: dict[str, NDArray[np.generic]] = {INPUTS: x.detach().cpu().numpy()}
        try:
            if self._trunk is not None:
                feeds = dict(self._trunk.run(feeds))
            mixture = self._mixture
            parameters = [p for p in self._network.parameters if mixture is None or p.input not in mixture.heads]
            own = {p.input: weights[p.name].contiguous().numpy() for p in parameters}
            if mixture is not None and coefficients is not None:
                own[MIXING] = (coefficients @ mixture.shares).numpy()
            found = [self._base.run(feeds | own)[OUTPUTS]]
            if self._blocked is not None and self._blocks is not None:
                laid = self._blocks.run({n: own[n] for n in self._blocks.inputs})
                given = {n: array for n, array in (feeds | own | laid).items() if n in self._blocked.inputs}
                found.append(self._blocked.run(given)[OUTPUTS])
            if self._row is not None and len(x) == 1:
                given = {n: feeds[n] if n in feeds else laid_out(n, s, own) for n, s in self._row.inputs.items()}
                found.append(self._row.run(given)[OUTPUTS])
            return found
        except Exception as e:  # as above
            where = f"{thetas.shape[0]} weight vectors and {x.shape[0]} rows"
            raise refusal("network", f"ONNX Runtime fails on {where}: {reason(e)}") from e


def refusal(what: str, why: str) -> ConfigError:
    """A part of the model that cannot be exported."""
    return ConfigError(
        f"The {what} cannot be exported to ONNX: {why}. Replace that part by layers that ONNX knows, in "
        "float32 throughout, without branches on values and without fixed batch sizes; the number of rows is "
        "x.shape[0].",
        code="export_failed",
        field="network",
        got=why,
    )


def reason(error: BaseException) -> str:
    """The first line of the error at the root of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(". ")[:300]
