"""The posteriors that are compared."""

from __future__ import annotations

from typing import Final

from benchmarks.fidelity.hmc import Settings
from benchmarks.fidelity.run import Case

CASES: Final = {
    # Draws are nearly independent: each trajectory takes hundreds of leapfrog steps.
    "snelson1d": Case("snelson1d", 50, Settings(warmup=300, draws=400)),
    "uci_yacht": Case("uci_yacht", 50, Settings(warmup=400, draws=600)),
    "uci_boston": Case("uci_boston", 50, Settings(warmup=300, draws=500)),
    "cls_banana": Case("cls_banana", 10, Settings(warmup=300, draws=500), rows=200),
}
