"""What each of several processes finds out and writes down; `torchrun` starts it, see `test_distributed`.

torchrun --nproc-per-node 3 -m tests.builder.processes FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from builder.distributed import first, from_first, gathered, go_on_alone, joined, share
from model_store.errors import FiberwalkError

RANK = int(os.environ["RANK"])


def look() -> dict[str, Any]:
    """Each process says what its parts are and what it gets of the others'."""
    numbers = torch.arange(5.0)[:, None] * torch.tensor([1.0, 10.0])
    odd = torch.arange(5) % 2 == 1
    return {
        "first": first(),
        "share": [[share(n).start, share(n).stop] for n in (1, 2, 5, 6)],
        "numbers": gathered(numbers[share(5)], 5).tolist(),
        "odd": gathered(odd[share(5)], 5).tolist(),
        "one": gathered(torch.tensor([7])[share(1)], 1).tolist(),
        "said": from_first({"rank": RANK, "tensor": torch.tensor(RANK)})["rank"],
    }


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    with joined():
        found = look()
        go_on_alone(now=not first())
        found["together"] = share(6) != slice(0, 6)
        go_on_alone(now=first())
        found["alone"] = share(6) == slice(0, 6) and first()
    # What follows a block is for all again, another block included.
    with joined():
        found["again"] = from_first(RANK + 10)
    (folder / f"{RANK}.json").write_text(json.dumps(found))
    with joined():
        if RANK:
            raise FiberwalkError("All but the first are out of luck.")
        gathered(torch.zeros(2), 6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
