"""What a compile is told: the options of the command line, checked, and what the package records of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from qatc.compiler.diagnostics import CompileError, Diagnostic, file_name, misused, printable
from qatc.compiler.driver.keywords import COMPILE, OUTPUT, check_options
from qatc.compiler.frontend import RangeOverride
from qatc.compiler.graph import Dim, QuantGraph, Variable, shape_of
from qatc.compiler.result import Json
from qatc.compiler.target import read_toml

_LARGEST: Final = 2**63 - 1  # dimension that a model can state
_FILES: Final = ("calibrate", "ranges", "sign", "certificate")  # given as a path or as text


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """What a compile is told; names and meanings as the command line's (docs/cli.md)."""

    qat: bool = False
    dialect: str = "auto"
    output: Path | None = None
    target: str = "onnx"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict[str, Sequence[int]])
    inputs: Sequence[tuple[str, Path]] = ()
    samples: int = 1
    seed: int = 0
    calibrate: Path | None = None
    calibration_method: str = "minmax"
    io: str = "float"
    require_integer: bool = False
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    verify: bool = True
    quant_range: str | None = None
    ranges: Path | None = None
    arithmetic: str | None = None
    golden: bool = False
    golden_header: bool = False
    explain: bool = False
    max_memory: int | str | None = None
    sign: Path | None = None
    certificate: Path | None = None

    @classmethod
    def of_keywords(cls, options: Mapping[str, Any], output: str | Path | None = None) -> CompileOptions:
        """The options of a call. CompileError (QAT007, exit code 2) for unknown names and values of another kind."""
        check_options(options, COMPILE)
        check_options({"output": output}, OUTPUT)
        chosen: dict[str, Any] = {
            name: Path(value) if name in _FILES and value else value for name, value in options.items()
        }
        if "inputs" in chosen:
            given = chosen["inputs"]
            pairs: Any = cast("Mapping[str, Any]", given).items() if isinstance(given, Mapping) else given
            chosen["inputs"] = [(name, Path(path)) for name, path in pairs]
        if "target" in chosen:
            chosen["target"] = os.fspath(chosen["target"])
        found = cls(**chosen, output=None if output is None else Path(output))
        unheard = list(found.unheard())
        if unheard:
            raise CompileError(unheard, 2)
        return found

    def unheard(self) -> Iterator[Diagnostic]:
        """QAT007 for every option that others leave without anything to do."""
        if self.inputs and (self.samples, self.seed) != (1, 0):
            message = "--samples and --seed are for generated samples, and --input gives some"
            yield Diagnostic("QAT007", message, hint="leave either out")
        if self.calibrate is None and self.calibration_method != "minmax":
            message = f"--calibration-method {self.calibration_method} has no data to find ranges in"
            yield Diagnostic("QAT007", message, hint="give some with --calibrate, or leave it out")
        if self.tolerance and not self.verify:
            message = "--tolerance is for the verification, and --no-verify leaves that out"
            yield Diagnostic("QAT007", message, hint="leave either out")

    def recorded(self) -> dict[str, Json]:
        """The options that shape the package: files by their bare names, nothing of this machine."""
        chosen = dataclasses.asdict(self)
        for name in ("output", "explain", "max_memory", "sign", "certificate"):
            del chosen[name]
        chosen["shapes"] = {name: list(shape) for name, shape in sorted(self.shapes.items())}
        chosen["inputs"] = [[name, file_name(path)] for name, path in self.inputs]
        for name in ("options", "tolerance"):
            chosen[name] = dict(sorted(chosen[name].items()))
        return {k: file_name(v) if isinstance(v, Path) else v for k, v in chosen.items()}


