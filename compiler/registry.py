"""Registry: named values that are imported when they are asked for, built in or brought along by installed packages.

Built-ins are a table of strings, "package.module:VALUE", that the caller passes; other packages announce theirs through
entry points of the registry's group. A name that two of them claim is an error that names both, never a silent choice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from qatc.compiler.diagnostics import CompileError, misused, printable, suggested

if TYPE_CHECKING:
    from qatc.compiler.backend import Backend
    from qatc.compiler.frontend import Frontend

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    reference: str  # "package.module:VALUE"
    owner: str


class Registry(Generic[T]):
    """Values of one kind by name. Nothing is imported or looked for before the first question."""

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], code: str) -> None:
        """A registry.

        Args:
            kind: what a value is, for messages ("backend").
            group: the entry-point group where other packages announce theirs.
            builtin: name -> "package.module:VALUE".
            code: the diagnostic code of an unknown name.
        """
        self._kind, self._group, self._builtin, self._code = kind, group, builtin, code
        self._found: dict[str, _Entry] | None = None
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        """All names, sorted. CompileError when two packages claim the same one."""
        return sorted(self._entries())

    def owner(self, name: str) -> str:
        """Who brings `name`: "qatc" or the name of an installed distribution. CompileError for an unknown name."""
        return self._entry(name).owner

    def get(self, name: str) -> T:
        """The value called `name` (any letter case).

        Raises:
            CompileError: with exit code 2 for an unknown name, which suggests the nearest; for a name with two owners;
                for a value of an installed package that cannot be imported.
        """
        name = name.lower()
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._entry(name))
        return self._loaded[name]

    def _entry(self, name: str) -> _Entry:
        entries = self._entries()
        if name in entries:
            return entries[name]
        hint = suggested(name, entries, f"known are {', '.join(sorted(entries))}")
        raise self._error(f"unknown {self._kind} {printable(name)!r}", hint)

    def _entries(self) -> dict[str, _Entry]:
        if self._found is None:
            found = {name: _Entry(reference, "qatc") for name, reference in self._builtin.items()}
            for point in entry_points(group=self._group):
                owner = point.dist.name if point.dist is not None else point.value
                name = point.name.lower()
                if name in found and found[name].reference != point.value:
                    message = f"{found[name].owner} and {owner} both bring a {self._kind} named {printable(name)!r}"
                    raise self._error(message, "uninstall one of them")
                found[name] = _Entry(point.value, owner)
            self._found = found
        return self._found

    def _load(self, name: str, entry: _Entry) -> T:
        module, _, attribute = entry.reference.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except (ImportError, AttributeError) as error:
            if entry.owner == "qatc":
                raise  # a bug of ours keeps its traceback
            message = f"the {self._kind} {printable(name)!r} of {entry.owner} cannot be loaded: {error}"
            raise self._error(message, f"reinstall or uninstall {entry.owner}") from error
        return cast(T, value)

    def _error(self, message: str, hint: str) -> CompileError:
        return misused(message, hint, self._code)


def frontends() -> Registry[Frontend]:
    """The dialects: built in and installed (entry points `qatc.frontends`)."""
    return _registry("dialect", "qatc.frontends", "QAT102")


def backends() -> Registry[Backend]:
    """The backends: built in and installed (entry points `qatc.backends`)."""
    return _registry("backend", "qatc.backends", "QAT305")


def _registry(kind: str, group: str, code: str) -> Registry[Any]:
    # by name, not by import: the compiler does not depend on what it drives
    return Registry(kind, group, importlib.import_module(group).BUILTIN, code)
