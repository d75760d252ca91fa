"""What predictions of unseen rows say of all anchors together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builder.out_of_fold import OutOfFold, carry, gather, rows_to_judge
from builder.predictive import categorical_nll, contracted, mixture_probabilities
from tests.builder.walked import two_rounds


def outputs_of(value: Tensor, unseen: Tensor) -> list[Tensor]:
    """Outputs (1, m_a, 1) of each anchor on the rows that it did not see, from values (A, m)."""
    return [v[u][None, :, None] for v, u in zip(value, unseen, strict=True)]


@pytest.mark.parametrize("anchors", [2, 10])
def test_each_row_gets_the_outputs_of_anchors_that_did_not_see_it(anchors: int) -> None:
    unseen = ~two_rounds(50, 10) if anchors == 10 else torch.arange(50)[None] % 2 == torch.arange(2)[:, None]
    who = torch.arange(anchors, dtype=torch.float32)[:, None].expand(-1, 50)
    found = gather(outputs_of(who, unseen), unseen, torch.zeros(50))
    picked = found.members
    assert len(picked) == (2 if anchors == 10 else 1) and found.anchors == anchors
    for row in range(50):
        assert sorted(int(f[0, row, 0]) for f in picked) == unseen[:, row].nonzero().flatten().tolist()


def test_the_noise_beside_many_anchors_is_what_their_mixture_wants() -> None:
    """Errors of anchors with variance .04 about a truth with noise of variance .25."""
    generator = torch.Generator().manual_seed(0)
    unseen = ~two_rounds(20_000, 10)
    y = 0.5 * torch.randn(20_000, generator=generator)
    own = 0.2 * torch.randn(10, 20_000, generator=generator)
    found, nll = gather(outputs_of(own, unseen), unseen, y).fit()
    wanted, reached = OutOfFold([own[..., None]], y, 1).fit()  # were all rows unseen by all ten
    assert found == pytest.approx(wanted, rel=0.06)  # to first order
    assert float(nll.mean()) == pytest.approx(float(reached.mean()), abs=0.005)
    # One anchor alone wants more.
    assert found < 0.9 * replace(gather(outputs_of(own, unseen), unseen, y), anchors=1).fit()[0]


@pytest.mark.parametrize(("anchors", "rel"), [(2, 0.01), (5, 1e-6), (10, 0.05)])
def test_rows_that_many_anchors_did_not_see_show_the_temperature(anchors: int, rel: float) -> None:
    """Of five anchors whose logits differ, and what is carried on from two and five where ten answer."""
    generator = torch.Generator().manual_seed(0)
    truth = 2.0 * torch.randn(20_000, 3, generator=generator)
    y = torch.multinomial(truth.softmax(1), 1, generator=generator).squeeze(1)
    logits = 1.5 * (truth + torch.randn(10, 20_000, 3, generator=generator))
    unseen = torch.ones(5, 20_000, dtype=torch.bool)
    found, nll = gather([f[None] for f in logits[:5]], unseen, y, anchors).fit()
    wanted, reached = OutOfFold([logits[:anchors]], y, 1).fit()
    assert found == pytest.approx(wanted, rel=rel)
    assert float(nll.mean()) == pytest.approx(float(reached.mean()), abs=0.005)


def test_no_number_of_rows_that_were_right_makes_a_class_certain() -> None:
    """One row in so many that is different must not cost more than the others gain."""
    y = torch.arange(60) % 2
    logits = 3.0 * torch.nn.functional.one_hot(y, 2).float()[None]
    temperature, nll = OutOfFold([logits], y, anchors=1).fit()
    # Half of the one row more is of the other class.
    assert 1 / (1 + math.exp(3 / temperature)) == pytest.approx(0.5 / 61, rel=0.15)
    assert float(nll.mean()) == pytest.approx(math.log1p(math.exp(-3 / temperature)), abs=1e-5)


def labels_of(p: Tensor, seed: int) -> Tensor:
    return torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)


@pytest.mark.parametrize("rows", [1000, 20_000, 100_000])
def test_likeliest_classes_are_right_as_often_as_they_claim(rows: int) -> None:
    """Where a few labels are wrong, however sure the network is, the least NLL wants all others less sure."""
    logits = 4.0 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    y = labels_of(logits.softmax(1), 1)
    wrong = torch.arange(rows) % 100 < 2
    y[wrong] = logits[wrong].argmin(1)
    temperature, nll = OutOfFold([logits[None]], y, 1).fit()

    def claimed_too_much(t: float) -> float:
        p = (logits / t).softmax(1)
        claimed, label = p.max(1)
        return float((claimed - (label == y).float()).sum() / (claimed * (1 - claimed)).sum().sqrt())

    def loss(t: float) -> float:
        return float(categorical_nll((logits / t).softmax(1), y).mean())

    least = min((float(t) for t in torch.arange(1.0, 3.0, 0.01)), key=loss)
    assert float(nll.mean()) == pytest.approx(loss(temperature), abs=1e-5) and loss(temperature) < loss(least) + 0.00055
    # As far as it costs no more NLL than that.
    assert abs(claimed_too_much(temperature)) < max(1.0, abs(claimed_too_much(least)))
    assert abs(claimed_too_much(temperature)) <= 1 or loss(temperature / 1.01) > loss(least) + 0.00045


def test_the_temperature_of_the_least_nll_stays_where_likeliest_classes_are_right_as_often_as_they_claim() -> None:
    logits = 2.0 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    y = labels_of((logits / 1.5).softmax(1), 1)
    temperature, nll = OutOfFold([logits[None]], y, 1).fit()
    assert temperature == pytest.approx(1.5, rel=0.05)
    for other in (0.95, 1.05):
        assert float(nll.mean()) < float(categorical_nll((logits / (other * temperature)).softmax(1), y).mean())


def averages_of(logits: Tensor, y: Tensor, temperature: float, dispersion: float) -> tuple[float, float]:
    """NLL of averaged probabilities, and by how much the likeliest class claims more than it is right."""
    p = mixture_probabilities(contracted(logits, dispersion), temperature)
    claimed, label = p.max(1)
    return float(categorical_nll(p, y).mean()), float((claimed - (label == y).float()).mean())


@pytest.mark.parametrize(("anchors", "unseen_by"), [(10, "all"), (4, "two a row")])
def test_samples_that_err_about_the_truth_are_brought_closer_together(anchors: int, unseen_by: str) -> None:
    """No temperature makes an average of them as sure as the truth is: it is their mean that is right."""
    generator = torch.Generator().manual_seed(0)
    truth = 2.0 * torch.randn(24_000, 3, generator=generator)
    y = labels_of(truth.softmax(1), 1)
    logits = truth + 1.5 * torch.randn(anchors, 24_000, 3, generator=generator)
    known, new = slice(8000), slice(8000, 24_000)
    unseen = torch.ones(anchors, 8000, dtype=torch.bool) if unseen_by == "all" else ~two_rounds(8000, anchors)
    outputs = [f[known][u][None] for f, u in zip(logits, unseen, strict=True)]
    found = gather(outputs, unseen, y[known])
    alone, _ = found.fit()
    temperature, dispersion, nll = found.fit_dispersed()
    assert dispersion < 1
    loss, excess = averages_of(logits[:, new], y[new], temperature, dispersion)
    before, short = averages_of(logits[:, new], y[new], alone, 1.0)
    assert loss < before - 0.01 and abs(excess) < abs(short) / 3
    assert loss == pytest.approx(float(nll.mean()), abs=0.02)
    # Of five times as many anchors too few show it.
    assert replace(found, anchors=5 * anchors).fit_dispersed()[1] == 1


def test_samples_of_which_any_may_be_right_stay_as_far_apart_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(5, 8000, 3, generator=generator)
    y = labels_of(logits.softmax(-1).mean(0), 1)
    unseen = torch.ones(5, 8000, dtype=torch.bool)
    temperature, dispersion, _ = gather([f[None] for f in logits], unseen, y).fit_dispersed()
    assert dispersion == 1 and temperature == pytest.approx(1, rel=0.1)


def test_where_rows_do_not_tell_samples_stay_as_far_apart_as_they_are() -> None:
    logits = torch.randn(4, 60, 3, generator=torch.Generator().manual_seed(1)) * 0.01
    _, dispersion, nll = OutOfFold([logits], torch.arange(60) % 3, 1).fit_dispersed()
    assert dispersion == 1 and bool(nll.isfinite().all())
    # Nor where outputs are none.
    assert OutOfFold([logits / 0], torch.arange(60) % 3, 1).fit_dispersed()[:2] == (1.0, 1.0)


def test_what_is_carried_keeps_a_share() -> None:
    assert carry(1.0, 0.9, 1) == 1.0
    assert carry(1.0, 0.9, 2) == pytest.approx(0.9)
    assert carry(1.0, 0.9, 10) == pytest.approx(0.82)
    assert carry(1.0, 0.1, 10) == pytest.approx(0.2)


def test_what_is_carried_from_more_goes_less_far() -> None:
    """As 1 - 1/n goes."""
    assert carry(0.9, 0.84, 10, sizes=(2, 5)) == pytest.approx(0.82)
    assert carry(0.9, 0.84, 5, sizes=(2, 5)) == pytest.approx(0.84)


def test_rows_that_most_anchors_did_not_see_are_judged() -> None:
    member = torch.ones(3, 6, dtype=torch.bool)
    member[0, :4] = member[1, 2:4] = False
    assert rows_to_judge(member).tolist() == [2, 3]
    assert rows_to_judge(member[:1]).tolist() == [0, 1, 2, 3]
    many = torch.zeros(1, 10_000, dtype=torch.bool)
    chosen = rows_to_judge(many)
    assert 2048 <= len(chosen) <= 4096 and int(chosen[-1]) > 9000
