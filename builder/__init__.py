"""The offline builder: from a network and data to a bundle that a server answers from."""

from builder.config import BuildConfig, make_config
from builder.entry import build
from builder.pipeline import BuildResult, run_build

__all__ = ["BuildConfig", "BuildResult", "build", "make_config", "run_build"]
