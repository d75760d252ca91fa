"""The tables of what HTTP, workers and replicas take, and their goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import Goal, make_goal

_WIDE: Final = "MLP 784-256-128-10"
WAITS: Final = (
    ("MLP 13-50-1", 1, False),
    (_WIDE, 1, False),
    (_WIDE, 1, True),
    (f"{_WIDE}, rank 8", 1, True),
    (_WIDE, 64, False),
    (_WIDE, 64, True),
)
"""Network, rows, and whether as msgpack with the bytes of arrays; otherwise as JSON."""
WORKERS: Final = ("LeNet-5", _WIDE)
"""Networks whose cost is arithmetic, and reading 30 MB of weights, of which each worker has its own."""
COLD: Final = (_WIDE, "MLP 200-100-10, rank 999")
PARTS: Final = ("http", "idle", "reading", "writing")
"""Of what is added to the call in process, beside all else."""
MOST_ONE_ROW: Final = 2.0
MOST_MANY_ROWS: Final = 1.1
MOST_ADDED: Final = 0.25
LEAST_OF_TWO: Final = 1.8
MOST_COLD: Final = 1.2


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one client's wait."""
    header = ["network", "rows", "format", "p50 ms", "in process ms", "ratio", "added µs"]
    header += ["of that: HTTP", "idle", "reading", "writing", "all else"]
    rows = []
    for f in _of(found, "wait"):
        cells = [f["network"], str(f["rows"]), "msgpack" if f["binary"] else "JSON", f"{f['p50']:.2f}"]
        added = f["p50"] - f["alone"]
        parts = [added, *[f[part] for part in PARTS], added - sum(f[part] for part in PARTS)]
        cells += [f"{f['alone']:.2f}", f"{f['p50'] / f['alone']:.2f}", *[f"{1e3 * part:.0f}" for part in parts]]
        rows.append(cells)
    return header, rows


def workers_table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one worker and two."""
    header = ["network", "rows", "clients", "requests/s, one worker", "two", "ratio", "cores of the clients"]
    rows = []
    for f in _of(found, "workers"):
        one, two = f["one"]["rate"], f["two"]["rate"]
        cells = [f["network"], str(f["rows"]), str(f["clients"]), f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f}"]
        rows.append([*cells, f"{f['client_cores']:.2f}"])
    return header, rows


def cold_table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a replica's first answer."""
    header = ["network", "fetched ms", "decoded ms", "as measured ms"]
    return header, [
        [f["network"], *[f"{f[way]:.1f}" for way in ("always", "never", "auto")]] for f in _of(found, "cold")
    ]


def judge(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals."""
    waits = _of(found, "wait")

    def at_most(text: str, network: str, rows: int, binary: bool, most: float) -> Goal:
        runs = [f for f in waits if (f["network"], f["rows"], f["binary"]) == (network, rows, binary)]

        def met() -> tuple[bool, str]:
            ratio = runs[0]["p50"] / runs[0]["alone"]
            return ratio <= most, f"{ratio:.2f}"

        return make_goal(text, runs, None, met)

    small = [f for f in waits if f["network"] == WAITS[0][0]]

    def added() -> tuple[bool, str]:
        more = small[0]["p50"] - small[0]["alone"]
        return more <= MOST_ADDED, f"{1e3 * more:.0f} µs"

    def gain(name: str) -> Goal:
        two = [f for f in _of(found, "workers") if f["network"] == name]

        def met() -> tuple[bool, str]:
            ratio = two[0]["two"]["rate"] / two[0]["one"]["rate"]
            return ratio >= LEAST_OF_TWO, f"{ratio:.2f}, the clients took {two[0]['client_cores']:.2f} of a core"

        text = f"{name}: two workers answer at least {LEAST_OF_TWO:g} times as many requests as one"
        return make_goal(text, two, None, met)

    cold = _of(found, "cold")

    def faster() -> tuple[bool, str]:
        ratios = [f["auto"] / min(f["always"], f["never"]) for f in cold]
        each = ", ".join(f"{r:.2f} ({f['network']})" for r, f in zip(ratios, cold, strict=True))
        return max(ratios) <= MOST_COLD, each

    one = f"{_WIDE}, one row, msgpack: one client waits for at most {MOST_ONE_ROW:g} times the call in process"
    many = f"{_WIDE}, 64 rows, msgpack: at most {MOST_MANY_ROWS:g} times"
    return [
        at_most(one, _WIDE, 1, True, MOST_ONE_ROW),
        at_most(many, _WIDE, 64, True, MOST_MANY_ROWS),
        make_goal(f"{WAITS[0][0]}, JSON: at most {1e3 * MOST_ADDED:.0f} µs above it", small, None, added),
        *map(gain, WORKERS),
        make_goal(
            f"A replica's first answer takes at most {MOST_COLD:g} times the faster of fetching and decoding",
            cold,
            None,
            faster,
        ),
    ]


def _of(found: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [f for f in found if f["set"] == kind]
