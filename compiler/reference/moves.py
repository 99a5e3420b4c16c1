"""ONNX operators that only move elements, on arrays: as ONNX defines them, in the forms of every opset.

The executor runs them on stored integers, constant folding on constants. Results may be views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qatc.compiler.quant import Array


@dataclass(frozen=True)
class Call:
    """The arguments of one evaluation."""

    inputs: list[Array | None]
    attrs: Mapping[str, Any]
    n_outputs: int = 1
    opset: int = 13

    @property
    def x(self) -> Array:
        """The first input."""
        return self.array(0)

    def array(self, index: int) -> Array:
        """An input that must be there; ValueError when it is not."""
        value = self.optional(index)
        if value is None:
            raise ValueError(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Array | None:
        """An input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def given(self) -> list[Array]:
        """The inputs that are not absent."""
        return [v for v in self.inputs if v is not None]

    def operand(self, index: int) -> list[int]:
        """The integers of an input that must be there."""
        return [int(v) for v in self.array(index).reshape(-1)]

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers that older opsets hold in attribute `name`, newer ones in an input; None when neither is given."""
        value = self.optional(index) if self.attrs.get(name) is None else np.asarray(self.attrs[name])
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def attr(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attrs.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


def _reshape(call: Call) -> list[Array]:
    shape = call.ints("shape", 1) or []
    if not call.attr("allowzero", 0):
        shape = [call.x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return [call.x.reshape(shape)]


def _transpose(call: Call) -> list[Array]:
    return [np.transpose(call.x, call.attrs.get("perm"))]


def _flatten(call: Call) -> list[Array]:
    axis = call.attr("axis", 1)
    split = axis + call.x.ndim if axis < 0 else axis
    return [call.x.reshape(math.prod(call.x.shape[:split]), math.prod(call.x.shape[split:]))]


def _squeeze(call: Call) -> list[Array]:
    return [np.squeeze(call.x, tuple(call.ints("axes", 1) or ()) or None)]  # an empty list is none


def _unsqueeze(call: Call) -> list[Array]:
    return [np.expand_dims(call.x, tuple(call.ints("axes", 1) or ()))]


def _slice(call: Call) -> list[Array]:
    starts, ends = call.ints("starts", 1) or [], call.ints("ends", 2) or []
    axes = call.ints("axes", 3) or list(range(len(starts)))
    steps = call.ints("steps", 4) or [1] * len(starts)
    index = [slice(None)] * call.x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Python agrees with ONNX but for a start before the first element, which ONNX moves there.
        index[axis] = slice(max(start, -call.x.shape[axis]), end, step)
    return [call.x[tuple(index)]]


def _gather(call: Call) -> list[Array]:
    return [np.take(call.x, call.array(1), axis=call.attr("axis", 0))]


def _gather_elements(call: Call) -> list[Array]:
    indices, axis = call.array(1), call.attr("axis", 0)
    place = list(np.ogrid[tuple(slice(n) for n in indices.shape)])  # where an element lies, in all axes but one
    place[axis] = indices
    return [call.x[tuple(place)]]


def _concat(call: Call) -> list[Array]:
    return [np.concatenate([call.array(i) for i in range(len(call.inputs))], axis=call.attr("axis", 0))]


def _split(call: Call) -> list[Array]:
    axis = call.attr("axis", 0)
    length, sizes = call.x.shape[axis], call.ints("split", 1)
    if sizes is None:
        size = -(-length // call.n_outputs)
        cuts = [min(i * size, length) for i in range(1, call.n_outputs)]
    elif sum(sizes) != length or len(sizes) != call.n_outputs:
        raise ValueError(f"parts {sizes} do not fit {length} elements")
    else:
        cuts = np.cumsum(sizes)[:-1].tolist()
    return np.split(call.x, cuts, axis=axis)


def _expand(call: Call) -> list[Array]:
    shape = np.broadcast_shapes(call.x.shape, tuple(call.ints("shape", 1) or ()))
    return [np.array(np.broadcast_to(call.x, shape))]


MOVES: Final[dict[str, Callable[[Call], list[Array]]]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda call: [np.where(call.x, call.array(1), call.array(2))],
}
