"""A command that has the process for itself: standard streams that are closed, full or unread, and signals to end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

import click

from qatc.compiler.command.arguments import OWN_PROCESS
from qatc.compiler.diagnostics import CompileError, Diagnostic
from qatc.compiler.interruption import ENDINGS, Stopped

_GRACE: Final = 5.0  # seconds to end in, after a signal: a library that computes does not look up
_AGAIN: Final = 0.02  # seconds until a signal that came while a module was being loaded comes again


class OutputError(CompileError):
    """Standard output cannot be written: what is wrong is told on standard error, with --json as well."""


def run(command: click.Command) -> NoReturn:
    """Run `command` with the process's own arguments; its exit code is the process's."""
    _open_streams()
    if _hears_signals():
        _heed_signals()
    try:
        status = _status(command)
    except (click.Abort, KeyboardInterrupt) as error:  # before or after the command itself
        status = interrupted(error.__cause__ or error)
    if _hears_signals():
        for number in ENDINGS:  # what the command found is settled: nothing may change it any more
            signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def interrupted(error: BaseException) -> int:
    """Say that the command was interrupted, by Ctrl-C or a signal to end; the exit code for that."""
    number = error.number if isinstance(error, Stopped) else signal.SIGINT
    click.echo("interrupted" if number == signal.SIGINT else "terminated", err=True)
    return 128 + number


def _status(command: click.Command) -> int:
    try:
        with printing():
            found = command.main(obj=OWN_PROCESS, standalone_mode=False)
        return found if isinstance(found, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MemoryError:  # not even enough to say so as all else is said
        click.echo("error[QAT011]: memory ran out; use a machine with more memory, or a higher limit", err=True)
        return 1
    except OutputError as error:
        click.echo(str(error), err=True)
        return error.exit_code


@contextlib.contextmanager
def printing() -> Generator[None, None, None]:
    """Write on standard output: a reader that has gone away changes nothing, what cannot be stored is an error.

    Raises:
        OutputError: QAT015 where the system cannot write.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        message = f"cannot write standard output: {error.strerror or error}"
        hint = "send it elsewhere, or free some space; what the command wrote before, such as a package, is there"
        raise OutputError([Diagnostic("QAT015", message, hint=hint)]) from error


def _silence(stream: TextIO) -> None:
    """Let what is still to be written to `stream` vanish; the interpreter would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _BestEffort:
    """A stream for diagnostics and progress: where it cannot be written, the exit code still says what happened."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _silence(self._stream)


def _open_streams() -> None:
    """Give streams that were closed when the process began a place, before a file of ours gets their number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - as long as it runs
    errors: Any = _BestEffort(sys.stderr)
    sys.stderr = errors


# -- signals -------------------------------------------------------------------------------------------------------
def _hears_signals() -> bool:
    """Whether this is the thread that signals come to."""
    return threading.current_thread() is threading.main_thread()


def _heed_signals() -> None:
    """Let signals unwind the command, so that it leaves nothing behind; end the process where that takes too long."""
    heeded = [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's stay ignored
    for number in heeded:
        signal.signal(number, _stop)
    if os.name == "posix" and heeded:
        listening, ringing = os.pipe()
        os.set_blocking(ringing, False)
        signal.set_wakeup_fd(ringing, warn_on_full_buffer=False)
        threading.Thread(target=_end, args=(listening,), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):  # half a module is none, or a crash
            later = threading.Timer(_AGAIN, _send, (number,))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    raise Stopped(number)


def _send(number: int) -> None:
    """Send the signal to the main thread, which may be asleep."""
    main = threading.main_thread().ident
    if os.name == "posix" and main is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _end(listening: int) -> None:
    number = 0
    while number not in ENDINGS:
        number = os.read(listening, 1)[0]
    time.sleep(_GRACE)
    os._exit(128 + number)
