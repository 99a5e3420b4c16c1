"""What there is to evaluate with: metrics and data sets, built in, installed (entry points) or in a file of the user's.

A file is Python with any of the names METRIC, METRICS, LOADER and LOADERS at its top level. It runs as it is loaded:
whoever names it on the command line trusts it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from qatc.compiler.damaged import looking
from qatc.compiler.diagnostics import CompileError, fail, misused, printable
from qatc.compiler.evaluation.values import Loader, Metric, TaskMetric
from qatc.compiler.registry import Registry

AnyMetric = Metric | TaskMetric

_METRICS: Final[Mapping[str, str]] = {
    "agreement": "qatc.compiler.evaluation.metrics:AGREEMENT",
    "cosine": "qatc.compiler.evaluation.metrics:COSINE",
    "mae": "qatc.compiler.evaluation.metrics:MAE",
    "max-error": "qatc.compiler.evaluation.metrics:LARGEST",
    "miou": "qatc.compiler.evaluation.metrics:MIOU",
    "mse": "qatc.compiler.evaluation.metrics:MSE",
    "rmse": "qatc.compiler.evaluation.metrics:RMSE",
    "sqnr": "qatc.compiler.evaluation.metrics:SQNR",
    "top1": "qatc.compiler.evaluation.metrics:TOP1",
    "top5": "qatc.compiler.evaluation.metrics:TOP5",
}
_LOADERS: Final[Mapping[str, str]] = {
    "arrays": "qatc.compiler.evaluation.arrays:ARRAYS",
    "images": "qatc.compiler.evaluation.images:IMAGES",
    "npy": "qatc.compiler.evaluation.arrays:NPY",
    "npz": "qatc.compiler.evaluation.arrays:NPZ",
}
_NAMES: Final = ("METRIC", "METRICS", "LOADER", "LOADERS")

T = TypeVar("T", bound=AnyMetric | Loader)


class Shelf(Generic[T]):
    """Values of one kind by name: a registry, and what files brought along."""

    def __init__(self, kind: str, registry: Registry[T]) -> None:
        self._kind, self._registry = kind, registry
        self._own: dict[str, tuple[T, str]] = {}

    def add(self, value: T, owner: str) -> None:
        """Add what the file `owner` brings.

        Raises:
            CompileError: QAT007 with exit code 2 where the name is taken.
        """
        name = value.name.lower()
        taken = self._own[name][1] if name in self._own else None
        if taken is None and name in self._registry.names():
            taken = self._registry.owner(name)
        if taken is not None:
            message = f"{taken} and {owner} both bring a {self._kind} named {printable(name)!r}"
            raise misused(message, "rename the one in your file")
        self._own[name] = (value, owner)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._own, *self._registry.names()})

    def get(self, name: str) -> T:
        """The value called `name` (any letter case); CompileError QAT007 for an unknown one."""
        found = self._own.get(name.lower())
        return found[0] if found is not None else self._registry.get(name)

    def own(self) -> list[T]:
        """What files brought, in their order."""
        return [value for value, _ in self._own.values()]


class Catalog:
    """The metrics and loaders of one evaluation."""

    def __init__(self, plugins: Sequence[Path] = ()) -> None:
        """A catalog with the files `plugins`; CompileError QAT007 for what is wrong with them."""
        self.metrics: Shelf[AnyMetric] = Shelf("metric", Registry("metric", "qatc.metrics", _METRICS, "QAT007"))
        self.loaders: Shelf[Loader] = Shelf("data set", Registry("data set", "qatc.datasets", _LOADERS, "QAT007"))
        self._plugins: dict[str, str] = {}  # the names of the modules that the files became, with the files
        for path in plugins:
            self._load(path)

    def loader(self, path: Path, name: str | None = None) -> Loader:
        """The loader called `name`, or without one the first that accepts `path`, files' own ones first.

        Raises:
            CompileError: QAT008 where there is nothing at `path` or nothing that anybody reads.
        """
        shown = printable(str(path))
        if name is not None:
            return self.loaders.get(name)
        own = self.loaders.own()
        rest = [self.loaders.get(known) for known in self.loaders.names()]
        with looking("QAT008", path, "check the path and its permissions"):
            for loader in [*own, *(each for each in rest if each not in own)]:
                if loader.accepts(path):
                    return loader
            exists = path.exists()
        if not exists:
            raise fail("QAT008", f"{shown} does not exist", hint="give an .npz file, or a folder of arrays or images")
        known = "; ".join(f"{each.name}: {each.summary}" for each in [*own, *rest])
        raise fail("QAT008", f"nobody reads {shown}", hint=f"known are {known}; --plugin FILE.py adds one of your own")

    def fault(self, error: BaseException) -> CompileError | None:
        """QAT007 where the code of a plug-in raised `error`, as it is no bug of ours; None where other code did."""
        modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        last = next((m for m in reversed(modules) if m in self._plugins or m.partition(".")[0] == "qatc"), "")
        if last not in self._plugins:
            return None
        return _failed(f"{self._plugins[last]} failed", error, "repair it, or leave it out")

    def _load(self, path: Path) -> None:
        shown = printable(str(path))
        module = _module(path)
        self._plugins[module.__name__] = shown
        found: list[Any] = []
        for name in _NAMES:
            value: Any = getattr(module, name, None)
            if value is not None:
                found += cast("Sequence[Any]", value) if isinstance(value, (list, tuple)) else [value]
        if not found:
            hint = "give it METRICS = [...] or LOADERS = [...]; docs/evaluation.md has an example"
            raise misused(f"{shown} has none of {', '.join(_NAMES)}", hint)
        for value in found:
            if isinstance(value, (Metric, TaskMetric)):
                self.metrics.add(value, shown)
            elif isinstance(value, Loader):
                self.loaders.add(value, shown)
            else:
                message = (
                    f"{shown} brings a value of type {type(value).__name__}, which is neither a metric nor a loader"
                )
                hint = "make it with Metric, TaskMetric, mean_metric or Loader of qatc.compiler.evaluation"
                raise misused(message, hint)


def _module(path: Path) -> Any:
    """Run a file as a module that nothing else finds."""
    shown = printable(str(path))
    spec = importlib.util.spec_from_file_location(f"qatc_plugin_{abs(hash(path.resolve())):x}", path)
    if not os.path.isfile(path):  # noqa: PTH113 - where it cannot be looked at, neither
        raise misused(f"there is no file {shown}", "check the path and its permissions")
    if spec is None or spec.loader is None:
        raise misused(f"{shown} is no Python file", "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is somebody else's code, and may raise anything, or end us
        del sys.modules[spec.name]
        raise _failed(f"{shown} cannot be loaded", error, "run it with python to see where") from error
    return module


def _failed(what: str, error: BaseException, hint: str) -> CompileError:
    return misused(f"{what}: {type(error).__name__}: {printable(str(error))}", hint)
