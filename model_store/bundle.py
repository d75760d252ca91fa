"""A published bundle, opened: the manifest, and files whose hashes were checked before anything parsed them."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import to_json
from safetensors.numpy import load as load_safetensors

from model_store.encoding import TableEncoder
from model_store.errors import IncompatibleError, IntegrityError
from model_store.files import read_regular
from model_store.manifest import (
    ARRAYS_FILE,
    BASE_FILE,
    DECODER_FILE,
    FEATURES_FILE,
    OF_FEATURES,
    OF_INPUTS,
    OLDEST_SCHEMA_VERSION,
    SCHEMA_VERSION,
    TRUNK_FILE,
    FileEntry,
    Manifest,
    RegressionCalibration,
    TableInput,
)
from model_store.noise import NoiseShape
from model_store.onnx_guard import refuse_external_data

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
_MOST_FAULTS = 1000
"""Of which the first is looked for: that takes the more time the more there are."""
_MOST_WORDS = 200
"""Characters shown of a fault, which may hold any part of the manifest."""

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_file_name(name: str) -> bool:
    """Whether a bundle may hold a file of this name: plain, in no folder, and not the manifest's own."""
    return _FILE.fullmatch(name) is not None and name != MANIFEST_FILE


def file_entry(data: bytes) -> FileEntry:
    """The manifest entry (size, sha256) of a file's bytes."""
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


class Bundle:
    """One immutable version of a model.

    Attributes:
        path: the folder `NAME/VERSION`.
        manifest: its validated manifest.
        digest: sha256 (hex) of `manifest.json`. As the manifest holds the hash of every other file, two bundles
            of one digest are the same to the byte.
    """

    def __init__(self, path: Path) -> None:
        """Reads and validates the manifest; no other file is touched.

        Raises:
            IntegrityError: the manifest is missing, too large or no valid manifest.
            IncompatibleError: it was written by another schema version.
        """
        self.path = path
        raw = self._read_manifest()
        self.digest = hashlib.sha256(raw).hexdigest()
        self.manifest = _parse_manifest(raw, path)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    def __repr__(self) -> str:
        return f"Bundle({self.name}@{self.version}, {self.digest[:12]})"

    def read(self, file: str) -> bytes:
        """The bytes of a file that the manifest lists, after its size and hash were checked.

        ONNX files are also searched for external data, which is refused.

        Raises:
            IntegrityError: not listed, missing, changed since publishing, or with external data.
        """
        entry = self.manifest.files.get(file)
        if entry is None:
            raise IntegrityError(f"{self} lists no file {file!r} in its manifest; publish it again.")
        path = self.path / file
        # At most one byte beyond the size is read, so that a swapped huge file costs nothing.
        data, size = _read(path, entry.size + 1)
        if len(data) != entry.size:
            raise IntegrityError(
                f"{path} has another size than when it was published; publish the bundle again.",
                expected=f"{entry.size} bytes",
                got=f"{size} bytes",
            )
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            raise IntegrityError(
                f"{path} changed since it was published; publish the bundle again.",
                expected=f"sha256 {entry.sha256}",
                got=f"sha256 {digest}",
            )
        if file.endswith(".onnx"):
            refuse_external_data(data, file)
        return data

    def read_manifest(self) -> bytes:
        """The bytes of the manifest.

        Raises:
            IntegrityError: they are not those any more that were read first.
        """
        raw = self._read_manifest()
        if hashlib.sha256(raw).hexdigest() != self.digest:
            raise IntegrityError(f"{self.path / MANIFEST_FILE} changed while it was read; ask for it again.")
        return raw

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of `arrays.safetensors`, checked against the manifest's shapes.

        Raises:
            IntegrityError: as `read`, or the arrays do not fit the manifest.
        """
        try:
            arrays: dict[str, NDArray[Any]] = load_safetensors(self.read(ARRAYS_FILE))
        except IntegrityError:
            raise
        except Exception as e:
            raise IntegrityError(f"{self}: {ARRAYS_FILE} is not readable; publish the bundle again.") from e
        latent = self.manifest.latent
        expected = (latent.anchors, latent.trajectories, latent.steps + 1, latent.dimension)
        nodes = arrays.get("nodes")
        if nodes is None or nodes.shape != expected or nodes.dtype != np.float32:
            raise IntegrityError(f"{self}: the latent nodes do not fit the manifest; publish the bundle again.")
        if not np.isfinite(nodes).all():
            raise IntegrityError(f"{self}: the latent nodes hold NaN or infinity; build the bundle again.")
        ood = self.manifest.ood
        shapes = {"ood_scores": (len(ood.detectors), ood.points), "ood_combined": (ood.points,)}
        for name in ("conformity_scores", *shapes):
            if not _are_scores(arrays.get(name), shapes.get(name)):
                raise IntegrityError(
                    f"{self}: the {name} are missing or not sorted, finite float64; build the bundle again."
                )
        if not _are_references(arrays, self.manifest):
            raise IntegrityError(
                f"{self}: what rows are compared with does not fit the inputs; build the bundle again."
            )
        self.noise(arrays)
        return arrays

    def noise(self, arrays: Mapping[str, NDArray[Any]]) -> NoiseShape | None:
        """How the noise differs from row to row, of the bundle's arrays; None where it does not.

        Raises:
            IntegrityError: they do not hold what the manifest says.
        """
        calibration, table = self.manifest.calibration, self.manifest.inputs
        if not isinstance(calibration, RegressionCalibration) or calibration.noise_range is None:
            return None
        shape = NoiseShape.of(arrays, TableEncoder(table).width) if isinstance(table, TableInput) else None
        if shape is None:
            raise IntegrityError(f"{self}: the shape of the noise does not fit the inputs; build the bundle again.")
        return shape

    def verify(self) -> None:
        """Checks every file of the bundle, that none is missing which a server needs, and that nothing lies beside.

        It finds accidents. It is no signature: whoever may write to the store can write a manifest that fits.

        Raises:
            IntegrityError: at the first file that is missing, changed, unsafe or not listed.
        """
        needed = [DECODER_FILE, BASE_FILE, *([TRUNK_FILE] if self.manifest.network.trunk_outputs else [])]
        needed += [FEATURES_FILE] if OF_FEATURES & set(self.manifest.ood.detectors) else []
        for file in dict.fromkeys([*needed, *self.manifest.files]):
            self.read(file)
        self.arrays()
        listed = {MANIFEST_FILE, *self.manifest.files}
        # Names alone: a folder or a link to one is no more welcome than a file.
        try:
            found = {p.name for p in self.path.iterdir()}
        except OSError as e:
            raise IntegrityError(f"{self.path} cannot be read ({e.strerror}); publish the bundle again.") from e
        if found - listed:
            raise IntegrityError(f"{self} holds files that its manifest does not list: {sorted(found - listed)}.")

    def _read_manifest(self) -> bytes:
        path = self.path / MANIFEST_FILE
        data, size = _read(path, MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise IntegrityError(
                f"{path} is larger than any manifest; publish the bundle again.",
                expected=f"at most {MAX_MANIFEST_BYTES} bytes",
                got=f"{size} bytes",
            )
        return data


def _read(path: Path, limit: int) -> tuple[bytes, int]:
    """The first `limit` bytes of a bundle's file and its size, see `read_regular`."""
    try:
        return read_regular(path, limit)
    except ValueError as e:
        raise IntegrityError(f"{path} {e}; publish the bundle again.") from e
    except OSError as e:
        raise IntegrityError(f"{path} cannot be read ({e.strerror}); publish the bundle again.") from e


