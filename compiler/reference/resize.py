"""Nearest-neighbor Resize: separable, so one index list per axis (onnx.reference walks every element in Python)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from qatc.compiler.quant import Array

_ROUND: Final[dict[str, Callable[[Array], Array]]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize_nearest(
    x: Array, scales: Array | None, sizes: Array | None, transformation: str, nearest: str
) -> list[Array] | None:
    """ONNX Resize (opset 11 and later) with mode "nearest", over all axes; None for a variant that is not handled."""
    if nearest not in _ROUND:
        return None
    if sizes is not None and sizes.size:
        lengths = [int(n) for n in sizes]
        factors = [length / n if n else 1.0 for length, n in zip(lengths, x.shape, strict=True)]
    elif scales is not None and scales.size:
        factors = [float(f) for f in scales]
        lengths = [int(np.floor(n * f)) for n, f in zip(x.shape, factors, strict=True)]
    else:
        return None
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if length == x.shape[axis] and factor == 1:
            continue
        at = _source(np.arange(length, dtype=np.float64), length, x.shape[axis], factor, transformation)
        if at is None:
            return None
        index = np.clip(_ROUND[nearest](at), 0, x.shape[axis] - 1).astype(np.int64)
        x = np.take(x, index, axis=axis)
    return [x]


def _source(at: Array, length: int, before: int, factor: float, transformation: str) -> Array | None:
    """Where output positions lie in the input."""
    if transformation == "asymmetric":
        source: Array = at / factor
    elif transformation == "half_pixel" or (transformation == "pytorch_half_pixel" and length > 1):
        source = (at + 0.5) / factor - 0.5
    elif transformation == "tf_half_pixel_for_nn":
        source = (at + 0.5) / factor
    elif transformation == "align_corners" and length > 1:
        source = at * (before - 1) / (length - 1)
    elif transformation in ("pytorch_half_pixel", "align_corners"):
        source = np.zeros_like(at)
    else:
        return None
    return source
