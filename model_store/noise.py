"""How large a regression's noise is, row by row. Lengths: B rows, d encoded inputs, H hidden units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_PREFIX: Final = "noise_"
_LARGEST: Final = 10.0
"""Of |g|: beyond it noise is nothing, or everything."""


@dataclass(frozen=True)
class NoiseShape:
    """The noise variance of a row in shares of `RegressionCalibration.noise_std`'s square: `exp(g(x))`, where g is a
    network with one hidden layer of tanh units.

    Attributes:
        low, high: (d,) encoded inputs beyond which one counts as that far: nothing is known of noise out there.
        hidden: (d + 1, H), weights of the hidden units and, last, their biases.
        output: (H + 1,) weights of the output and, last, its bias.
        ends: (2,) least and largest g.
    """

    low: Float64
    high: Float64
    hidden: Float64
    output: Float64
    ends: Float64

    def relative_variance(self, x: NDArray[Any]) -> Float64:
        """(B,) for encoded rows x (B, d)."""
        # In place, and without np.clip: it is asked for every request, and often for one row.
        near = np.maximum(x, self.low)
        np.minimum(near, self.high, out=near)
        units = np.dot(near, self.hidden[:-1])
        units += self.hidden[-1]
        found: Float64 = np.dot(np.tanh(units, out=units), self.output[:-1])
        found += self.output[-1]
        np.maximum(found, self.ends[0], out=found)
        np.minimum(found, self.ends[1], out=found)
        return np.exp(found, out=found)

    def arrays(self) -> dict[str, Float64]:
        """As a bundle keeps it."""
        return {_PREFIX + name: np.ascontiguousarray(values, np.float64) for name, values in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> NoiseShape | None:
        """From a bundle's arrays, for rows of `width` encoded inputs; None where they are not what it keeps."""
        names = list(cls.__dataclass_fields__)
        found = [arrays.get(_PREFIX + name) for name in names]
        if any(v is None or v.dtype != np.float64 or not np.isfinite(v).all() for v in found):
            return None
        shape = cls(*found)  # type: ignore[arg-type]  # none is None
        units = shape.output.size - 1
        wanted = [(width,), (width,), (width + 1, units), (units + 1,), (2,)]
        fits = [v.shape for v in vars(shape).values()] == wanted and units > 0
        return (
            shape
            if fits and (shape.low <= shape.high).all() and -_LARGEST <= shape.ends[0] <= shape.ends[1] <= _LARGEST
            else None
        )
