"""The decoder: linear in few columns an anchor, exact at the anchors, sound everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from builder.decoder import WeightDecoder

A, K, RANK, P = 3, 5, 4, 40


@pytest.fixture(params=[0.0, 6.0], ids=["even", "growing"])
def decoder(request: pytest.FixtureRequest) -> WeightDecoder:
    torch.manual_seed(0)
    made = WeightDecoder(A, K, 16, RANK, P, growth=request.param, knots=4)
    made.set_head(torch.randn(A, P), torch.randn(A, RANK, P))
    torch.nn.init.normal_(made.table)
    return made.requires_grad_(False)


def latents(count: int, length: float = 0.7) -> Tensor:
    z = torch.randn(count, K, generator=torch.Generator().manual_seed(1))
    return length * z / z.norm(dim=1, keepdim=True)


def test_every_latent_is_decoded_by_its_own_anchor(decoder: WeightDecoder) -> None:
    z, anchor = latents(7), torch.tensor([0, 1, 2, 2, 0, 1, 1])
    _, weights = decoder(z, anchor)
    head = decoder.head.reshape(A, 1 + RANK, P)
    every = decoder.coordinates(z.expand(A, -1, -1))
    for s, a in enumerate(anchor.tolist()):
        expected = head[a, 0] + every[a, s] @ head[a, 1:]
        assert torch.allclose(weights[s], expected, rtol=1e-4, atol=1e-5)


def test_weights_are_linear_in_the_coefficients_of_one_anchor(decoder: WeightDecoder) -> None:
    anchor = torch.tensor([2, 0, 1])
    coefficients, weights = decoder(latents(3), anchor)
    assert coefficients.shape == (3, A * (1 + RANK)) and torch.equal(weights, coefficients @ decoder.head)
    blocks = coefficients.reshape(3, A, 1 + RANK)
    for s, a in enumerate(anchor.tolist()):
        assert blocks[s, a, 0] == 1.0 and bool((blocks[s, a] != 0).all())
        assert not blocks[s, torch.arange(A) != a].any()


def test_the_origin_decodes_to_the_anchor_bit_for_bit(decoder: WeightDecoder) -> None:
    _, weights = decoder(torch.zeros(A, K), torch.arange(A))
    assert torch.equal(weights, decoder.head.reshape(A, 1 + RANK, P)[:, 0])


def test_close_to_the_anchor_weights_shrink_with_the_drift_scale(decoder: WeightDecoder) -> None:
    def scale(u: float) -> float:
        return math.expm1(decoder.growth * u) / math.expm1(decoder.growth) if decoder.growth else u

    anchor = torch.zeros(20, dtype=torch.int64)
    mean = decoder.head[0]
    away = {u: (decoder(latents(20, u), anchor)[1] - mean).norm(dim=1) / scale(u) for u in (0.003, 0.03, 0.25)}
    # Measured in drift scales, the distance hardly changes below the first knot.
    for found in away.values():
        assert bool((found / away[0.25] > 0.5).all()) and bool((found / away[0.25] < 2).all())


def test_far_outside_the_weights_stay_finite(decoder: WeightDecoder) -> None:
    assert torch.isfinite(decoder(latents(4, 1e3), torch.zeros(4, dtype=torch.int64))[1]).all()


def test_gradients_are_finite_at_the_anchor(decoder: WeightDecoder) -> None:
    z = torch.zeros(A, 1, K, requires_grad=True)
    torch.autograd.backward(decoder.coordinates(z).sum())
    assert z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("length", [0.01, 0.25, 0.4, 0.9, 1.0, 1.2])
def test_the_hats_sum_to_one_and_two_of_them_take_part(decoder: WeightDecoder, length: float) -> None:
    hats = decoder.hats(latents(6, length).expand(A, -1, -1))
    assert hats.shape == (A, 6, 4) and torch.allclose(hats.sum(-1), torch.ones(A, 6))
    assert int((hats > 1e-6).sum(-1).max()) <= 2


def test_features_are_those_of_the_direction(decoder: WeightDecoder) -> None:
    short, long = (decoder.features(latents(6, length).expand(A, -1, -1)) for length in (0.2, 0.9))
    assert torch.allclose(short, long, atol=1e-5)
    assert torch.allclose(short[0, :, :K], latents(6, 1.0), atol=1e-5)


def test_a_decoder_is_made_again_from_its_arguments_and_state(decoder: WeightDecoder) -> None:
    again = WeightDecoder(**decoder.arguments)
    again.load_state_dict(decoder.state_dict())
    z, anchor = latents(5), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(again(z, anchor)[1], decoder(z, anchor)[1])


def test_a_latent_is_decoded_alike_in_any_batch(decoder: WeightDecoder) -> None:
    z, anchor = latents(9), torch.arange(9) % A
    alone = torch.cat([decoder(z[[i]], anchor[[i]])[1] for i in range(9)])
    assert torch.allclose(decoder(z, anchor)[1], alone, rtol=1e-4, atol=1e-5)
