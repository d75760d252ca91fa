"""Weight space, as far as symmetries leave it comparable.

Units of a hidden layer may swap places, and with tanh change the sign of all their weights, without any change of the
function; so single weights mean nothing, while what is pooled over the units of a layer, and even in the weights, does.

Lengths: S weight vectors, P weights, H hidden units, G points, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from builder.network import FunctionalNetwork

_LEAST = 1e-30


def weight_moments(network: FunctionalNetwork, thetas: Tensor, precision: float) -> dict[str, float]:
    """Of samples thetas (S, P) with a prior of this precision.

    `norm` and `norm_std`: mean and standard deviation of the weight vector's length, in prior radii `sqrt(P /
    precision)`. For each parameter `second.NAME`, its mean square over the prior's variance, and `kurtosis.NAME`, its
    fourth moment about zero over the square of the second (a Gaussian has 3). For a network with one hidden layer
    `in_out`: the correlation over samples and units of the square length of a unit's incoming and outgoing weights.
    """
    thetas = thetas.double()
    norm = thetas.norm(dim=1) * (precision / thetas.shape[1]) ** 0.5
    found = {"norm": float(norm.mean()), "norm_std": float(norm.std(unbiased=False))}
    named = network.unflatten(thetas)
    for name, values in named.items():
        second = values.square().mean()
        found[f"second.{name}"] = float(second * precision)
        found[f"kurtosis.{name}"] = float(values.pow(4).mean() / second.square().clamp(min=_LEAST))
    matrices = [v for v in named.values() if v.ndim == 3]
    if len(matrices) == 2:
        inward, outward = matrices[0].square().sum(2).flatten(), matrices[1].square().sum(1).flatten()
        found["in_out"] = float(torch.corrcoef(torch.stack([inward, outward]))[0, 1])
    return found


def function_correlations(outputs: Tensor, reference: Tensor) -> dict[str, float]:
    """Second moments of the functions (S, G) across points, beside the reference's (S', G).

    `correlation`: mean absolute difference of the correlation of function values, over pairs of points.
    `covariance`: Frobenius norm of the covariances' difference over the reference's.
    """
    f, g = outputs.double().T, reference.double().T
    pairs = ~torch.eye(len(f), dtype=torch.bool)
    apart = (torch.nan_to_num(torch.corrcoef(f)) - torch.corrcoef(g)).abs()[pairs]
    wanted = torch.cov(g)
    return {
        "correlation": float(apart.mean()),
        "covariance": float((torch.cov(f) - wanted).norm() / wanted.norm()),
    }
