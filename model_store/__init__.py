"""What a bundle is and where bundles live: used by the builder and the server; knows no torch and no web."""

from model_store.bundle import Bundle
from model_store.errors import (
    ConfigError,
    DataError,
    FiberwalkError,
    IncompatibleError,
    InputError,
    IntegrityError,
    InvalidNameError,
    StoreError,
    UnknownModelError,
)
from model_store.manifest import SCHEMA_VERSION, Manifest
from model_store.shelf import CHAMPION
from model_store.store import ModelStore

__all__ = [
    "CHAMPION",
    "SCHEMA_VERSION",
    "Bundle",
    "ConfigError",
    "DataError",
    "FiberwalkError",
    "IncompatibleError",
    "InputError",
    "IntegrityError",
    "InvalidNameError",
    "Manifest",
    "ModelStore",
    "StoreError",
    "UnknownModelError",
]
