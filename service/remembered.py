"""Predictions that were made, by the id of their request, until their targets are known or their room is needed."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.randomness import RandomBytes

USABLE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a request's id may be: no other is given to one, and none is looked for."""
OVERHEAD: Final = 400
"""Bytes that an entry takes beside its arrays."""
_TOKENS: Final = RandomBytes(8)


@dataclass(frozen=True)
class Prediction:
    """What was predicted for the B rows of a request.

    Attributes:
        reference: NAME@VERSION of the model.
        digest: of its bundle, sha256 in hex.
        mean: (B,) of a number, of its logarithm where that is what the model predicts, or (B, C) probabilities.
        variance: (B,) of the same; None for classes.
        token: 8 bytes by which it is told from others, as a client may use the id of a request again.
    """

    reference: str
    digest: str
    mean: NDArray[np.float64]
    variance: NDArray[np.float64] | None
    token: bytes = field(default_factory=_TOKENS.take)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.mean)

    @property
    def size(self) -> int:
        """Bytes that keeping it takes."""
        return OVERHEAD + self.mean.nbytes + (0 if self.variance is None else self.variance.nbytes)


class Remembered:
    """The latest predictions, as many as fit; the oldest are forgotten first. Safe to use from many threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Prediction] = OrderedDict()
        self._shared: set[str] = set()
        self._size = 0

    def put(self, request_id: str, prediction: Prediction) -> None:
        """Keeps a prediction, in place of an earlier one of the same id; not one that is larger than all may be."""
        with self._lock:
            self._drop(request_id)
            if prediction.size > self._limit:
                return
            self._kept[request_id] = prediction
            self._size += prediction.size
            while self._size > self._limit:
                self._drop(next(iter(self._kept)))

    def get(self, request_id: str) -> Prediction | None:
        """The prediction of a request, or None where it was never made, or is forgotten."""
        with self._lock:
            return self._kept.get(request_id)

    def share(self, request_id: str, prediction: Prediction) -> None:
        """Notes that other processes know a prediction too."""
        with self._lock:
            if self._kept.get(request_id) is prediction:
                self._shared.add(request_id)

    def unshared(self, request_id: str) -> Prediction | None:
        """The prediction of a request that this process alone knows."""
        with self._lock:
            return None if request_id in self._shared else self._kept.get(request_id)

    def forget(self, request_id: str, token: bytes) -> bool:
        """Forgets the prediction of this token, and not a later one of the same id; whether it was there."""
        with self._lock:
            found = self._kept.get(request_id)
            return found is not None and found.token == token and self._drop(request_id)

    def _drop(self, request_id: str) -> bool:
        found = self._kept.pop(request_id, None)
        if found is None:
            return False
        self._shared.discard(request_id)
        self._size -= found.size
        return True
