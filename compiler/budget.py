"""How much memory a compile may take: whoever is about to take much asks first, and the answer is a diagnostic.

    with limited("2GiB"):                       # compile_model(max_memory="2GiB"), qatc compile --max-memory 2GiB
        active().ask(size, "the samples", "use fewer")

A budget counts what the process already holds in memory of its own (files that are mapped do not count: the system
drops their pages when it needs room) plus what is asked for. Without a limit of the user's it is what the machine has.
On Linux `enforce` makes the kernel refuse what was not asked for.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qatc.compiler.diagnostics import fail, misused

SMALLEST: Final = 64 << 20  # bytes: less than the libraries take before anything is read
_NEGLIGIBLE: Final = 1 << 20  # bytes that are taken without asking
_UNITS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(ib|b)?\s*", re.IGNORECASE)
_CGROUPS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNBOUNDED: Final = 1 << 44  # where nobody says how much memory there is
_HINT: Final = "raise --max-memory, or use a machine with more memory"


@dataclass(frozen=True)
class Budget:
    """A limit in bytes; `stated` tells whether the user chose it or the machine did."""

    limit: int
    stated: bool = False

    def ask(
        self, amount: int, what: str, hint: str = _HINT, *, node: str | None = None, tensor: str | None = None
    ) -> None:
        """Say that `amount` bytes are about to be taken for `what` (a noun phrase).

        Raises:
            CompileError: QAT011 where that would exceed the limit, with `hint` as what to do.
        """
        if amount < _NEGLIGIBLE:
            return
        used = in_use()
        if used + amount <= self.limit:
            return
        whose = "--max-memory allows" if self.stated else "this machine has"
        message = (
            f"{what} would take {size_text(amount)}; {size_text(used)} are in use, {whose} {size_text(self.limit)}"
        )
        raise fail("QAT011", message, node=node, tensor=tensor, hint=hint)


_ACTIVE: ContextVar[Budget | None] = ContextVar("budget", default=None)


def active() -> Budget:
    """The budget of the compile that runs."""
    return _ACTIVE.get() or Budget(machine_memory())


@contextmanager
def limited(limit: int | str | None) -> Generator[Budget, None, None]:
    """Run with a budget: bytes, a text such as "2GiB", or None for what the machine has.

    Raises:
        CompileError: QAT007 with exit code 2 for what is no size, QAT011 where memory ran out in spite of all asking.
    """
    budget = Budget(machine_memory()) if limit is None else Budget(_checked(limit), stated=True)
    token = _ACTIVE.set(budget)
    try:
        yield budget
    except MemoryError as error:
        reason = f": {error}" if str(error) else ""
        raise fail("QAT011", f"memory ran out at {size_text(in_use())} in use{reason}", hint=_HINT) from error
    finally:
        _ACTIVE.reset(token)


def _checked(limit: int | str) -> int:
    try:
        return limit if isinstance(limit, int) and limit >= SMALLEST else parse_size(str(limit))
    except ValueError as error:
        hint = "write max_memory as bytes or as a text such as 2GiB or 800MB"
        raise misused(f"the memory limit {limit!r}: {error}", hint) from error


def parse_size(text: str) -> int:
    """Bytes of a text: `2GiB` and `2G` are 2^31, `2GB` two thousand million, `2000000000` bytes.

    Raises:
        ValueError: where it is no size, or less than 64 MiB.

    >>> parse_size("1.5GiB"), parse_size("800MB")
    (1610612736, 800000000)
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("a size is a number with a unit, such as 2GiB or 800MB")
    number, unit, suffix = found.groups()
    base = 1000 if suffix and suffix.lower() == "b" and unit else 1024
    size = int(float(number) * base ** _UNITS[unit.lower()])
    if size < SMALLEST:
        raise ValueError(f"{size_text(size)} are less than qatc itself needs ({size_text(SMALLEST)})")
    return size


def size_text(size: int) -> str:
    """A number of bytes for people: three digits, binary units.

    >>> size_text(1610612736), size_text(1 << 90)
    ('1.5 GiB', '1.05e+06 ZiB')
    """
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.3g} {units[0]}"


# -- the machine --------------------------------------------------------------------------------------------------
def machine_memory() -> int:
    """The memory that the machine, or the container that this process runs in, has."""
    found = [_UNBOUNDED]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUPS:
        try:
            text = Path(path).read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found)


def in_use() -> int:
    """The memory that this process holds for itself, in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return 0
    held = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(value.split()[0]) * 1024 for value in held.values())


def enforce(limit: int) -> bool:
    """Let the kernel refuse this process, from here on, more than `limit` bytes of data; whether it can.

    The second line of defense: what asks is refused earlier, and libraries may end badly when an allocation fails. For
    the command line alone: a limit of the process cannot be taken back from the libraries that met it. What is
    reserved but never touched (the stacks of threads) counts for the kernel, so what is reserved already is added.
    """
    if sys.platform != "linux":
        return False
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = min(limit + _RESERVED, sys.maxsize if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return True


_RESERVED: Final = 512 << 20  # address space of thread stacks and allocators that is never touched
