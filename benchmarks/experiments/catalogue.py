"""The experiments by name."""

from __future__ import annotations

from typing import Final

from benchmarks.experiments import (
    ablation,
    autoencoders,
    claims,
    connectivity,
    dispersion,
    latents,
    noise,
    ranks,
    snelson,
)
from benchmarks.experiments.experiment import Experiment

EXPERIMENTS: Final[dict[str, Experiment]] = {
    "snelson": snelson.EXPERIMENT,
    "ablation": ablation.EXPERIMENT,
    "latents": latents.EXPERIMENT,
    "ranks": ranks.EXPERIMENT,
    "connectivity": connectivity.EXPERIMENT,
    "autoencoders": autoencoders.EXPERIMENT,
    "dispersion": dispersion.EXPERIMENT,
    "noise": noise.EXPERIMENT,
    "claims": claims.EXPERIMENT,
}
