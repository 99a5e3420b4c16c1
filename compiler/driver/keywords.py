"""The options of a call from Python: their types for type checkers, and the same checked when the call is made.

The command line has checked its own before; a wrong one from Python ends the same way, before any work is done.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

from qatc.compiler.diagnostics import CompileError, Diagnostic, misused, printable, suggested

File = str | os.PathLike[str]
Rules = Mapping[str, tuple[Callable[[Any], bool], str]]  # option -> whether a value will do, and in words which do


class CompileKeywords(TypedDict, total=False):
    """The options of `compile_model` and `inspect_model`, which are those of `qatc compile` (docs/python.md)."""

    qat: bool
    dialect: str
    target: File
    options: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]]
    inputs: Mapping[str, File] | Sequence[tuple[str, File]]
    samples: int
    seed: int
    calibrate: File | None
    calibration_method: Literal["minmax", "percentile", "entropy", "mse"]
    io: Literal["float", "integer"]
    require_integer: bool
    tolerance: Mapping[str, float]
    verify: bool
    quant_range: str | None
    ranges: File | None
    arithmetic: str | None
    golden: bool
    golden_header: bool
    explain: bool
    max_memory: int | str | None
    sign: File | None
    certificate: File | None


def check_options(options: Mapping[str, Any], rules: Rules) -> None:
    """Check the options of a call.

    Raises:
        CompileError: QAT007 with exit code 2 for a name that `rules` do not know, else for all values of another kind.
    """
    unknown = sorted(options.keys() - rules.keys())
    if unknown:
        hint = suggested(unknown[0], rules, f"known are {', '.join(sorted(rules))}")
        raise misused(f"unknown option {printable(unknown[0])}", hint)
    wrong = [
        Diagnostic("QAT007", f"the option {name} is {printable(repr(value))}", hint=f"it has to be {rules[name][1]}")
        for name, value in options.items()
        if not rules[name][0](value)
    ]
    if wrong:
        raise CompileError(wrong, 2)


def model_path(given: object) -> Path:
    """The path of the model that a call gives. CompileError (QAT007, exit code 2) for a model in memory."""
    if not _is_file(given):
        kind = printable(type(given).__name__)
        raise misused(f"the model is a {kind}, not a path", "save it, as onnx.save does, and give the file's path")
    return Path(cast("File", given))


def _is_file(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _maps(value: object, fits: Callable[[Any], bool]) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(k, str) and fits(v) for k, v in cast("Mapping[object, object]", value).items())


def _is_shape(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(map(_is_whole(1), cast("Sequence[object]", value)))


def _are_inputs(value: object) -> bool:
    if isinstance(value, Mapping):
        return _maps(cast("object", value), _is_file)
    return isinstance(value, Sequence) and all(map(_is_input, cast("Sequence[object]", value)))


def _is_input(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    pair = cast("Sequence[object]", value)
    return len(pair) == 2 and isinstance(pair[0], str) and _is_file(pair[1])


def _are_limits(value: object) -> bool:
    from dataclasses import fields

    from qatc.compiler.verify.limits import Limits

    known = {f.name for f in fields(Limits)}
    if not _maps(value, _is_limit):
        return False
    limits = cast("Mapping[str, float]", value)
    return set(limits) <= known and all(limits.get(share, 1) <= 1 for share in ("equal_share", "agreement"))


def _is_limit(value: object) -> bool:
    return 0 <= _number(value) < math.inf


def _are_bounds(value: object) -> bool:
    return _maps(value, _is_score)


def _is_score(value: object) -> bool:
    return not math.isnan(_number(value))


def _number(value: object) -> float:
    """A real number as a float, NaN where it is none or no float holds it."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, cast("list[object]", value)))


def _is_method(value: object) -> bool:
    from qatc.compiler.calibration.histogram import METHODS

    return isinstance(value, str) and value in METHODS


_FLAG: Final = (_is_flag, "True or False")
_TEXT: Final = (_is_text, "a string")
_FILE: Final = (_optional(_is_file), "a path")
OUTPUT: Final[Rules] = {"output": _FILE}
COMPILE: Final[Rules] = {
    "qat": _FLAG,
    "dialect": _TEXT,
    "target": (_is_file, "the name of a target, or the path of a description"),
    "options": (lambda value: _maps(value, _is_text), "a dictionary of strings"),
    "shapes": (lambda value: _maps(value, _is_shape), "a dictionary of shapes, such as {'x': (1, 3, 224, 224)}"),
    "inputs": (_are_inputs, "a dictionary of files, such as {'x': 'x.npy'}, or a list of such pairs"),
    "samples": (_is_whole(1), "a number of at least 1"),
    "seed": (_is_whole(0, 2**32 - 1), "a number from 0 to 2**32 - 1"),
    "calibrate": _FILE,
    "calibration_method": (_is_method, "'minmax', 'percentile', 'entropy' or 'mse'"),
    "io": (lambda value: value in ("float", "integer"), "'float' or 'integer'"),
    "require_integer": _FLAG,
    "tolerance": (
        _are_limits,
        "a dictionary of numbers of at least 0 by names out of max_lsb, equal_share, float_tolerance, output_lsb and"
        " agreement; equal_share and agreement are at most 1, which is all of them",
    ),
    "verify": _FLAG,
    "quant_range": (_optional(_is_text), "a string, such as 'act=0..127'"),
    "ranges": _FILE,
    "arithmetic": (_optional(_is_text), "the name of an arithmetic profile"),
    "golden": _FLAG,
    "golden_header": _FLAG,
    "explain": _FLAG,
    "max_memory": (lambda _: True, ""),  # `budget.limited` says what is wrong with it
    "sign": _FILE,
    "certificate": _FILE,
}
_COUNT: Final = (_optional(_is_whole(1)), "a number of at least 1")
_NAME: Final = (_optional(_is_text), "a string")
_BOUNDS: Final = (_are_bounds, "a dictionary of numbers by metrics")
EVALUATE: Final[Rules] = {
    "metrics": (_are(_is_text), "a list of strings"),
    "model": _FILE,
    "float_model": _FILE,
    "runs": (_optional(_are(_is_text)), "a list of strings"),
    "plugins": (_are(_is_file), "a list of paths"),
    "dataset": _NAME,
    "data_options": (lambda value: _maps(value, _is_text), "a dictionary of strings"),
    "output": _NAME,
    "batch": _COUNT,
    "limit": _COUNT,
    "require": _BOUNDS,
    "max_loss": _BOUNDS,
    "report": _FLAG,
}
