"""Settings and shared results of the builder's tests."""

from __future__ import annotations

import pytest
import torch

from tests.builder.walked import Walked, walk_wave

# The networks are so small that threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def walked() -> Walked:
    """Fibers of a small regression; nobody changes them."""
    return walk_wave()
