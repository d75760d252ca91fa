"""Stand-ins for unfamiliar rows, as a build has none: training rows spoilt in ways that anyone would call unfamiliar.

How well the detector tells them from familiar rows says what to expect of it at best: real unfamiliar rows may lie
nearer. Lengths: n training rows, m stand-ins.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.detection import epistemic_score, samples_served
from builder.predictive import sample_outputs
from builder.trained import Trained
from model_store.detection import Detectors, Unfamiliarity
from model_store.encoding import TableEncoder
from model_store.manifest import InputSpec, TableInput

_MOST: Final = 1000
SHIFT: Final = 3.0
"""By how many standard deviations rows are shifted."""


def stand_ins(inputs: InputSpec, x: NDArray[np.float32], seed: int) -> dict[str, NDArray[np.float32]]:
    """Encoded stand-ins (m, ...) by what was done to encoded training rows x (n, ...).

    A single column shuffled is what it was, and categories cannot be shifted: such kinds are left out.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(x))[:_MOST])
    groups = _columns(inputs, x)
    flat = x.reshape(len(x), -1)
    found: dict[str, NDArray[np.float32]] = {}
    if len(groups) > 1:
        shuffled = flat[chosen]
        for group, _ in groups:
            others = rng.permutation(len(x))[: len(chosen), None]
            shuffled[:, group] = flat[others, group]
        found["columns shuffled"] = shuffled.reshape(-1, *x.shape[1:])
    numeric = np.array([at for group, is_number in groups if is_number for at in group], dtype=np.int64)
    if len(numeric):
        shifted = flat[chosen]
        sign = rng.choice([-1.0, 1.0], size=(len(chosen), len(numeric)))
        shifted[:, numeric] += (SHIFT * sign * flat[:, numeric].std(axis=0)).astype(np.float32)
        found["rows shifted"] = shifted.reshape(-1, *x.shape[1:])
    return found


def _columns(inputs: InputSpec, x: NDArray[np.float32]) -> list[tuple[list[int], bool]]:
    """Where in an encoded row each column lies, and whether it is a number."""
    if not isinstance(inputs, TableInput):
        return [([at], True) for at in range(x[:1].size)]
    encoder = TableEncoder(inputs)
    return [(list(range(g.start, g.stop)), bool(encoder.numeric[g.start])) for g in encoder.groups]


def stand_in_scores(trained: Trained) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The score (m,) that a server gives to each stand-in, by kind, and the kinds that the network cannot take: shifted
    codes of an embedding are none."""
    made = stand_ins(trained.dataset.inputs, trained.x.cpu().numpy(), trained.config.seed)
    taken = {kind: rows for kind, rows in made.items() if takes(trained, torch.from_numpy(rows))}
    scores = {kind: judged(trained, torch.from_numpy(rows).to(trained.x.device)).score for kind, rows in taken.items()}
    return scores, [kind for kind in made if kind not in taken]


def takes(trained: Trained, x: Tensor) -> bool:
    """Whether the network gives numbers for encoded rows x (m, ...). Tried on the CPU: a code that is not there leaves
    a CUDA device unusable."""
    network = trained.network
    if trained.x.device.type != "cpu":
        network = copy.deepcopy(network).to("cpu")
    try:
        outputs = sample_outputs(network, trained.anchors[:1].cpu(), x.cpu())
    except Exception:  # the network is the user's own code, and may raise anything
        return False
    return bool(outputs.isfinite().all())


def judged(trained: Trained, x: Tensor) -> Unfamiliarity:
    """How unfamiliar encoded rows x (B, ...) are, as a server finds them by default."""
    detection, plan = trained.detection, trained.plans["predict"]
    detectors = Detectors(trained.dataset.inputs, detection.described, detection.arrays)
    epistemic = features = None
    if detectors.ask_the_network:
        _, drawn = samples_served(trained.posterior, plan)
        regression = trained.y.is_floating_point()
        epistemic = epistemic_score(trained.posterior, drawn, trained.calibrated.spread, x, regression)
    if detectors.features:
        features = trained.features.served(x)
        assert features is not None  # or there would be no such detectors
    return detectors.judge(x.cpu().numpy(), epistemic, features.cpu().numpy() if features is not None else None)
