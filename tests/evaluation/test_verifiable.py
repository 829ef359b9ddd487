"""Verifiable rewards in a process of their own: values, limits, and what a bad function may do."""

import os
import time

import pytest

from nplus.config.scoring import ScoringConfig
from nplus.evaluation.verifiable import FunctionScorer, ScoringError, Term
from nplus.records import InputError, Sample

MODULE = """
import os, sys, time
state = []

def length(query, response, id):
    print("noise on standard output")
    return len(response)

def asks(query, response, id):
    return (query == "q") + 10 * (id == "p1")

def slow(query, response, id):
    if response == "slow":
        time.sleep(60)
    return 1

def hungry(query, response, id):
    return len(bytearray(4 << 30))

def dies(query, response, id):
    os._exit(3)

def raises(query, response, id):
    raise KeyError("no such fact")

def nan(query, response, id):
    return float("nan")

def counts(query, response, id):
    state.append(1)
    return len(state)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scorer():
    made = []

    def build(name, **options):
        made.append(FunctionScorer(f"my_rewards:{name}", **options))
        return made[-1]

    yield build
    for each in made:
        each.close()


def samples(*texts):
    return [Sample(f"p{i}", "q", text) for i, text in enumerate(texts)]


def test_values(scorer):
    assert scorer("length").score(samples("ab", "", "ünï")) == [2.0, 0.0, 3.0]


def test_the_function_is_given_query_response_and_id(scorer):
    assert scorer("asks").score(samples("a", "b")) == [1.0, 11.0]


def test_one_process_serves_all(scorer):
    found = scorer("counts")
    assert found.score(samples("a", "b")) + found.score(samples("c")) == [1.0, 2.0, 3.0]


def test_too_long_is_given_up_and_the_next_is_scored(scorer):
    found = scorer("slow", timeout=0.5, failed=-1.0)
    began = time.monotonic()
    assert found.score(samples("x", "slow", "y")) == [1.0, -1.0, 1.0]
    assert time.monotonic() - began < 10
    assert found.failures == 1


def test_memory_is_limited(scorer):
    found = scorer("hungry", memory_mib=256)
    with pytest.raises(ScoringError, match=r"my_rewards:hungry: took more than 256 MiB.*'p0'"):
        found.score(samples("x"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised KeyError: 'no such fact'"),
        ("nan", "no finite number"),
        ("dies", "its process died"),
    ],
)
def test_no_value_is_told_or_replaced(scorer, name, message):
    with pytest.raises(ScoringError, match=message):
        scorer(name).score(samples("x"))
    assert scorer(name, failed=0.25).score(samples("x", "y")) == [0.25, 0.25]


@pytest.mark.parametrize("name", ["nowhere:f", "my_rewards:missing"])
def test_what_cannot_be_imported_is_told(name):
    with pytest.raises(InputError, match=f"{name} cannot be imported"):
        FunctionScorer(name).score(samples("x"))


def test_a_forked_process_has_a_worker_of_its_own(scorer):
    found = scorer("counts")
    assert found.score(samples("a")) == [1.0]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(found.score(samples("b"))).encode())
        found.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 99) == b"[1.0]"
    assert found.score(samples("c")) == [2.0]


def test_terms_add_up_and_constraints_cost(scorer):
    rows = samples("ab", "abcd")
    length = Term(scorer("length"), weight=0.5, at_least=3, penalty=2.0)
    assert length.add_to([1.0, 1.0], length.values(rows)) == [1.0 + 1.0 - 2.0, 1.0 + 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"terms": [{"function": "no colon"}]}, "MODULE:FUNCTION"),
        ({"terms": [{"function": "a:b"}, {"function": "a:b"}]}, "given twice"),
        ({"reward_weight": 0.5}, "without terms"),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ScoringConfig.model_validate(given)
