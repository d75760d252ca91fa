"""Publishes what the containers serve: `python -m tests.containers.models FOLDER`."""

import sys

from model_store import ModelStore
from tests import bundles

if __name__ == "__main__":
    store = ModelStore(sys.argv[1])
    bundles.mixed_regression("prices", trunk=True).publish(store)
    bundles.classification("flowers").publish(store)
