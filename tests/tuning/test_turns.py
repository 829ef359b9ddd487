"""Ways take turns: who is called how often, and in which order."""

import time

import torch

from nplus.stages.tuning.turns import Pace, clocked, in_turns


def ways(called, seconds=0.0):
    def way(name):
        def run():
            called.append(name)
            time.sleep(seconds)
            return float(len(called))

        return run

    return {name: way(name) for name in "abc"}


def test_rounds_alternate_and_the_first_does_not_count():
    called = []
    times = in_turns(ways(called), Pace(rounds=3, least=1, seconds=60))
    assert "".join(called) == "abcabccbaabc"
    assert times == {"a": [4.0, 9.0, 10.0], "b": [5.0, 8.0, 11.0], "c": [6.0, 7.0, 12.0]}


def test_slow_work_is_done_the_least_number_of_times():
    called = []
    times = in_turns(ways(called, seconds=0.01), Pace(rounds=50, least=2, seconds=0.02))
    assert {len(each) for each in times.values()} == {2}


def test_a_clock_tells_what_the_work_takes():
    found = clocked(lambda: time.sleep(0.02), torch.device("cpu"))()
    assert 0.02 <= found < 1.0
