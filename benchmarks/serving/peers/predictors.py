"""What the peers compute for a batch of rows: mean and variance of class probabilities, as their users write it.

One thread each, as the server of this project has. Lengths: S = 32 samples, B rows, C = 10 classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import dropout

from benchmarks.serving.models import CASES, deterministic

Predict = Callable[[NDArray[np.float32]], dict[str, list[list[float]]]]

NETWORK: Final = "MLP 784-256-128-10"
SAMPLES: Final = 32
_MEMBERS = 10
_LAPLACE_ROWS = 512


def _modules(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [CASES[NETWORK].make().eval() for _ in range(count)]


def _told(mean: Any, variance: Any) -> dict[str, list[list[float]]]:
    return {"mean": mean.tolist(), "variance": variance.tolist()}


def plain() -> Predict:
    """One network without samples: what people serve today. Its variance is that of a draw from its probabilities."""
    (module,) = _modules(1)

    @torch.inference_mode()
    def predict(x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        p = module(torch.from_numpy(x)).softmax(-1)
        return _told(p, p * (1 - p))

    return predict


def batched() -> Predict:
    """32 networks as one, by `torch.func.vmap`."""
    modules = _modules(SAMPLES)
    weights, buffers = stack_module_state(modules)
    base = modules[0].to("meta")

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(base, (weights, buffers), (x,))
        return found.softmax(-1)

    every = vmap(one, in_dims=(0, 0, None))
    # A module can be given weights in one thread at a time: two requests at once end in an error otherwise.
    alone = threading.Lock()

    @torch.inference_mode()
    def predict(x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        with alone:
            p = every(weights, buffers, torch.from_numpy(x))
        return _told(p.mean(0), p.var(0, unbiased=False))

    return predict


def laplace() -> Predict:
    """laplace-torch: last layer, full, the linearised predictive with the probit link."""
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    (module,) = _modules(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_LAPLACE_ROWS, *CASES[NETWORK].shape, generator=generator)
    y = torch.randint(10, (_LAPLACE_ROWS,), generator=generator)
    found = Laplace(module, "classification", subset_of_weights="last_layer", hessian_structure="full")
    found.fit(DataLoader(TensorDataset(x, y), batch_size=128))

    def predict(x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        with torch.no_grad():
            p = cast(Tensor, found(torch.from_numpy(x), pred_type="glm", link_approx="probit"))
        return _told(p, p * (1 - p))

    return predict


def ensemble() -> Predict:
    """Ten networks in ONNX Runtime, one after the other."""
    sessions: list[ort.InferenceSession] = [deterministic(module, CASES[NETWORK]) for module in _modules(_MEMBERS)]

    def predict(x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        outputs = np.stack([session.run(["outputs"], {"inputs": x})[0] for session in sessions])
        p = np.exp(outputs - outputs.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return _told(p.mean(0), p.var(0))

    return predict


def mc_dropout() -> Predict:
    """32 dropout masks as one batch."""
    (module,) = _modules(1)
    layers = list(module.children())

    @torch.inference_mode()
    def predict(x: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        h = torch.from_numpy(x).repeat(SAMPLES, 1)
        for layer in layers:
            h = dropout(layer(h), 0.05) if isinstance(layer, nn.ReLU) else layer(h)
        p = h.softmax(-1).reshape(SAMPLES, len(x), -1)
        return _told(p.mean(0), p.var(0, unbiased=False))

    return predict


PREDICTORS: Final[dict[str, Callable[[], Predict]]] = {
    "plain": plain,
    "batched": batched,
    "laplace": laplace,
    "ensemble": ensemble,
    "mc_dropout": mc_dropout,
}