def pin_shapes(graph: QuantGraph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs the shapes that the user pins; what goes by the same symbols in others, and the outputs, follow.

    Raises:
        CompileError: QAT007 with exit code 2 for unknown inputs and for shapes that contradict the model.
    """
    inputs = {t.name: t for t in graph.inputs}
    wrong = [d for name, shape in shapes.items() if (d := _misfit(inputs, name, shape)) is not None]
    if wrong:
        raise CompileError(wrong, 2)
    if not shapes:
        return
    symbols: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        for symbol, size in zip(shape_of(inputs[name]) or (), shape, strict=False):
            if isinstance(symbol, str):
                symbols.setdefault(symbol, set()).add(size)
        inputs[name].shape = list(shape)
    known = {symbol: size for symbol, (size, *others) in symbols.items() if not others}
    for tensor in inputs.values():
        if tensor.name not in shapes and tensor.shape is not None:
            tensor.shape = [known.get(d, d) if isinstance(d, str) else d for d in tensor.shape]
    for output in graph.outputs:
        if isinstance(output, Variable):
            output.shape = None


def _misfit(inputs: Mapping[str, Variable], name: str, shape: Sequence[int]) -> Diagnostic | None:
    """What is wrong with pinning an input to a shape, None where nothing is."""
    if name not in inputs:
        hint = f"its inputs are {', '.join(printable(n) for n in inputs)}"
        return Diagnostic("QAT007", f"the model has no input {printable(name)}", hint=hint)
    declared = shape_of(inputs[name])
    if _fits(shape, declared):
        return None
    message = f"the shape {list(shape)} does not fit the declared {list(declared or ())}"
    hint = "fixed dimensions cannot be changed; pin the symbolic ones with positive numbers"
    return Diagnostic("QAT007", message, tensor=name, hint=hint)


def _fits(shape: Sequence[int], declared: Sequence[Dim] | None) -> bool:
    """Whether a shape that the user pins says what the model leaves open, and nothing else."""
    if not all(0 < size <= _LARGEST for size in shape):
        return False
    if declared is None:
        return True
    pairs = zip(declared, shape, strict=False)
    return len(declared) == len(shape) and all(not isinstance(d, int) or d == size for d, size in pairs)


def parse_ranges(text: str | None) -> RangeOverride:
    """`act=0..127,weight=-127..127`, or a TOML file with `act`, `weight` and a table `[tensors]` of such ranges.

    Raises:
        CompileError: QAT007 with exit code 2 where it is written in another way.
    """
    if not text:
        return RangeOverride()
    stated = _ranges_in_file(Path(text)) if text.endswith(".toml") else _ranges_in_text(text)
    found = {name: _range(name, span) for name, span in stated.items()}
    listed = {n.removeprefix("tensors."): r for n, r in found.items() if n.startswith("tensors.")}
    return RangeOverride(found.get("act"), found.get("weight"), listed)


def _ranges_in_file(path: Path) -> dict[str, Any]:
    stated = read_toml(path)
    tensors = stated.pop("tensors", {})
    if not isinstance(tensors, dict):
        raise _unreadable("tensors", "it is no table")
    return {**stated, **{f"tensors.{name}": span for name, span in cast("dict[str, Any]", tensors).items()}}


def _ranges_in_text(text: str) -> dict[str, Any]:
    parts = [(name.strip(), span) for name, _, span in (part.partition("=") for part in text.split(","))]
    twice = [name for index, (name, _) in enumerate(parts) if name in dict(parts[:index])]
    if twice:
        raise _unreadable(text, f"{printable(twice[0])} has two ranges")
    return dict(parts)


def _range(name: str, span: object) -> tuple[int, int]:
    low, dots, high = str(span).partition("..")
    written = f"{name}={span}" if span or not name else name
    if not dots or (name not in ("act", "weight") and not name.startswith("tensors.")):
        raise _unreadable(written)
    try:
        ends = int(low), int(high)
    except ValueError as error:
        raise _unreadable(written) from error
    if ends[0] > ends[1]:
        raise _unreadable(written, "the smallest integer comes first")
    return ends


def _unreadable(text: str, why: str = "") -> CompileError:
    hint = 'write --quant-range act=0..127,weight=-127..127, or in a TOML file act = "0..127" and a table [tensors]'
    message = f"cannot read the quantization range {printable(text)!r}" + (f": {why}" if why else "")
    return misused(message, hint)
