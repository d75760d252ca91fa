"""A peer behind LitServe, one worker: as it comes, or with its batching.

python -m benchmarks.serving.peers.with_litserve BATCH PORT
"""

# No annotations as text here: LitServe reads them to learn what a request is.

import sys
from typing import Any

import litserve
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving.peers.predictors import batched

_BATCH_SECONDS = 0.005


class Samples(litserve.LitAPI):  # type: ignore[misc]
    """32 samples of each row by `torch.func.vmap`."""

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.compute = batched()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.float32]:
        return np.asarray(request["inputs"], dtype=np.float32)

    def batch(self, inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate(inputs)

    def predict(self, x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        return self.compute(x)

    def unbatch(self, output: dict[str, list[list[float]]]) -> list[dict[str, list[list[float]]]]:
        rows = zip(output["mean"], output["variance"], strict=True)
        return [{"mean": [mean], "variance": [variance]} for mean, variance in rows]

    def encode_response(self, output: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
        return output


def main() -> None:
    """Serves until it is ended."""
    batch, port = (int(argument) for argument in sys.argv[1:])
    more = {"max_batch_size": batch, "batch_timeout": _BATCH_SECONDS} if batch > 1 else {}
    server = litserve.LitServer(Samples(**more), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
