"""The process beside this one: what it shares, what it copies, and how it ends."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from nplus.distributed.partner import Partner, shared_like

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture
def partner():
    """`partner(**jobs)`, ended afterwards."""
    made = []

    def make(weights=(), **jobs):
        made.append(Partner({"pid": os.getpid, **jobs}, weights=weights))
        return made[-1]

    yield make
    for each in made:
        each.close()


def here():
    return None


def test_both_work_at_the_same_time_on_half_the_threads(partner):
    def slow():
        began = time.monotonic()
        time.sleep(0.3)
        return began, time.monotonic(), torch.get_num_threads()

    own, other = partner(slow=slow).beside(slow, "slow")
    assert own[0] < other[1]
    assert other[0] < own[1]
    assert own[2] == other[2] == 1
    assert torch.get_num_threads() == 2


def test_products_on_several_threads_work_after_a_fork(partner):
    big = torch.randn(700, 700)
    expected = big @ big  # OpenMP has threads now
    torch.set_num_threads(4)
    beside = partner(product=lambda: (torch.get_num_threads(), big @ big))
    _, (threads, found) = beside.beside(here, "product")
    assert threads == 2
    torch.testing.assert_close(found, expected)


def test_weights_are_shared_both_ways_and_all_else_is_copied(partner):
    weight, other = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.tensor([1.0])

    def look(step):
        with torch.no_grad():
            weight.add_(step)
        return weight.tolist(), other.tolist()

    beside = partner(weights=[weight], look=look)
    with torch.no_grad():
        weight.mul_(10)
    other.mul_(10)
    assert beside.beside(here, "look", 1.0)[1] == ([11.0, 21.0], [1.0])
    assert weight.tolist() == [11.0, 21.0]
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match="left the memory"):
        beside.beside(here, "look", 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_go_and_come_as_they_are(partner, dtype):
    sent = [torch.tensor([[0, 1, 1]]).to(dtype).T, torch.tensor(1).to(dtype), torch.zeros(0, 3)]
    _, found = partner(echo=lambda x: x).beside(here, "echo", sent)
    for x, y in zip(found, sent, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert torch.equal(x, y)


def test_shared_memory_has_the_shapes_asked_for():
    like = [torch.ones(3, 2), torch.ones(0), torch.ones(5).half()]
    like.append(torch.ones((), dtype=torch.float64))
    for x, y in zip(shared_like(like), like, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert not x.any()


def test_exceptions_of_either_side_are_raised_when_both_are_done(partner):
    def fail(what):
        raise what

    beside = partner(fail=fail)
    with pytest.raises(KeyError, match="here"):
        beside.beside(lambda: fail(KeyError("here")), "pid")
    with pytest.raises(ZeroDivisionError, match="there"):
        beside.beside(here, "fail", ZeroDivisionError("there"))
    assert beside.beside(os.getpid, "pid")[1] != os.getpid()


def test_an_answer_that_cannot_be_sent_is_told(partner):
    beside = partner(odd=lambda: lambda: 1)
    with pytest.raises(RuntimeError, match="cannot be sent"):
        beside.beside(here, "odd")
    assert beside.beside(os.getpid, "pid")[0] == os.getpid()


def test_it_ends_with_close_and_not_with_ctrl_c(partner):
    beside = partner()
    _, pid = beside.beside(here, "pid")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert beside.beside(here, "pid")[1] == pid
    beside.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_ends_while_another_forked_later_lives(partner):
    first, second = partner(), partner()
    first.close()
    assert second.beside(os.getpid, "pid")[0] == os.getpid()


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_killed_process_is_told(partner, when):
    beside = partner(sleep=lambda: time.sleep(60))
    _, pid = beside.beside(here, "pid")
    if when == "before":
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    with pytest.raises(RuntimeError, match=r"has ended \(status 9.*side_by_side=false"):
        beside.beside(lambda: os.kill(pid, signal.SIGKILL), "sleep")


def test_it_ends_when_this_process_is_killed(partner):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        beside = Partner({"pid": os.getpid})
        os.write(write, str(beside.beside(here, "pid")[1]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int(os.read(read, 32))
    for _ in range(100):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return
        if stat.rsplit(")", 1)[1].split()[0] == "Z":  # nobody is left to wait for it
            return
        time.sleep(0.05)
    raise AssertionError("still there")
