"""TensorFlow's own answer beside that of the converted file: a conversion that changed the network is told.

The compiler proves the package equal to the ONNX file that tf2onnx made. Whether that file is the user's network, only
TensorFlow can say. Differences of a rounding here and there are expected, since float sums come in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.diagnostics import Diagnostic, Severity, printable
from qatc.compiler.model_io import read_proto
from qatc.compiler.quant import Array
from qatc.compiler.runtime.sessions import RunnableModel, errors

_LIMIT: Final = 0.1  # of the root mean square of an output; another layout or padding is off by about 1
_SURE: Final = 0.5  # what deep 8-bit networks make of single steps stays below it, as a rule
_NOTHING: Final = 2.0**-20  # root mean squares that are rounding alone: what is left of a Sigmoid's sums near 0
_SEED: Final = 0

Answer = Callable[[Sequence[Array]], Sequence[Any]]


class NoWitnessError(Exception):
    """TensorFlow cannot run the model that it made; the message says why."""


def compare(path: Path, answer: Answer) -> tuple[Diagnostic, ...]:
    """QAT014 as a warning for each output of the ONNX file that is off from TensorFlow's on a random input.

    Args:
        path: the converted file.
        answer: TensorFlow's outputs for arrays in the order of the file's inputs.

    A note says why nothing is compared: the file leaves more than the batch open, ONNX Runtime does not run it (where
    TensorFlow's own nodes were left in it, for one), or TensorFlow does not (an integer division by what the random
    input makes 0, say).
    """
    model, _ = read_proto(path)
    runnable = RunnableModel(model, path.parent)
    feeds = _random_inputs(model, runnable.inputs)
    if feeds is None:
        return _not_compared("its inputs leave more sizes open than the batch")
    try:
        found = runnable.run(feeds)
    except errors() as error:
        return _not_compared(f"ONNX Runtime cannot run it: {printable(str(error))}")
    try:
        wanted = [np.asarray(array) for array in answer([feeds[name] for name in runnable.inputs])]
    except NoWitnessError as error:
        return _not_compared(f"it cannot run the model: {error}")
    except Exception as error:  # TensorFlow raises anything
        return _not_compared(f"it cannot run the model on a random input: {printable(str(error))}")
    pairs = zip(runnable.outputs, wanted, strict=True)
    return tuple(d for name, want in pairs for d in _compared(name, found[name], want))


def _not_compared(why: str) -> tuple[Diagnostic, ...]:
    message = f"the ONNX file that tf2onnx made was not compared with TensorFlow: {why}"
    hint = "compare a few answers with those of the program that does run it"
    return (Diagnostic("QAT014", message, Severity.NOTE, hint=hint),)


def _compared(name: str, found: Array, want: Array) -> Sequence[Diagnostic]:
    if found.shape != want.shape:
        off = f"has the shape {list(found.shape)}, in TensorFlow {list(want.shape)}"
    else:
        difference = _rms(found.astype(np.float64) - want.astype(np.float64))
        error = difference / max(_rms(want), np.finfo(np.float64).tiny)
        if error <= _LIMIT or difference <= _NOTHING:
            return ()
        off = f"is off from TensorFlow's by {error:.0%} (root mean square) on a random input"
        if error <= _SURE:
            return _doubtful(name, off)
    hint = "look for the operator that tf2onnx translates otherwise than you expect; try another version of it"
    message = f"the ONNX file that tf2onnx made is another network: its output {off}"
    return (Diagnostic("QAT014", message, Severity.WARNING, tensor=name, hint=hint),)


def _doubtful(name: str, off: str) -> Sequence[Diagnostic]:
    message = (
        f"the ONNX file that tf2onnx made may be another network: its output {off}; single steps that two programs"
        " round otherwise become as much in deep 8-bit networks"
    )
    hint = "compare answers to real inputs; if they differ, look for the operator that tf2onnx translates otherwise"
    return (Diagnostic("QAT014", message, Severity.WARNING, tensor=name, hint=hint),)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _random_inputs(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, Array] | None:
    """Normal numbers, integers of the whole range; an open batch is 1. None where other sizes are open."""
    random = np.random.default_rng(_SEED)
    found: dict[str, Array] = {}
    for port in (p for p in model.graph.input if p.name in names):
        kind = port.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim]
        shape = [1 if i == 0 and size <= 0 else size for i, size in enumerate(sizes)]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if any(size <= 0 for size in shape) or dtype.kind not in "fiu":
            return None
        if dtype.kind == "f":
            found[port.name] = random.normal(size=shape).astype(dtype)
        else:
            low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.itemsize == 1 else (0, 1)
            found[port.name] = random.integers(low, high, shape, dtype, endpoint=True)
    return found
