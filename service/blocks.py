"""Whether this machine runs a network in the layout in which ONNX Runtime convolves fastest.

The layout is one of ONNX Runtime's own, of blocks as long as a processor's vectors.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import onnxruntime as ort

_log = logging.getLogger(__name__)

_SAMPLES, _ROWS = 2, 3
_TOLERANCE = 1e-3
"""Largest difference from the base, relative to the largest output: layouts that do not fit differ by about 1."""


def computes_the_same(base: ort.InferenceSession, blocked: ort.InferenceSession, blocks: ort.InferenceSession) -> bool:
    """Whether the network in blocks computes what the base does, tried with random numbers.

    Args:
        base: `base.onnx`.
        blocked: `blocked.onnx`.
        blocks: `blocks.onnx`.
    """
    rng = np.random.default_rng(0)
    given = {}
    for i in base.get_inputs():
        free, *shape = i.shape
        numbers = rng.standard_normal([_SAMPLES if free == "S" else _ROWS, *shape], dtype=np.float32)
        # Of weights so that sums of products stay about as large as what they are of.
        given[i.name] = numbers / np.float32(math.prod(shape[1:]) ** 0.5) if free == "S" else numbers
    try:
        (want,) = base.run(["outputs"], given)
        names = [o.name for o in blocks.get_outputs()]
        own = dict(zip(names, blocks.run(names, {i.name: given[i.name] for i in blocks.get_inputs()}), strict=True))
        (found,) = blocked.run(["outputs"], {i.name: {**given, **own}[i.name] for i in blocked.get_inputs()})
    except Exception as e:  # ONNX Runtime's own classes share no public base
        _log.warning("the network in blocks does not run here: %s", str(e)[:200])
        return False
    same = found.shape == want.shape and bool(np.abs(found - want).max() <= _TOLERANCE * np.abs(want).max())
    if not same:
        _log.warning("the network in blocks computes something else here, and is not used")
    return same
