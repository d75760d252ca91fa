"""A peer behind BentoML, one worker.

python -m benchmarks.serving.peers.with_bentoml PORT
"""

from __future__ import annotations

import os
import sys

import bentoml
import numpy as np
import torch

from benchmarks.serving.peers.predictors import batched


@bentoml.service(workers=1, traffic={"timeout": 60})
class Samples:
    """32 samples of each row by `torch.func.vmap`."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.compute = batched()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, inputs: list[list[float]]) -> dict[str, list[list[float]]]:
        return self.compute(np.asarray(inputs, dtype=np.float32))


def main() -> None:
    """Serves until it is ended."""
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.serving.peers.with_bentoml:Samples"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])


if __name__ == "__main__":
    main()
