"""Every way to damage a bundle is found before anything parses the damaged bytes."""

import base64
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save as save_safetensors

from model_store import Bundle, IncompatibleError, IntegrityError, ModelStore
from model_store.bundle import MAX_MANIFEST_BYTES, file_entry
from model_store.manifest import (
    ARRAYS_FILE,
    BASE_FILE,
    CARD_FILE,
    DECODER_FILE,
    FEATURES_FILE,
    REPORT_FILE,
    SCHEMA_VERSION,
    TRUNK_FILE,
)
from tests import bundles

FILES = [DECODER_FILE, BASE_FILE, ARRAYS_FILE, CARD_FILE, REPORT_FILE, bundles.PICTURE_FILE]


@pytest.fixture
def published(tmp_path: Path) -> Bundle:
    return bundles.mixed_regression().publish(tmp_path / "store")


def rewrite_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """What someone could do who may write to the store: a changed manifest, consistent or not."""
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return Bundle(bundle.path)


def replace_file(bundle: Bundle, file: str, data: bytes) -> Bundle:
    """A file replaced together with its hash, so that only its content can give it away."""
    (bundle.path / file).write_bytes(data)
    return rewrite_manifest(bundle, lambda m: m["files"].update({file: file_entry(data).model_dump()}))


# ---- sound bundles


@pytest.mark.parametrize(
    "parts",
    [
        bundles.mixed_regression(),
        bundles.mixed_regression(trunk=True),
        bundles.numeric_regression(),
        bundles.classification(),
        bundles.image_classification(),
    ],
    ids=lambda p: p.manifest.name,
)
def test_a_published_bundle_verifies_and_reads_back(parts: bundles.Parts, tmp_path: Path) -> None:
    bundle = parts.publish(tmp_path)
    bundle.verify()
    assert (bundle.name, bundle.version) == (parts.manifest.name, 1)
    assert {f: bundle.read(f) for f in bundle.manifest.files} == parts.files
    latent = bundle.manifest.latent
    assert bundle.arrays()["nodes"].shape == (
        latent.anchors,
        latent.trajectories,
        latent.steps + 1,
        latent.dimension,
    )


def test_the_digest_stands_for_every_byte(tmp_path: Path) -> None:
    digests = {bundles.mixed_regression(seed=s).publish(tmp_path / str(i)).digest for i, s in enumerate([0, 0, 1])}
    assert len(digests) == 2


def test_opening_reads_the_manifest_alone(published: Bundle) -> None:
    for file in FILES:
        (published.path / file).unlink()
    assert Bundle(published.path).manifest == published.manifest


