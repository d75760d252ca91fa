"""Threads side by side: the same results, and everything as it was afterwards."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from builder.runtime import concurrently, limit_memory, side_by_side, values_at_once


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_keep_the_order_of_the_items(threads: int) -> None:
    assert concurrently(threads, lambda i: i * i, range(7)) == [i * i for i in range(7)]


def test_items_are_worked_on_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)
    assert concurrently(2, lambda _: both.wait(), range(2)) in ([0, 1], [1, 0])


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        concurrently(2, lambda i: 1 / i, range(3))


def test_each_operation_gets_one_thread_inside_and_all_of_them_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with side_by_side(True) as threads:
            assert threads == 3 and torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), side_by_side(True):
            raise KeyError
        assert torch.get_num_threads() == 3
        with side_by_side(False) as threads:
            assert threads == 1 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_waiting_threads_sleep() -> None:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_less_memory_makes_smaller_batches() -> None:
    try:
        whole, fast = values_at_once(), values_at_once("cpu")
        assert fast < whole == values_at_once("cuda")
        limit_memory(0.05)
        assert values_at_once() == pytest.approx(whole / 10, abs=1)
        limit_memory(1e-3)
        assert values_at_once("cpu") == values_at_once() < fast
    finally:
        limit_memory(0.5)
