"""The offline builder: from a network and data to a bundle that a server answers from."""

import os

# Threads that wait must sleep, not spin: on a busy machine spinning made small networks ten times slower.
# OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from builder.config import BuildConfig, make_config
from builder.entry import build
from builder.pipeline import BuildResult, run_build

__all__ = ["BuildConfig", "BuildResult", "build", "make_config", "run_build"]
