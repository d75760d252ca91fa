"""The posterior predictive as the builder scores it: mixtures over weight samples, and their figures.

Always the averaged predictive distribution is scored, never single samples. Lengths: S samples, B rows, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from builder.likelihood import probabilities
from builder.network import FunctionalNetwork
from builder.runtime import values_at_once


def sample_outputs(network: FunctionalNetwork, weights: Tensor, x: Tensor) -> Tensor:
    """Outputs (S, B, O) of weight samples (S, P) without gradients, in pieces that fit the memory."""
    if not len(x):
        # Not every network takes no rows: one that flattens what it is given cannot tell to what width.
        return sample_outputs(network, weights[:1], x.new_zeros(1, *x.shape[1:]))[:, :0].expand(len(weights), -1, -1)
    parts = torch.split(x, rows_at_once(network, len(weights), x))

    def of(samples: slice, own: FunctionalNetwork) -> Tensor:
        return torch.cat([own.batched(weights[samples], part) for part in parts], dim=1)

    return torch.cat(network.in_parts(len(weights), x.device, of))


def rows_at_once(network: FunctionalNetwork, samples: int, x: Tensor) -> int:
    """How many of the rows x (n, ...) so many weight samples may take at once; samples in turn share the memory."""
    if network.in_turn(x.device):
        return max(1, values_at_once(x.device.type) // network.activations(x[:1]))
    return max(1, values_at_once() // (samples * network.activations(x[:1])))


def gaussian_mixture_nll(
    mean: Tensor, y: Tensor, noise_var: Tensor | float, log_weight: Tensor | None = None
) -> Tensor:
    """-log sum_s w_s N(y; mean_s, noise_var), (B,), for means (S, B); equal weights by default."""
    variance = torch.as_tensor(noise_var, dtype=mean.dtype, device=mean.device)
    log = -0.5 * (y - mean) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)
    weight = (
        log_weight if log_weight is not None else torch.full((len(mean),), -math.log(len(mean)), device=mean.device)
    )
    return -torch.logsumexp(log + weight[:, None], 0)


def mixture_probabilities(logits: Tensor, temperature: float, log_weight: Tensor | None = None) -> Tensor:
    """Class probabilities (B, C) averaged over samples, for logits (S, B, C)."""
    p = probabilities(logits / temperature)
    if log_weight is None:
        return p.mean(0)
    return (p * log_weight.exp()[:, None, None]).sum(0)


def contracted(logits: Tensor, dispersion: float, log_weight: Tensor | None = None) -> Tensor:
    """Logits (S, B, C) at this share of their distance from their mean over samples.

    An average of probabilities that are right one by one is less sure than it should be, the more so the further apart
    they are (Ranjan and Gneiting 2010, "Combining probability forecasts"), and one temperature cannot mend it for
    likely and for unlikely classes alike. At 1 samples are averaged as they are; towards 0 the average becomes the
    softmax of the mean logits (the logarithmic pool, Genest and Zidek 1986). In between, what samples say of where
    they differ stays, and all that is answered is of the same samples.
    """
    if dispersion == 1:
        return logits
    if log_weight is None:
        mean = logits.mean(0, keepdim=True)
    else:
        mean = (logits * log_weight.exp()[:, None, None]).sum(0, keepdim=True)
    return torch.lerp(mean, logits, dispersion)


def answer_of(outputs: Tensor, spread: Tensor | float, regression: bool) -> tuple[Tensor, Tensor]:
    """What is answered of outputs (S, B, O): mean and variance (B,) of a regression, or probabilities (B, C) and their
    logarithms; `spread` is the noise standard deviation, one or (B,), or the temperature."""
    outputs = outputs.double()
    if regression:
        variance, mean = torch.var_mean(outputs[..., 0], 0, unbiased=False)
        return mean, variance + spread**2
    return answer_of_probabilities(mixture_probabilities(outputs, float(spread)))


def answer_of_probabilities(p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (B, C) and their logarithms, as `answer_of` gives them."""
    return p, p.clamp(min=1e-30).log()


def answers_apart(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], regression: bool) -> float:
    """Mean over rows of KL(first || second), in nats, of two answers as `answer_of` gives them: the NLL that the second
    loses where the first is right."""
    if not regression:
        return float(torch.xlogy(first[0], first[0]).sub(first[0] * second[1]).sum(-1).mean())
    (mean, variance), (other, wider) = first, second
    return float(0.5 * ((wider / variance).log() + (variance + (mean - other).square()) / wider - 1).mean())


def categorical_nll(p: Tensor, y: Tensor) -> Tensor:
    """-log p_y (B,) for probabilities (B, C)."""
    return -p.gather(1, y[:, None]).squeeze(1).clamp(min=1e-12).log()


def expected_calibration_error(p: Tensor, y: Tensor, bins: int = 15) -> float:
    """ECE of the top class: mean over equal-width confidence bins of |accuracy - confidence| (Guo et al. 2017)."""
    confidence, label = p.max(1)
    correct = (label == y).to(p.dtype)
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=p.dtype, device=p.device).index_add(0, place, correct - confidence)
    return float(gap.abs().sum() / len(y))


def conformal_quantile(scores: Tensor, level: float) -> float:
    """The ceil((n+1) level)-th smallest of n sorted scores; beyond n, the larger of the last score and the
    Gaussian quantile (Vovk et al. 2005)."""
    n = len(scores)
    # Whole numbers must not be rounded up for the last bit of a product.
    index = max(math.ceil((n + 1) * level - 1e-9), 1)
    if index <= n:
        return float(scores[index - 1])
    gaussian = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))
    return max(float(scores[-1]), gaussian) if n else gaussian
