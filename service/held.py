"""What the server knows of a version that it looked at: the loaded model, or why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_store.errors import StoreError
from model_store.shelf import Stamp
from service.model import ServedModel


@dataclass(frozen=True)
class Held:
    """A loaded version, what the store had in its place, and when another stamp was last seen to be of the same."""

    model: ServedModel
    stamp: Stamp
    checked: float = -math.inf


@dataclass(frozen=True)
class Failed:
    """Why a version did not load, what the store had in its place, when that was, and how long it is left alone."""

    error: StoreError
    stamp: Stamp
    time: float
    wait: float
