from pathlib import Path

import pytest

from model_store import ModelStore
from tests import bundles


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Two versions of `prices` (the first is its champion) and one of `flowers`."""
    store = ModelStore(tmp_path / "store")
    bundles.mixed_regression("prices").publish(store)
    bundles.mixed_regression("prices", seed=1).publish(store)
    bundles.classification("flowers").publish(store)
    store.set_alias("prices", "champion", 1)
    return store
