"""The networks of the image sets, as a user would write them: `--network benchmarks.networks:lenet5`.

Images are (B, channels, height, width). Normalisation is by group: what batch normalisation computes depends on the
other rows, and many weight vectors at once cannot each have statistics of their own.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8


def lenet5(classes: int = 10) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) for (B, 1, 28, 28), with ReLU and max pooling: 61,706 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def resnet20(classes: int = 10) -> nn.Sequential:
    """ResNet-20 for (B, 3, 32, 32) (He et al. 2016, section 4.2), group normalisation in place of batch normalisation:
    269,722 weights for 10 classes."""
    widths = (16, 32, 64)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), _norm(widths[0]), nn.ReLU()]
    before = widths[0]
    for width in widths:
        layers += [_Block(before, width), _Block(width, width), _Block(width, width)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def resnet18(classes: int = 10) -> nn.Sequential:
    """ResNet-18 for (B, 3, 32, 32): the blocks of He et al. (2016, table 1) behind a first convolution for small
    images, group normalisation in place of batch normalisation: 11,173,962 weights for 10 classes."""
    widths = (64, 128, 256, 512)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), _norm(widths[0]), nn.ReLU()]
    before = widths[0]
    for width in widths:
        layers += [_Block(before, width, projected=True), _Block(width, width)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class _Block(nn.Module):
    """Two convolutions beside a shortcut: where widths differ it takes every second pixel and pads channels with zeros,
    without weights, or projects them (options A and B of the paper)."""

    def __init__(self, before: int, width: int, projected: bool = False) -> None:
        super().__init__()
        self.grown, self.stride = width - before, 1 if width == before else 2
        self.projection: nn.Module | None = None
        if projected and self.grown:
            self.projection = nn.Sequential(nn.Conv2d(before, width, 1, self.stride, bias=False), _norm(width))
        self.first = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.first_norm = _norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.projection is not None:
            shortcut = self.projection(x)
        elif self.grown:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(h)) + shortcut)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width)
