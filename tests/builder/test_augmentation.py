"""Images that are mirrored and moved hold the same pixels, and each is changed by itself."""

from __future__ import annotations

import pytest
import torch

from builder.augmentation import augmented, refuse_other_than_images
from model_store.errors import ConfigError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_nothing_asked_for_changes_nothing() -> None:
    x = torch.randn(5, 3, 8, 8)
    assert augmented(x, [], generator()) is x


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    x = torch.randn(400, 3, 6, 8)
    found = augmented(x, ["flip"], generator())
    same = (found == x).flatten(1).all(1)
    mirrored = (found == x.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 150 < int(mirrored.sum()) < 250


def test_a_crop_moves_each_image_by_at_most_an_eighth_and_lets_zeros_in() -> None:
    x = torch.rand(300, 2, 16, 16) + 1
    found = augmented(x, ["crop"], generator())
    assert found.shape == x.shape
    seen = set()
    for before, after in zip(x, found, strict=True):
        rows, columns = ((after != 0).any(0).any(d).nonzero().squeeze(1) for d in (1, 0))
        kept = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        down = len(rows) - 16 if rows[0] > 0 else 16 - len(rows)
        right = len(columns) - 16 if columns[0] > 0 else 16 - len(columns)
        assert torch.equal(kept, before[:, max(down, 0) :, max(right, 0) :][:, : len(rows), : len(columns)])
        seen.add((down, right))
    assert {d for d, _ in seen} == {r for _, r in seen} == set(range(-2, 3))


def test_only_images_can_be_augmented() -> None:
    refuse_other_than_images(["flip"], (3, 8, 8))
    refuse_other_than_images([], (4,))
    with pytest.raises(ConfigError, match="Only images") as caught:
        refuse_other_than_images(["flip"], (4,))
    assert caught.value.field == "map.augment"
