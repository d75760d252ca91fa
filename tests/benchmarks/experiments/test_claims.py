"""The ablations of the method on a tiny problem."""

from __future__ import annotations

import math

from benchmarks.experiments.claims import (
    ANCHORS,
    BUILT,
    ONE_ROUND,
    ONE_ROUND_ANCHORS,
    VARIANTS,
    WEIGHTED,
    compare,
    report,
)
from tests.benchmarks.experiments.toys import toy_problem


def test_every_variant_is_another_posterior_from_the_same_anchors() -> None:
    found = compare(toy_problem())["variants"]
    assert set(found) == {*VARIANTS, WEIGHTED, ANCHORS, ONE_ROUND, ONE_ROUND_ANCHORS}
    for figures in found.values():
        assert all(math.isfinite(v) for v in figures.values())
    # A walk that is led another way, and one that is refined another way, does not come out the same.
    walked = [found[v]["out_of_fold"] for v in (*VARIANTS, WEIGHTED) if found[v]["reach"] > 0]
    assert len(set(walked)) == len(walked) >= 2
    assert all(found[v]["gradient_evaluations"] > 0 for v in (*VARIANTS, ONE_ROUND))
    assert found[ONE_ROUND]["gradient_evaluations"] == found[BUILT]["gradient_evaluations"] // 2

    worse = {**found, BUILT: {**found[BUILT], "nll": found[ANCHORS]["nll"] + 1}}
    shown = report([{"set": "toy", "split": s, "variants": worse} for s in range(2)])
    (table,) = shown.tables
    rows = {r[0]: r[1:] for r in table.rows}
    assert rows[BUILT][1] == "" and rows[ANCHORS][1] == "−1.000 ± 0.000"
    assert f"{ANCHORS}: worse than built on 0 of 2 splits." in shown.findings
