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


class _Block(nn.Module):
    """Two convolutions beside a shortcut without weights: where widths differ it takes every second pixel and pads
    channels with zeros (option A of the paper)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.grown, self.stride = width - before, 1 if width == before else 2
        self.first = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.first_norm = _norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.grown:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(h)) + shortcut)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width)
