"""Verifiable rewards in a process of their own: values, limits, and what a bad function may do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nplus
from nplus.config.scoring import ScoringConfig
from nplus.evaluation.verifiable import FunctionScorer, ScoringError, Term
from nplus.records import InputError, Sample

MODULE = """
import os, subprocess, sys, time
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

def begins_another(query, response, id):
    with open("pids.txt", "w") as file:
        print(os.getpid(), file=file)
    subprocess.run(["sh", "-c", "echo $$ >> pids.txt; exec sleep 300"])

def leaves_another(query, response, id):
    subprocess.Popen(["sh", "-c", "echo $$ >> pids.txt; exec sleep 300"])
    while not os.path.exists("pids.txt"):
        time.sleep(0.01)
    return 1

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
    assert found.answers(samples("slow", "z")) == ([-1.0, 1.0], [True, False])


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever is to bury it may take its time


def pids(number):
    """So many processes that a function told of, once they are all there."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if Path("pids.txt").exists() and (text := Path("pids.txt").read_text()).endswith("\n"):
            found = [int(pid) for pid in text.split()]
            if len(found) == number:
                return found
        time.sleep(0.02)
    raise AssertionError("the function did not begin")


def gone(found):
    """Whether all end within some seconds."""
    ends = time.monotonic() + 10
    while any(map(alive, found)) and time.monotonic() < ends:
        time.sleep(0.02)
    return not any(map(alive, found))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_what_a_function_started_ends_with_its_time(scorer):
    found = scorer("begins_another", timeout=5.0, failed=-1.0)
    assert found.score(samples("x")) == [-1.0]
    assert gone(pids(2))


@needs_proc
def test_what_a_function_left_behind_ends_with_the_worker(scorer):
    found = scorer("leaves_another")
    assert found.score(samples("x")) == [1.0]
    (left,) = pids(1)
    assert alive(left)
    found.close()
    assert gone([left])


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.path.insert(0, sys.argv[2])
from nplus.evaluation.verifiable import FunctionScorer
from nplus.records import Sample
FunctionScorer(f"my_rewards:{sys.argv[1]}", 60.0).score([Sample("p", "q", "x")])
"""


def run_of(name):
    """The command of a run of one response, by the nplus under test."""
    return [sys.executable, "-c", RUN, name, str(Path(nplus.__file__).parents[1])]


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing(number):
    run = subprocess.Popen(run_of("begins_another"), stderr=subprocess.PIPE)
    found = pids(2)
    run.send_signal(number)
    run.communicate(timeout=30)
    assert run.returncode == -number
    assert gone(found)


@needs_proc
def test_a_run_that_is_through_leaves_nothing():
    subprocess.run(run_of("leaves_another"), check=True)
    assert gone(pids(1))


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
    assert length.add_to([1.0, 1.0], length.answers(rows).values) == [1.0 + 1.0 - 2.0, 1.0 + 2.0]


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