# ---- damaged files


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file(published: Bundle, file: str) -> None:
    (published.path / file).unlink()
    with pytest.raises(IntegrityError, match=rf"{file} cannot be read \(No such file"):
        published.read(file)
    with pytest.raises(IntegrityError, match="publish the bundle again"):
        published.verify()


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_size(published: Bundle, file: str) -> None:
    path = published.path / file
    size = path.stat().st_size
    for data in (path.read_bytes() + b"\0", path.read_bytes()[:-1], b""):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="another size") as raised:
            published.read(file)
        assert (raised.value.expected, raised.value.got) == (f"{size} bytes", f"{len(data)} bytes")
        with pytest.raises(IntegrityError):
            published.verify()


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere(published: Bundle, file: str) -> None:
    path = published.path / file
    sound = path.read_bytes()
    for at in (0, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(IntegrityError, match="changed since it was published"):
            published.read(file)
    with pytest.raises(IntegrityError):
        published.verify()


def test_a_swapped_huge_file_is_not_read(published: Bundle) -> None:
    with (published.path / BASE_FILE).open("wb") as f:
        f.truncate(2**40)  # sparse: 1 TiB would not fit in memory
    with pytest.raises(IntegrityError, match="another size"):
        published.read(BASE_FILE)


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
def test_a_link_in_place_of_a_file(published: Bundle, file: str, tmp_path: Path) -> None:
    path = published.path / file
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a link, which is refused"):
        Bundle(published.path).read(file)


@pytest.mark.parametrize("file", [CARD_FILE, "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_pipe_or_folder_in_place_of_a_file(published: Bundle, file: str, kind: str) -> None:
    path = published.path / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    raised: list[BaseException] = []

    def read() -> None:
        try:
            Bundle(published.path).read(file)
        except IntegrityError as e:
            raised.append(e)

    # In a thread, because opening a pipe without a writer would wait for ever.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert len(raised) == 1
    assert "is no regular file" in str(raised[0])


def test_something_beside_the_listed_files(published: Bundle, tmp_path: Path) -> None:
    extra = published.path / "extra"
    for make in (
        lambda: extra.write_bytes(b"x"),
        extra.mkdir,
        lambda: extra.symlink_to(tmp_path),  # a folder
        lambda: extra.symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(extra),
    ):
        make()
        with pytest.raises(IntegrityError, match=r"does not list: \['extra'\]"):
            published.verify()
        extra.rmdir() if extra.is_dir() and not extra.is_symlink() else extra.unlink()
    published.verify()


def test_a_file_that_is_not_listed_cannot_be_read(published: Bundle) -> None:
    (published.path / "extra").write_bytes(b"x")
    for file in ("extra", "manifest.json", "../1/card.md", str(published.path / CARD_FILE), ""):
        with pytest.raises(IntegrityError, match="lists no file"):
            published.read(file)


# ---- damaged manifests


def test_no_manifest(published: Bundle) -> None:
    (published.path / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        Bundle(published.path)


@pytest.mark.parametrize(
    "raw",
    [b"", b"not json", b'{"schema_version": 1', b"\xff\xfe\xfa", b"[" * 100_000, b"1" * 5000, pickle.dumps({"a": 1})],
    ids=["empty", "text", "cut", "binary", "deep", "huge number", "pickle"],
)
def test_a_manifest_that_is_not_json(published: Bundle, raw: bytes) -> None:
    (published.path / "manifest.json").write_bytes(raw)
    with pytest.raises(IntegrityError, match="is not JSON"):
        Bundle(published.path)


def test_a_huge_manifest_is_not_parsed(published: Bundle) -> None:
    with (published.path / "manifest.json").open("wb") as f:
        f.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(IntegrityError, match="larger than any manifest"):
        Bundle(published.path)


@pytest.mark.parametrize("version", [0, 1, SCHEMA_VERSION + 1, "2", None, [2], 10**30])
def test_another_schema_version(published: Bundle, version: Any) -> None:
    with pytest.raises(IncompatibleError, match="Build it again with this version") as raised:
        # what another version's fields look like is not ours to judge
        rewrite_manifest(published, lambda m: m.update(schema_version=version, surprise=1))
    assert raised.value.got == repr(version)
    assert raised.value.code == "incompatible_bundle"


@pytest.mark.parametrize("raw", [b"[]", b"null", b"{}", b'"x"'])
def test_json_that_carries_no_schema_version(published: Bundle, raw: bytes) -> None:
    (published.path / "manifest.json").write_bytes(raw)
    with pytest.raises(IncompatibleError):
        Bundle(published.path)


def test_a_manifest_that_breaks_the_schema_is_refused_with_the_place(published: Bundle) -> None:
    with pytest.raises(IntegrityError, match=r"target\.regression\.scale: .*greater than 0"):
        rewrite_manifest(published, lambda m: m["target"].update(scale=0))


@pytest.mark.parametrize(
    "name",
    [
        "../other/1/card.md",
        "/etc/passwd",
        "a/b",
        "a/",
        "..",
        ".",
        "",
        ".hidden",
        "a\\b",
        "nul\0byte",
        "new\nline",
        "\ud800",
        "a" * 200,
        "manifest.json",
    ],
)
def test_file_names_that_leave_the_bundle(published: Bundle, name: str) -> None:
    entry = file_entry(b"x").model_dump()
    with pytest.raises(IntegrityError, match=r"not a plain file name|no valid manifest"):
        rewrite_manifest(published, lambda m: m["files"].update({name: entry}))


@pytest.mark.parametrize("file", [DECODER_FILE, BASE_FILE, ARRAYS_FILE, TRUNK_FILE, FEATURES_FILE])
def test_a_bundle_without_a_file_that_serving_needs(tmp_path: Path, file: str) -> None:
    parts = bundles.image_classification() if file == FEATURES_FILE else bundles.mixed_regression(trunk=True)
    bundle = parts.publish(tmp_path)
    (bundle.path / file).unlink()
    with pytest.raises(IntegrityError, match=f"lists no file '{file}'"):
        rewrite_manifest(bundle, lambda m: m["files"].pop(file)).verify()


# ---- content that only looks right


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("file", [ARRAYS_FILE, DECODER_FILE, BASE_FILE, TRUNK_FILE])
def test_a_pickle_is_never_loaded(tmp_path: Path, file: str) -> None:
    bundle = bundles.mixed_regression(trunk=True).publish(tmp_path / "store")
    sprung = tmp_path / "sprung"
    pickles = [pickle.dumps(Trap(sprung)), pickle.dumps(Trap(sprung), protocol=0)]
    for data in [*pickles, base64.b64encode(pickles[0])]:
        with pytest.raises(IntegrityError, match=r"not (a )?readable"):
            replace_file(bundle, file, data).verify()
    assert not sprung.exists()
    pickle.loads(pickles[0])  # noqa: S301  the trap does work where something unpickles it
    assert sprung.is_dir()


def test_external_data_is_refused(published: Bundle) -> None:
    model = onnx.load_from_string(published.read(DECODER_FILE))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(IntegrityError, match="keeps tensors in another file") as raised:
        replace_file(published, DECODER_FILE, model.SerializeToString()).read(DECODER_FILE)
    assert raised.value.code == "external_data"


def nodes(shape: tuple[int, ...] = (2, 3, 5, 3), dtype: Any = np.float32, value: float = 0.0) -> np.ndarray:
    return np.full(shape, value, dtype=dtype)


SCORES = np.linspace(0, 3, 10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"conformity_scores": SCORES}, "nodes do not fit"),
        ({"nodes": nodes((2, 3, 4, 3)), "conformity_scores": SCORES}, "nodes do not fit"),
        ({"nodes": nodes(dtype=np.float64), "conformity_scores": SCORES}, "nodes do not fit"),
        ({"nodes": nodes(value=np.nan), "conformity_scores": SCORES}, "NaN or infinity"),
        ({"nodes": nodes(value=-np.inf), "conformity_scores": SCORES}, "NaN or infinity"),
        ({"nodes": nodes()}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": SCORES[::-1].copy()}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": SCORES.astype(np.float32)}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": SCORES[:0]}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": SCORES[None]}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": np.append(SCORES, np.inf)}, "conformity_scores"),
        ({"nodes": nodes(), "conformity_scores": SCORES}, "ood_scores"),
    ],
)
def test_arrays_that_do_not_fit_the_manifest(published: Bundle, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        replace_file(published, ARRAYS_FILE, save_safetensors(arrays)).verify()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ood_scores", lambda a: a[:, ::-1].copy()),
        ("ood_scores", lambda a: a[:2]),
        ("ood_scores", lambda a: a[:, :-1]),
        ("ood_scores", lambda a: a.astype(np.float32)),
        ("ood_combined", lambda a: a[:-1]),
        ("ood_combined", lambda a: a[::-1].copy()),
        ("ood_combined", lambda a: np.append(a[:-1], np.nan)),
        ("ood_center", lambda a: a[:-1]),
        ("ood_center", lambda a: a * np.nan),
        ("ood_scale", lambda a: 0 * a),
        ("ood_scale", lambda a: a.astype(np.float32)),
        ("ood_rows", lambda a: a[:1]),
        ("ood_rows", lambda a: a[0]),
        ("ood_rows", lambda a: np.array(1.0, dtype=np.float32)),
        ("ood_rows", lambda a: a[:, :-1]),
        ("ood_rows", lambda a: a.astype(np.float64)),
        ("ood_precision", lambda a: a[:-1]),
        ("ood_precision", lambda a: a * np.inf),
        ("features' ood_means", lambda a: a[:0]),
        ("features' ood_means", lambda a: a[0]),
        ("features' ood_means", lambda a: a * np.nan),
        ("features' ood_means", lambda a: a[:, :-1]),
        ("features' ood_center", lambda a: a[:-1]),
        ("features' ood_center", lambda a: a[:0]),
        ("features' ood_center", lambda a: a[None]),
    ],
)
def test_what_detectors_go_by_must_fit_the_manifest(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    *of_features, name = name.split()
    published = (bundles.image_classification if of_features else bundles.mixed_regression)().publish(tmp_path)
    arrays = published.arrays()
    message = name if name in {"ood_scores", "ood_combined"} else "what rows are compared with"
    arrays[name] = change(arrays[name])
    with pytest.raises(IntegrityError, match=message):
        replace_file(published, ARRAYS_FILE, save_safetensors(arrays)).verify()
    del arrays[name]
    with pytest.raises(IntegrityError, match=message):
        replace_file(published, ARRAYS_FILE, save_safetensors(arrays)).verify()


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"])
def test_arrays_that_are_no_safetensors(published: Bundle, data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not readable"):
        replace_file(published, ARRAYS_FILE, data).arrays()


def test_a_bundle_in_another_models_place_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    bundles.numeric_regression("real").publish(store)
    bundles.numeric_regression("other").publish(store)
    (tmp_path / "other" / "1").rename(tmp_path / "real" / "2")
    with pytest.raises(IntegrityError, match="holds other@1"):
        store.open("real@2")
