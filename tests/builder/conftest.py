"""Settings and shared results of the builder's tests."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.builder.walked import Walked, walk_wave

# The networks are so small that threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def walked() -> Walked:
    """Fibers of a small regression; nobody changes them."""
    return walk_wave()


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch reads its library of ONNX operators anew at each export, which takes a second; it is always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
