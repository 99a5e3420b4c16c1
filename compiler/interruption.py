"""Ctrl-C and its like: which signals end a run, and how a few steps are kept from being cut in two by them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any, Final

#: What asks a process to end: Ctrl-C, `kill` and CI services that cancel a job, a terminal that goes away.
ENDINGS: Final = tuple(
    signal.Signals(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """The run was asked to end by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def held() -> Generator[None, None, None]:
    """Hold signals that are turned into an exception back for some short steps; they arrive when the steps are done."""
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        if threading.current_thread() is threading.main_thread():  # the one that signals come to
            for number in ENDINGS:
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
