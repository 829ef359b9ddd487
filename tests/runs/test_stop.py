"""A signal waits for the end of a step, a second one does not."""

import os
import signal
import threading

import pytest

from nplus.runs import Stop, StoppedBySignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_what_cannot_end_cleanly(number):
    stop = Stop()
    with stop.listening(), pytest.raises(StoppedBySignal) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_where_a_step_is_done_first(number):
    notes = []
    stop = Stop(notes.append)
    with stop.listening(), stop.deferred():
        assert stop.wish == 0
        os.kill(os.getpid(), number)
        assert stop.wish == number
        assert "after this step" in notes[0]
        with pytest.raises(StoppedBySignal):
            os.kill(os.getpid(), number)


def test_the_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with Stop().listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_hears_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []

    def listen():
        with Stop().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
