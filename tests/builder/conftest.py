"""Settings of the builder's tests."""

from __future__ import annotations

import torch

# The networks are so small that threads would only wait for each other.
torch.set_num_threads(1)
