"""Ctrl-C as a request: the first one is noted, the second one raises, and nobody else's handler is touched."""

from __future__ import annotations

import signal
import threading

import pytest

from crnn.interrupt import Interrupt


def test_the_first_is_noted_and_the_second_raises() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_comes_back_after_an_error() -> None:
    def fail() -> None:
        with Interrupt():
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_handler_stays() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert heard == [1]
        assert not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_train_too() -> None:
    entered = []

    def work() -> None:
        with Interrupt() as interrupt:
            entered.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False]
