from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from builder.work import WorkFolder, make_key

KEY = make_key("data", {"steps": 3})


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    """A folder that holds one finished stage."""
    work = WorkFolder(tmp_path / "deep" / "work")
    work.save("map", KEY, {"weights": torch.arange(6.0).reshape(2, 3).T}, {"loss": 0.5, "names": ["a"]})
    return work


def test_a_stage_comes_back_as_it_was(work: WorkFolder) -> None:
    found = work.load("map", KEY)
    assert found is not None
    tensors, values = found
    assert torch.equal(tensors["weights"], torch.arange(6.0).reshape(2, 3).T)
    assert values == {"loss": 0.5, "names": ["a"]}
    assert [p.name for p in work.path.iterdir()] == ["map.safetensors"]


def test_another_key_or_stage_finds_nothing(work: WorkFolder) -> None:
    assert work.load("map", make_key("data", {"steps": 4})) is None
    assert work.load("fiber", KEY) is None


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_a_file_cut_off_is_as_good_as_none(work: WorkFolder, size: int) -> None:
    file = work.path / "map.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert work.load("map", KEY) is None


def test_the_latest_of_a_stage_is_kept(work: WorkFolder) -> None:
    work.save("map", "other", {"weights": torch.zeros(1)}, {})
    assert work.load("map", KEY) is None
    assert work.load("map", "other") is not None


def test_what_stages_took_is_known_when_they_are_found_again(tmp_path: Path) -> None:
    first, most = WorkFolder(tmp_path), {}
    for stage, seconds in (("map", 0.2), ("fiber", 0.1)):
        started = time.perf_counter()
        assert first.load(stage, KEY) is None
        time.sleep(seconds)
        first.save(stage, KEY, {"weights": torch.zeros(1)}, {})
        most[stage] = time.perf_counter() - started + 0.001  # they are kept to the millisecond
    assert first.spared == 0

    again = WorkFolder(tmp_path)
    assert again.load("map", KEY) is not None and 0.2 <= again.spared <= most["map"]
    assert again.load("fiber", KEY) is not None and 0.3 <= again.spared <= most["map"] + most["fiber"]
    found = again.spared
    assert again.load("refit", KEY) is None and again.spared == found


def test_clearing_removes_the_folder(work: WorkFolder) -> None:
    work.clear()
    assert not work.path.exists()
    work.clear()


def test_keys_depend_on_every_part_but_not_on_the_order_of_names() -> None:
    assert make_key({"a": 1, "b": 2}) == make_key({"b": 2, "a": 1})
    assert len({make_key(1, 2), make_key(2, 1), make_key(1), make_key([1, 2]), make_key("1", 2)}) == 5
