"""The terminal: results on standard output, diagnostics and progress on standard error, colors where they are seen."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from qatc.compiler.diagnostics import Diagnostic, Severity, escaped, misused, printable
from qatc.compiler.report import text
from qatc.compiler.report.facts import Facts

if TYPE_CHECKING:
    from rich.console import Console

    from qatc.compiler.result import Progress


_PIPED_WIDTH: Final = 160  # a pipe has no edge: lines break where they are long, not where a terminal would end
_PLACES: Final = 5  # nodes shown for one finding
_PATIENCE: Final = 2.0  # seconds without a word on a stream that is no terminal
_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}


def console(stream: TextIO) -> Console:
    """A console that prints text as it is (no markup, no emoji, no guessing) and never fails over a character."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> NoReturn:  # rich would end the process, with a status of its own
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    reconfigure: Any = getattr(stream, "reconfigure", None)
    if reconfigure is not None:  # a terminal that cannot show a character shows its number
        reconfigure(errors="backslashreplace")
    sizes = ("COLUMNS", "LINES")  # rich takes any digits for one: in no columns at all it prints nothing
    environment = {k: v for k, v in os.environ.items() if k not in sizes or (v.isdecimal() and v.strip("0"))}
    width = None if stream.isatty() or "COLUMNS" in environment else _PIPED_WIDTH
    return Plain(file=stream, markup=False, emoji=False, highlight=False, width=width, _environ=environment)


@dataclass
class Screen:
    """What one command prints and how: `json` leaves standard output to the machine-readable result alone."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @cached_property
    def out(self) -> Console:
        """Standard output."""
        return console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """Standard error."""
        return console(sys.stderr)

    def line(self, content: str) -> None:
        """Print a line on standard output, safely: `content` may come from a file."""
        self.out.print(escaped(content), soft_wrap=True)

    def write_json(self, data: bytes) -> None:
        """Write a JSON document on standard output."""
        sys.stdout.write(data.decode("ascii"))
        sys.stdout.flush()

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a file that the user asked for beside the result, in a folder that is made where it is missing.

        Raises:
            CompileError: QAT007 with exit code 2 where it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            message = f"cannot write {printable(str(path))}: {error.strerror or error}"
            raise misused(message, "name a file in a folder that can be written") from error

    def diagnostics(self, found: Iterable[Diagnostic]) -> None:
        """Print errors, warnings and notes on standard error, errors last: that is where the eye is."""
        ordered = sorted(found, key=lambda d: list(Severity).index(d.severity))
        if self.quiet:
            ordered = [d for d in ordered if d.severity is Severity.ERROR]
        groups: dict[tuple[str, str, str | None], list[Diagnostic]] = {}
        for diagnostic in ordered:
            groups.setdefault((diagnostic.code, diagnostic.message, diagnostic.hint), []).append(diagnostic)
        told = list(groups)
        for number, (key, members) in enumerate(groups.items()):
            again = number + 1 < len(told) and (told[number + 1][0], told[number + 1][2]) == (key[0], key[2])
            self._group(members, hint=None if again else members[0].hint)  # the same advice once, at the end
        codes = list(dict.fromkeys(d.code for d in ordered if d.severity is Severity.ERROR))
        if codes:
            self.err.print(_more(codes), style="dim", soft_wrap=True)

    def _group(self, members: Sequence[Diagnostic], hint: str | None) -> None:
        from rich.text import Text

        first = members[0]
        head = Text(f"{first.severity.value}[{first.code}]", style=_STYLES[first.severity])
        message = Text(f": {text.prose(first.message)}", style="bold" if first.severity is Severity.ERROR else "")
        self.err.print(head + message, soft_wrap=True)
        facts = Facts(self.err, label=6)
        places = [place for place in map(_place, members) if place]
        shown = len(places) if self.verbose else _PLACES
        if len(places) > shown:
            facts.row("at", *places[:shown], f"and {len(places) - shown:,} more (-v lists them)")
        elif places:
            facts.row("at", *places)
        if hint:
            facts.row("help", text.prose(hint))

    @contextlib.contextmanager
    def progress(self) -> Generator[Progress | None]:
        """A function to report progress with: (step, share done 0..1). None where nobody wants to see it.

        A bar on a terminal; elsewhere a line for each step, but only once the work turns out to be long.
        """
        if self.quiet or self.json:
            yield None
        elif self.err.is_terminal:
            with self._bar() as report:
                yield report
        else:
            yield self._lines()

    @contextlib.contextmanager
    def _bar(self) -> Generator[Progress]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        ]
        with Bar(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)

            def report(step: str, done: float) -> None:
                bar.update(task, description=text.prose(step), completed=min(max(done, 0.0), 1.0))

            yield report

    def _lines(self) -> Progress:
        started = self.clock()
        last = ""

        def report(step: str, done: float) -> None:
            nonlocal last
            if step != last and done < 1 and self.clock() - started >= _PATIENCE:
                last = step
                self.err.print(f"[{min(max(done, 0.0), 1.0):4.0%}] {text.prose(step)}", soft_wrap=True)

        return report


def _place(found: Diagnostic) -> str:
    parts = [f"node {printable(found.node)}"] if found.node else []
    parts += [f"tensor {printable(found.tensor)}"] if found.tensor else []
    return ", ".join(parts)


def _more(codes: Sequence[str]) -> str:
    if len(codes) == 1:
        return f"qatc explain {codes[0]} tells more"
    return f"qatc explain CODE tells more about {', '.join(codes[:-1])} and {codes[-1]}"
