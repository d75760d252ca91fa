"""The offline builder: from a network and data to a bundle that a server answers from."""

import builder.runtime  # noqa: F401  first: it sets what must be set before torch is imported
from builder.config import BuildConfig, make_config
from builder.entry import build
from builder.pipeline import BuildResult, run_build

__all__ = ["BuildConfig", "BuildResult", "build", "make_config", "run_build"]
