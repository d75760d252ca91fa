"""What anchors that have not seen a row say of the mean and the variance that all of them would answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from builder.moments import disagreement, moments
from builder.predictive import conformal_quantile
from tests.builder.walked import two_rounds


def test_disagreement_is_that_on_rows_that_were_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    unseen = ~two_rounds(4000, 10)
    on_new_rows = 0.5 * torch.randn(10, 4000, generator=generator)
    known = torch.randn(4000, generator=generator).expand(10, -1)  # all that saw a row know its target
    found = disagreement(torch.where(unseen, on_new_rows, known), unseen)
    assert found == pytest.approx(0.25, rel=0.1)


def test_disagreement_without_pairs_is_found_among_those_that_saw_the_row() -> None:
    generator = torch.Generator().manual_seed(0)
    unseen = torch.arange(4000)[None] % 5 == torch.arange(5)[:, None]
    seen = 0.3 * torch.randn(5, 4000, generator=generator)
    assert disagreement(torch.where(unseen, 100.0 + seen, seen), unseen) == pytest.approx(0.09, rel=0.1)


@pytest.mark.parametrize("unseen", [torch.tensor([[True, True]]), torch.tensor([[True, False], [False, True]])])
def test_one_or_two_anchors_show_no_disagreement(unseen: Tensor) -> None:
    assert disagreement(torch.randn(unseen.shape), unseen) == 0.0


@pytest.mark.parametrize("shared", [0.1, 0.5])
def test_scores_are_those_of_the_mean_of_all_anchors(shared: float) -> None:
    """Anchors that differ much on few rows, about errors which they share: typical rows gain most by averaging."""
    generator = torch.Generator().manual_seed(0)
    rows, anchors = 20_000, 10
    unseen = ~two_rounds(rows, anchors)
    apart = torch.randn(rows, generator=generator).exp()
    error = shared * torch.randn(rows, generator=generator) * apart.square()
    means = error + apart * torch.randn(anchors, rows, generator=generator)
    found = moments(means, torch.ones(anchors, rows), unseen, torch.zeros(rows), disagreement(means, unseen))
    # A server knows the disagreement of all, on rows that none of them has seen: noise 1, and 1 within the anchors.
    served = means.mean(0).abs() / (2 + means.var(0, unbiased=False)).sqrt()
    levels = torch.tensor([0.5, 0.8, 0.9, 0.95])
    assert found.scores(1.0).float().quantile(levels).tolist() == pytest.approx(
        served.quantile(levels).tolist(), rel=0.25
    )


def test_scores_where_one_anchor_is_all_that_did_not_see_a_row() -> None:
    """Averaging then takes the same share of every squared residual."""
    generator = torch.Generator().manual_seed(0)
    unseen = torch.arange(4000)[None] % 5 == torch.arange(5)[:, None]
    means, y = torch.randn(5, 4000, generator=generator), torch.zeros(4000)
    found = moments(means, torch.zeros(5, 4000), unseen, y, 0.5)
    assert (found.gain / found.residual.square()).tolist() == pytest.approx([0.4] * 4000, rel=0.05)


@pytest.mark.parametrize("scatter", [0.0, 1.0])
def test_two_anchors_say_as_much_of_a_row_as_rows_differ(scatter: float) -> None:
    """Where anchors are apart alike on all rows, the difference of two says nothing of a row; elsewhere it does."""
    generator = torch.Generator().manual_seed(0)
    rows, anchors = 2000, 10
    unseen = ~two_rounds(rows, anchors)
    apart = (scatter * torch.randn(rows, generator=generator)).exp()
    means = apart * torch.randn(anchors, rows, generator=generator)
    found = moments(means, torch.ones(anchors, rows), unseen, torch.zeros(rows), disagreement(means, unseen))
    assert float(found.between.mean()) == pytest.approx(float(found.expected.mean()), rel=0.05)
    known = torch.corrcoef(torch.stack([found.between.log(), apart.log()]))[0, 1] if scatter else 0.0
    spread = float((found.between / found.expected).std())
    assert spread < 0.2 if not scatter else spread > 0.5 and float(known) > 0.4


def test_scores_of_uneven_noise_cover_as_promised() -> None:
    """Twenty anchors, of which two did not see a row, and noise of known size; 500 rows, and new ones."""
    covered = []
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, by: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=by)

        between, relative, new = 0.3, (2.5 * draw(500)).exp(), (2.5 * draw(4000)).exp()
        unseen = torch.rand(20, 500, generator=generator).argsort(0) < 2
        found = moments(
            between**0.5 * draw(20, 500), torch.zeros(20, 500), unseen, relative.sqrt() * draw(500), between
        )
        scores = replace(found, relative=relative).scores(1.0)
        anchors = between**0.5 * draw(20, 4000)
        error = anchors.mean(0) - new.sqrt() * draw(4000)
        score = error.abs() / (new + anchors.var(0, unbiased=False)).sqrt()
        covered.append([float((score <= conformal_quantile(scores, level)).double().mean()) for level in (0.8, 0.95)])
    assert np.mean(covered, axis=0) == pytest.approx([0.8, 0.95], abs=0.012)
