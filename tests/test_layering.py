"""The import order: one direction, no back doors, and nothing but `qatc.` names.

The table below is the architecture. A module imports from its own level or from below, never from above and
never in a circle; `compiler` knows neither `frontends` nor `backends` nor `cli`: it loads them by name where
it must. Imports under `if TYPE_CHECKING:` and in functions obey the levels too; only circles are forgiven.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: What may import what: a unit is a module of `compiler`, one of its folders, or a top-level folder.
LEVELS = {
    "qatc.compiler.damaged": 0,
    "qatc.compiler.diagnostics": 0,
    "qatc.compiler.interruption": 0,
    "qatc.compiler.quant": 0,
    "qatc.compiler.arithmetic": 1,
    "qatc.compiler.budget": 1,
    "qatc.compiler.explain": 1,
    "qatc.compiler.graph": 1,
    "qatc.compiler.model": 1,
    "qatc.compiler.model_io": 1,
    "qatc.compiler.npy": 1,
    "qatc.compiler.result": 1,
    "qatc.compiler.shapes": 1,
    "qatc.compiler.storage": 1,
    "qatc.compiler.target": 1,
    "qatc.compiler.integer": 2,
    "qatc.compiler.layout": 2,
    "qatc.compiler.rewrite": 2,
    "qatc.compiler.windows": 2,
    "qatc.compiler.backend": 3,
    "qatc.compiler.coverage": 3,
    "qatc.compiler.frontend": 3,
    "qatc.compiler.lowering": 3,
    "qatc.compiler.package": 3,
    "qatc.compiler.passes": 3,
    "qatc.compiler.ports": 3,
    "qatc.compiler.qdq": 3,
    "qatc.compiler.reference": 3,
    "qatc.compiler.registry": 3,
    "qatc.compiler.runtime": 3,
    "qatc.compiler.samples": 3,
    "qatc.compiler.calibration": 4,
    "qatc.compiler.compare": 4,
    "qatc.compiler.golden": 4,
    "qatc.compiler.inspection": 4,
    "qatc.compiler.report": 4,
    "qatc.compiler.simulation": 4,
    "qatc.compiler.verify": 4,
    "qatc.compiler.command": 5,
    "qatc.compiler.driver": 5,
    "qatc.compiler.evaluation": 5,
    "qatc.frontends": 3,
    "qatc.backends": 3,
    "qatc.cli": 6,
}

#: The outer units: nothing in `compiler` imports them, nor do they import each other.
OUTER = {"qatc.frontends", "qatc.backends", "qatc.cli"}

#: Top-level names of the repository that are no packages of anybody's.
BARE = {"compiler", "frontends", "backends", "cli"}

#: Slow to import, so never at the top of a module.
LAZY = {"onnxruntime", "tensorflow", "tf2onnx", "torch"}

#: Modules that exist for such a library, and that nothing else of qatc imports.
BRIDGES = {
    f"qatc.frontends.{name}"
    for name in (
        "torch_qat",
        "tf_qat",
        "tf.convert",
        "tf.load",
        "tf.tflite_form",
        "tf.tflite_loops",
        "tf.tflite_lstm",
        "tf.tflite_states",
    )
}

#: What the lowest level may use beside the standard library.
LEVEL_0_MAY_USE = {"numpy", "qatc"}


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is the longest dotted name that the statement spells out."""

    file: Path
    line: int
    target: str
    level: int  # dots in front of a relative import
    deferred: bool  # inside a function or under TYPE_CHECKING

    def at(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def source_files() -> list[Path]:
    """Every Python file of the repository under its real path."""
    folders = ["benchmarks", "compiler", "frontends", "backends", "tests", ".ci"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found += [*ROOT.glob("*.py"), *(path for path in (ROOT / "qatc").glob("*.py") if not path.is_symlink())]
    return sorted(found)


def imports(file: Path) -> list[Import]:
    """All imports of a file, also those in functions."""
    return list(_walk(file, ast.parse(file.read_text(encoding="utf-8")), deferred=False))


def _walk(file: Path, node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file, node.lineno, alias.name, 0, deferred)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            target = f"{node.module}.{alias.name}" if node.module else alias.name
            yield Import(file, node.lineno, target, node.level, deferred)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(file, child, deferred=True)
        for child in node.orelse:
            yield from _walk(file, child, deferred=deferred)
    else:
        inside = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from _walk(file, child, deferred=inside)


def module_of(file: Path) -> str:
    """The dotted name under which a source file is imported, or "" for tests and scripts."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] in BARE:
        parts = ("qatc", *parts)
    if parts[0] != "qatc":
        return ""
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str | None:
    """The row of the table that a dotted name belongs to."""
    return next((unit for unit in LEVELS if module == unit or module.startswith(unit + ".")), None)


FILES = source_files()
ALL = [found for file in FILES for found in imports(file)]


def report(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_every_module_has_a_level() -> None:
    known = {"qatc", "qatc.__main__", "qatc._version", "qatc.compiler"}
    modules = [module_of(file) for file in FILES]
    report(
        [f"{m}: give it a level in {Path(__file__).name}" for m in modules if m and m not in known and not unit_of(m)]
    )


def test_imports_are_absolute_and_start_with_qatc() -> None:
    relative = [f"{found.at()}: relative import of {found.target}" for found in ALL if found.level]
    bare = [
        f"{found.at()}: import qatc.{found.target}, not {found.target}"
        for found in ALL
        if not found.level and found.target.split(".")[0] in BARE
    ]
    report(relative + bare)


def test_nothing_imports_from_above() -> None:
    problems: list[str] = []
    for found in ALL:
        here, there = unit_of(module_of(found.file)), unit_of(found.target)
        if here is None or there is None or here == there:
            continue
        if there in OUTER and here != "qatc.cli":
            problems.append(f"{found.at()}: {here} must not know {found.target}")
        elif LEVELS[there] > LEVELS[here]:
            problems.append(
                f"{found.at()}: {here} (level {LEVELS[here]}) imports {found.target} (level {LEVELS[there]})"
            )
    report(problems)


def test_no_circles() -> None:
    """Neither among modules nor among units: what lies in two folders of one level goes from one to the other."""
    modules = {module_of(file) for file in FILES} - {""}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    units: dict[str, set[str]] = {}
    for found in ALL:
        here = module_of(found.file)
        if not here or found.deferred:
            continue
        there = found.target if found.target in modules else found.target.rpartition(".")[0]
        if there in modules and there != here:
            edges[here].add(there)
        of, to = unit_of(here), unit_of(found.target)
        if of and to and of != to:
            units.setdefault(of, set()).add(to)
    try:
        TopologicalSorter(edges).prepare()
        TopologicalSorter(units).prepare()
    except CycleError as error:
        pytest.fail("imports go round in a circle: " + " -> ".join(error.args[1]), pytrace=False)


def test_the_lowest_level_is_plain_python() -> None:
    allowed = sys.stdlib_module_names | LEVEL_0_MAY_USE
    report(
        [
            f"{found.at()}: level 0 uses the standard library and numpy alone, not {found.target}"
            for found in ALL
            if LEVELS.get(unit_of(module_of(found.file)) or "") == 0 and found.target.split(".")[0] not in allowed
        ]
    )


def test_slow_libraries_load_on_first_use() -> None:
    report(
        [
            f"{found.at()}: import {found.target} inside the function that needs it"
            for found in ALL
            if module_of(found.file) and not found.deferred and found.target.split(".")[0] in LAZY
            if not is_bridge(module_of(found.file))
        ]
    )


def is_bridge(module: str) -> bool:
    return any(module == bridge or module.startswith(bridge + ".") for bridge in BRIDGES)


def test_nothing_imports_the_bridges() -> None:
    report(
        [
            f"{found.at()}: {found.target} needs a library that qatc does without"
            for found in ALL
            if module_of(found.file) and is_bridge(found.target) and not is_bridge(module_of(found.file))
        ]
    )


def test_the_checks_see_what_they_must(tmp_path: Path) -> None:
    """The parser above finds each kind of import, with its line."""
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b\nfrom c import d, e\nfrom . import f\n"
        "if TYPE_CHECKING:\n    import g\ndef h():\n    from i import j\n"
    )
    found = [(one.target, one.level, one.line, one.deferred) for one in imports(file)]
    assert found == [
        ("a.b", 0, 1, False),
        ("c.d", 0, 2, False),
        ("c.e", 0, 2, False),
        ("f", 1, 3, False),
        ("g", 0, 5, True),
        ("i.j", 0, 7, True),
    ]
