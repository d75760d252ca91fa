"""Published test NLL: on the standard splits of the UCI regression sets, and of FashionMNIST."""

from __future__ import annotations

from typing import Final

MC_DROPOUT: Final = {
    "uci_boston": 2.40,
    "uci_concrete": 2.94,
    "uci_energy": 1.21,
    "uci_kin8nm": -1.14,
    "uci_naval": -4.45,
    "uci_power": 2.81,
    "uci_protein": 2.87,
    "uci_wine_red": 0.93,
    "uci_yacht": 1.25,
}
"""Gal and Ghahramani (2016), the figures of their repository."""

SUBSPACE: Final = {
    "uci_boston": 2.72,
    "uci_concrete": 3.01,
    "uci_energy": 1.56,
    "uci_naval": -6.54,
    "uci_yacht": 0.23,
}
"""PCA subspace with elliptical slice sampling: Izmailov et al. (2020)."""

ENSEMBLE: Final = {
    "uci_boston": 6.11,
    "uci_concrete": 3.20,
    "uci_energy": 0.61,
    "uci_kin8nm": -1.17,
    "uci_naval": -5.17,
    "uci_power": 3.18,
    "uci_protein": 3.12,
    "uci_wine_red": 0.97,
    "uci_yacht": 0.73,
}
"""Deep ensemble of 10: uncertainty-baselines."""

FASHION_ENSEMBLE: Final = 0.200
"""FashionMNIST, all rows, ten LeNet-5: uncertainty-baselines."""
