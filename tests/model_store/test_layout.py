from __future__ import annotations

import numpy as np
import pytest

from model_store.layout import WIDE, laid_out


@pytest.mark.parametrize(("samples", "rows"), [(1, 1), (3, 5), (2, 128), (2, 129), (7, 100)])
def test_matrices_of_all_samples_stand_side_by_side(samples: int, rows: int) -> None:
    matrices = np.random.default_rng(0).normal(size=(samples, rows, 6)).astype(np.float32)
    wide = laid_out("w" + WIDE, [6, "S*h"], {"w": matrices})
    assert wide.flags.c_contiguous
    assert np.array_equal(wide, np.concatenate([m.T for m in matrices], axis=1))
