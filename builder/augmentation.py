"""Changes of training images that leave their class as it is, drawn anew for each gradient.

Lengths: B rows, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model_store.errors import ConfigError

Augmentation = Literal["flip", "crop"]

_MARGIN = 8
"""A crop moves an image by at most so manieth a part of its side (4 of 32 pixels: He et al. 2016, section 4.2)."""


def refuse_other_than_images(augment: Sequence[Augmentation], shape: tuple[int, ...]) -> None:
    """Raises ConfigError where inputs of this shape (without the rows) are no images and augmentation is asked for."""
    if augment and len(shape) != 3:
        raise ConfigError(
            "Only images can be flipped and cropped; leave map.augment empty.",
            field="map.augment",
            expected="inputs of shape (rows, channels, height, width)",
            got=f"inputs of shape (rows, {', '.join(map(str, shape))})",
        )


def augmented(x: Tensor, augment: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Images x (B, C, H, W), each mirrored half of the time (`flip`) and moved at random, zeros coming in (`crop`).

    Args:
        generator: a CPU generator, so that a build does not depend on the device.
    """
    if not augment:
        return x
    rows, _, height, width = x.shape
    down, right = torch.arange(height).expand(rows, -1), torch.arange(width).expand(rows, -1)
    if "flip" in augment:
        mirrored = torch.rand(rows, 1, generator=generator) < 0.5
        right = torch.where(mirrored, width - 1 - right, right)
    if "crop" in augment:
        margin = max(1, min(height, width) // _MARGIN)
        x = F.pad(x, (margin, margin, margin, margin))
        moved = torch.randint(2 * margin + 1, (2, rows, 1), generator=generator)
        down, right = down + moved[0], right + moved[1]
    down, right = down.to(x.device), right.to(x.device)
    at = torch.arange(rows, device=x.device)[:, None, None]
    return x[at, :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2).contiguous()
