"""Side by side: at the same time, in order, and torch's threads as they were."""

import threading

import pytest
import torch

from nplus.training.threads import side_by_side


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_tasks_run_at_once_and_answer_in_order(three_threads):
    both = threading.Barrier(2, timeout=30)
    found = side_by_side([lambda: (both.wait(), "a")[1], lambda: (both.wait(), "b")[1]])
    assert found == ["a", "b"]
    assert side_by_side([torch.get_num_threads] * 2) == [1, 1]
    assert torch.get_num_threads() == 3


def test_an_exception_is_raised_when_all_have_ended(three_threads):
    done = []

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        side_by_side([fail, lambda: done.append(1)])
    assert done == [1]
    assert torch.get_num_threads() == 3
