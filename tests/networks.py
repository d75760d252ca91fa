"""Small networks of every kind that a build must take, each with the shape of one input row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builder.network import MLP


def mlp() -> nn.Module:
    return MLP(5, [16, 12], 2, "tanh")


def cnn() -> nn.Module:
    """Convolutions with pooling of both kinds."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class Block(nn.Module):
    """Residual block with group or batch normalisation."""

    def __init__(self, channels: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else lambda c: nn.GroupNorm(2, c)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Residual(nn.Module):
    """Residual net, (B, 2, 8, 8) -> (B, 3)."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block1 = Block(4, 4, batch_norm)
        self.block2 = Block(4, 8, batch_norm)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.avg_pool2d(self.block1(self.stem(x)), 2)
        return self.head(self.block2(h).mean((2, 3)))


def pretrained_batch_norm() -> nn.Module:
    """A residual net whose batch normalisation has seen data."""
    net = Residual(batch_norm=True)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 2, 8, 8) * 2 + 1)
    return net.eval()


class Transformer(nn.Module):
    """Transformer encoder over 6 tokens of width 3, (B, 6, 3) -> (B, 3)."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.position = nn.Parameter(torch.randn(6, 8) * 0.1)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), layers)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():  # nn.TransformerEncoder starts with copies of one layer; trained ones differ
            for parameter in self.encoder.parameters():
                parameter += 0.1 * torch.randn_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.position).mean(1))


class Words(nn.Module):
    """Token ids as inputs of two dimensions, (B, 7) -> (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x.long())).mean(1))


NETWORKS = {
    "mlp": (mlp, (5,)),
    "cnn": (cnn, (1, 10, 10)),
    "residual": (Residual, (2, 8, 8)),
    "batch_norm": (pretrained_batch_norm, (2, 8, 8)),
    "transformer": (Transformer, (6, 3)),
}
"""Factory and shape of one input row, by name."""