def _are_scores(scores: NDArray[Any] | None, shape: tuple[int, ...] | None) -> bool:
    """Whether these are scores, sorted along the last axis, of a shape, or else of any number of rows."""
    if scores is None or scores.dtype != np.float64 or scores.size == 0:
        return False
    fits = scores.ndim == 1 if shape is None else scores.shape == shape
    return bool(fits and np.isfinite(scores).all() and (np.diff(scores) >= 0).all())


def _are_references(arrays: dict[str, NDArray[Any]], manifest: Manifest) -> bool:
    """Whether there is all that the detectors of a table's inputs, or of features, compare rows with."""
    detectors = set(manifest.ood.detectors)
    if not detectors & (OF_INPUTS | OF_FEATURES):
        return True
    # How many features there are the arrays say, and the server holds that against what the network gives.
    center = arrays.get("ood_center", np.zeros(0))
    width = TableEncoder(manifest.inputs).width if isinstance(manifest.inputs, TableInput) else center.size
    wanted: dict[str, tuple[tuple[int, ...], type]] = {}
    wanted |= {"ood_center": ((width,), np.float64), "ood_scale": ((width,), np.float64)}
    rows = arrays.get("ood_rows")
    if detectors & {"nearest_rows", "nearest_features"}:
        if rows is None or rows.ndim != 2 or len(rows) < 2:
            return False
        wanted["ood_rows"] = (len(rows), width), np.float32
    if detectors & {"mahalanobis", "mahalanobis_features"}:
        wanted["ood_precision"] = (width, width), np.float64
    means = arrays.get("ood_means")
    if "mahalanobis_features" in detectors:
        if means is None or means.ndim != 2 or len(means) < 1:
            return False
        wanted["ood_means"] = (len(means), width), np.float64
    for name, (shape, kind) in wanted.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != kind or not np.isfinite(found).all():
            return False
    return width > 0 and bool((arrays["ood_scale"] > 0).all())


def _parse_manifest(raw: bytes, path: Path) -> Manifest:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise IntegrityError(f"{path / MANIFEST_FILE} is not JSON; publish the bundle again.") from e
    # The version is looked at before the schema: another version's fields are not ours to judge.
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or not OLDEST_SCHEMA_VERSION <= version <= SCHEMA_VERSION:
        # Shortened, as it may be anything.
        written = reprlib.repr(version)
        readable = f"{OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}"
        raise IncompatibleError(
            f"{path} was written with bundle schema {written}; this fiberwalk reads schemas {readable}. "
            "Build it again with this version, or serve it with the version that built it.",
            expected=readable,
            got=written,
        )
    try:
        to_json([content])  # as it is told to clients, one level deeper than it stands
        manifest = Manifest.model_validate(content)
    except ValueError as e:
        fault = _first_fault(e) if isinstance(e, ValidationError) else "it is nested too deeply, or is no text"
        raise IntegrityError(f"{path / MANIFEST_FILE} is no valid manifest: {fault}; publish the bundle again.") from e
    for file in manifest.files:
        if not is_file_name(file):
            raise IntegrityError(f"{path}: the manifest lists {file!r}, which is not a plain file name.")
    return manifest


def _first_fault(error: ValidationError) -> str:
    """Where a manifest breaks the schema first, and how."""
    if error.error_count() > _MOST_FAULTS:
        return f"it breaks the schema in {error.error_count():,} places"
    first = error.errors()[0]
    return f"{'.'.join(str(p) for p in first['loc'])[:_MOST_WORDS]}: {first['msg'][:_MOST_WORDS]}"
