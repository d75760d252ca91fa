"""The order of the test files, those that take longest first, so that no process is left with one at the end; and
pictures, exports and a search for garbage that cost less."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LONGEST = (
    "fiberwalk/test_demo.py",
    "builder/test_export.py",
    "builder/test_distributed.py",
    "fiberwalk/test_own_network.py",
    "builder/test_pipeline.py",
    "builder/test_noise.py",
    "benchmarks/calibration/test_run.py",
    "builder/test_report.py",
    "benchmarks/quality/test_images.py",
    "service/test_workers.py",
    "builder/test_map.py",
    "benchmarks/serving/test_wire.py",
    "benchmarks/test_served.py",
    "service/test_serving.py",
    "fiberwalk/test_edge_cases.py",
    "benchmarks/quality/test_record.py",
    "test_clean_install.py",
    "builder/test_learning.py",
    "builder/test_trial.py",
    "service/test_store_trouble.py",
    "service/test_batching.py",
    "benchmarks/serving/test_peers.py",
    "builder/test_export_blocked.py",
    "builder/test_calibration.py",
    "benchmarks/fidelity/test_agreement.py",
    "service/test_redis_tier.py",
    "service/test_feedback.py",
    "builder/test_fiber.py",
    "service/test_redis_monitor.py",
    "builder/test_unfamiliar.py",
    "builder/test_export_layers.py",
    "fiberwalk/test_build.py",
    "builder/test_entry.py",
    "benchmarks/serving/test_curves.py",
    "builder/test_export_graph.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would start the files with the most tests first, and those take longest that have few.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    # What was imported stays to the end. To look through all of it for garbage again and again, as Python does by
    # default, takes a tenth of the time of tests that trace networks; they leave much, but nothing that is large.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module")
def rough_pictures() -> Iterator[None]:
    """Pictures of builds that nobody looks at: what is drawn of the data, small, with neither axes nor words, and with
    no room found for them, which together takes half of a tiny build. What they show and how is the matter of
    `builder/test_report.py`."""
    from matplotlib.axis import Axis
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    from builder import canvas

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)
        for part in (Axis, Legend, Text):
            patch.setattr(part, "draw", lambda *_: None)
        patch.setitem(canvas._STYLE, "figure.dpi", 30)
        # At a place of its own: matplotlib looks for one that is free of ticks.
        patch.setitem(canvas._STYLE, "axes.titley", 1.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch reads its library of ONNX operators anew at each export, which takes two seconds; it is always the same."""
    if "torch" not in sys.modules:
        yield  # no test file that was collected exports
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
