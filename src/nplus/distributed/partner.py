"""A forked copy of this process that computes beside it, on the same weights.

Two threads of one process stop each other: between small operations each waits for Python's lock.
Two processes do not, and on a CPU a small network's work is half done in each. What the copy knows
is what this process knew when it was forked; the weights that training moves lie in memory that
both see.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

Own = TypeVar("Own")

CAN_FORK = sys.platform == "linux"
"""Elsewhere a forked process may not use the system's own libraries."""
_ALIGNED = 64


class Partner:
    """Does `jobs` beside this process, on half of torch's threads.

    `weights` move to shared memory; both sides may write to them, but not at the same time. All
    else is copied. Needs `CAN_FORK`, and no other thread that computes.
    """

    def __init__(
        self, jobs: Mapping[str, Callable[..., Any]], *, weights: Iterable[Tensor] = ()
    ) -> None:
        self.threads = max(1, torch.get_num_threads() // 2)
        """Of each side while both compute."""
        self._weights = list(weights)
        for weight, place in zip(self._weights, shared_like(self._weights), strict=True):
            weight.data = place.copy_(weight.data)
        self._places = [weight.data_ptr() for weight in self._weights]
        pipe, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            pipe.close()
            _serve(theirs, jobs, self.threads)
        theirs.close()
        self._pipe = pipe
        self._pid = pid
        self.close = weakref.finalize(self, _end, pipe, pid)
        """Ends the other process; so does the end of this one."""

    def beside(self, own: Callable[[], Own], job: str, *args: Any) -> tuple[Own, Any]:
        """What `own` returns here and `job` there, at the same time; exceptions of either are
        raised when both are done. Raises RuntimeError where the other process has ended."""
        if [weight.data_ptr() for weight in self._weights] != self._places:
            raise RuntimeError("a weight left the memory that two processes share")
        try:
            self._pipe.send_bytes(_dumped((job, args)))
        except OSError:
            self._mourn()
        with self._answering() as answer, half_of_torch(self.threads):
            found = own()
        return found, answer[0]

    @contextmanager
    def _answering(self) -> Iterator[list[Any]]:
        """A list that holds the other side's answer afterwards, which is awaited in any case."""
        answer: list[Any] = []
        try:
            yield answer
        finally:
            try:
                worked, found = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                self._mourn()
        if not worked:
            raise found
        answer.append(found)

    def _mourn(self) -> NoReturn:
        self.close.detach()
        self._pipe.close()
        _, status = os.waitpid(self._pid, 0)
        raise RuntimeError(
            f"the process that computes beside this one has ended (status {status}; 9 is a kill, "
            "often for want of memory); compute.side_by_side=false does without it"
        ) from None


def shared_like(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Zeros of the same shapes and types, in memory that forked processes share."""
    listed = list(tensors)
    sizes = [-(-x.numel() * x.element_size() // _ALIGNED) * _ALIGNED for x in listed]
    memory, start, found = mmap.mmap(-1, max(1, sum(sizes))), 0, []
    for x, size in zip(listed, sizes, strict=True):
        if not size:
            found.append(torch.zeros_like(x))
            continue
        flat = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=start)
        found.append(flat.view(x.shape))
        start += size
    return found


@contextmanager
def half_of_torch(threads: int) -> Iterator[None]:
    """So many threads for torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _serve(pipe: Connection, jobs: Mapping[str, Callable[..., Any]], threads: int) -> NoReturn:
    """In the forked process: answer until the other side closes the pipe or is no more."""
    try:
        # What ends the run is told to the process that was asked for; this one follows it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # OpenMP's threads were not forked, and only a thread of our own knows that they are gone.
        work = threading.Thread(target=_answer, args=(pipe, jobs, threads))
        work.start()
        work.join()
    finally:
        os._exit(0)  # nothing that was inherited is flushed, closed or removed twice


def _answer(pipe: Connection, jobs: Mapping[str, Callable[..., Any]], threads: int) -> None:
    torch.set_num_threads(threads)
    while True:
        try:
            job, args = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = True, jobs[job](*args)
        except Exception as error:
            answer = False, error
        try:
            told = _dumped(answer)
        except Exception as error:
            told = _dumped((False, RuntimeError(f"{answer[1]!r} cannot be sent: {error}")))
        try:
            pipe.send_bytes(told)
        except OSError:
            return


def _end(pipe: Connection, pid: int) -> None:
    # It holds nothing of its own, and a sibling forked later keeps our end of its pipe open.
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pipe.close()


class _Pickler(pickle.Pickler):
    """Tensors as arrays: torch's own way writes a file for each."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.device.type == "cpu" and obj.dtype != torch.bfloat16:
            return torch.from_numpy, (obj.detach().numpy(),)
        return NotImplemented


def _dumped(what: Any) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol=pickle.HIGHEST_PROTOCOL).dump(what)
    return out.getvalue()
