"""The order of the test files: those that take longest first, so that no process is left with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LONGEST = (
    "fiberwalk/test_demo.py",
    "benchmarks/calibration/test_run.py",
    "builder/test_export_graph.py",
    "builder/test_export.py",
    "benchmarks/test_served.py",
    "builder/test_pipeline.py",
    "fiberwalk/test_own_network.py",
    "builder/test_distributed.py",
    "benchmarks/quality/test_record.py",
    "test_clean_install.py",
    "fiberwalk/test_edge_cases.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would start the files with the most tests first, and those take longest that have few.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
