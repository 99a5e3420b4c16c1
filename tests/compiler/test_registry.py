"""Registries: lazy, sorted, and never a silent choice between two owners."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.registry import Registry

BUILTIN = {"path": "pathlib:Path", "array": "array:array.fromlist"}


@dataclass(frozen=True)
class _Distribution:
    name: str


class _Point(EntryPoint):
    """An entry point of a distribution that is not installed."""

    dist = _Distribution("other")  # type: ignore[assignment]


def registry(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> Registry[object]:
    found = [_Point(name, value, "qatc.things") for name, value in points]
    monkeypatch.setattr("qatc.compiler.registry.entry_points", lambda group: found if group == "qatc.things" else [])
    return Registry("thing", "qatc.things", BUILTIN, "QAT305")


def test_built_ins_and_installed_ones_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry(monkeypatch, ("zip", "zipfile:ZipFile"))
    assert found.names() == ["array", "path", "zip"]
    assert found.owner("path") == "qatc"
    assert found.owner("zip") == "other"
    assert found.get("PATH") is __import__("pathlib").Path
    assert found.get("array") is __import__("array").array.fromlist
    assert found.get("zip") is __import__("zipfile").ZipFile


def test_nothing_is_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    found = registry(monkeypatch, ("wave", "wave:Wave_read"))
    assert "wave" in found.names()
    assert "wave" not in sys.modules


def test_an_unknown_name_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError) as caught:
        registry(monkeypatch).get("pth")
    (diagnostic,) = caught.value.diagnostics
    assert caught.value.exit_code == 2
    assert diagnostic.code == "QAT305"
    assert diagnostic.hint == "did you mean path? known are array, path"


def test_a_clash_names_both_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry(monkeypatch, ("path", "elsewhere:Path"))
    for ask in (found.names, lambda: found.get("path"), lambda: found.get("array")):
        with pytest.raises(CompileError, match="qatc and other both bring a thing named 'path'"):
            ask()


def test_the_same_value_twice_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry(monkeypatch, ("path", BUILTIN["path"])).names() == ["array", "path"]


@pytest.mark.parametrize("value", ["no.such.module:X", "pathlib:NoSuchThing"])
def test_what_cannot_be_loaded_is_told_with_its_owner(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(CompileError, match=r"the thing 'broken' of other cannot be loaded"):
        registry(monkeypatch, ("broken", value)).get("broken")


def test_the_real_tables_lead_somewhere() -> None:
    from qatc import backends

    found: Registry[object] = Registry("backend", "qatc.backends", backends.BUILTIN, "QAT305")
    for name in found.names():
        assert getattr(found.get(name), "name", None) == name
