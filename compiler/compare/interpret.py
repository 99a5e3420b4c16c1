"""From the bytes of a dump to a tensor: npy describes itself, raw bytes are read as the package says they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qatc.compiler.compare.dump import Entry
from qatc.compiler.damaged import ARCHIVE
from qatc.compiler.golden.tensors import GoldenTensor
from qatc.compiler.npy import npy_array
from qatc.compiler.quant import Array, QuantParams

_EVEN: Final = 4  # what sizes are padded to a multiple of
_ALIGNED: Final = 64  # the largest of such multiples
# Devices like to dump an element a word: bytes -> magnitude above which it is a float; as integers all were too large
_WORDS: Final = {2: 2.0**-14, 4: 2.0**-60}
_FARTHEST: Final = 2**62  # beyond any grid; differences of what is farther apart would wrap around
_HEADER: Final = 1 << 16  # room for an npy header


@dataclass(frozen=True)
class Place:
    """Where a tensor of the graph lies in files: `axes[i]` is the graph's axis at place i."""

    axes: tuple[int, ...]
    params: QuantParams | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, tensor: GoldenTensor | None, value: Array, params: QuantParams | None) -> Place:
        """The place of a tensor with the expected `value`; `tensor` is its golden entry if it is quantized."""
        axes = tuple(range(value.ndim)) if tensor is None else tensor.axes
        return cls(axes, params, value.dtype if params is None else params.container)

    def stored(self, value: Array) -> Array:
        """A tensor of the graph in the files' order of axes, contiguous."""
        return np.ascontiguousarray(np.transpose(value, self.axes))

    def restored(self, stored: Array) -> Array:
        """The inverse of `stored`."""
        return np.transpose(stored, np.argsort(self.axes))


@dataclass(frozen=True)
class Dumped:
    """A tensor of a dump.

    Attributes:
        value: in the graph's order of axes; int64 for quantized tensors.
        stored: the same elements in the dump's own order and shape.
        message: what was done to them, "" where nothing was.
    """

    value: Array
    stored: Array
    message: str = ""


class NotATensorError(Exception):
    """Why an entry of a dump is not the tensor that it should be; `is_shape` where only the shape is wrong."""

    def __init__(self, reason: str, *, is_shape: bool = False) -> None:
        super().__init__(reason)
        self.is_shape = is_shape


def interpret(entry: Entry, place: Place, expected: Array) -> Dumped:
    """Read an entry as the tensor whose value should be `expected`.

    Raises:
        NotATensorError: with the reason where it cannot be.
    """
    if place.dtype.hasobject:
        raise NotATensorError("the tensor holds text, which cannot be compared")
    most = expected.size * 16 + _HEADER
    if entry.size > most:
        raise NotATensorError(f"it has {entry.size:,} bytes, the tensor {expected.size:,} elements of {place.dtype}")
    try:
        data = entry.read(most + 1)
    except ARCHIVE as error:
        raise NotATensorError(f"it cannot be read: {error}") from error
    if len(data) > most:
        raise NotATensorError(f"it has more than the {most:,} bytes that the tensor can need")
    if entry.is_raw:
        return _finish(*_raw(data, place, expected), place, expected)
    array = read_array(data)
    return _finish(*_shaped(array, place, expected), place, expected)


def read_array(data: bytes) -> Array:
    """The array of an untrusted npy file, checked before memory is taken. NotATensorError where it is none."""
    try:
        array = npy_array(data)
    except ValueError as error:
        raise NotATensorError(str(error)) from error
    if array.dtype.kind == "c" or array.dtype.itemsize > 8:
        raise NotATensorError(f"its elements are {array.dtype}, not numbers of at most 64 bits")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _raw(data: bytes, place: Place, expected: Array) -> tuple[Array, str]:
    shape = tuple(expected.shape[axis] for axis in place.axes)
    little = place.dtype.newbyteorder("<")
    if len(data) == expected.size * place.dtype.itemsize:
        return np.frombuffer(data, little).astype(place.dtype, copy=False).reshape(shape), ""
    word = len(data) // max(1, expected.size)
    fits = word in _WORDS and word > place.dtype.itemsize and len(data) == expected.size * word
    if fits and place.params is not None and not _ends_alike(data, shape, little):
        words = np.frombuffer(data, np.dtype(f"<i{word}")).reshape(shape)
        reals = words.view(f"<f{word}")
        sizes = np.abs(reals[reals != 0]).astype(np.float32)
        # small integers have the bits of NaN or of far smaller numbers
        if sizes.size and sizes.min() > _WORDS[word] and sizes.max() < 1 / _WORDS[4]:
            return reals, f"one {8 * word}-bit float an element"
        return words, f"one {8 * word}-bit word an element"
    sizes = f"{len(data):,} bytes, not {expected.size * place.dtype.itemsize:,}"
    text = f"it has {sizes} ({place.dtype} {list(shape)}){_as_padded(len(data), shape, place.dtype.itemsize)}"
    raise NotATensorError(text, is_shape=True)


def _ends_alike(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether data that are a multiple of the tensor are it with one number behind it along an axis: padding.

    Behind all of it, that is the end of the memory, which may not have been written.
    """
    values = np.frombuffer(data, dtype)
    for axis, n in enumerate(shape):
        whole = values.reshape(math.prod(shape[:axis]), -1, *shape[axis + 1 :])
        rest = whole[:, n:]
        if n > 1 and len(whole) > 1 and (rest == rest.flat[0]).all() and (whole != rest.flat[0]).any():
            return True
    return False


def _as_padded(size: int, shape: tuple[int, ...], itemsize: int) -> str:
    """Along which axes a device may have padded the tensor, so that there are `size` bytes of it."""
    whole, fits = math.prod(shape) * itemsize, dict[int, list[str]]()
    for axis, n in enumerate(shape if whole else ()):
        padded, rest = divmod(size * n, whole)
        if n > 1 and not rest and 0 < padded - n < _ALIGNED and padded % _EVEN == 0:
            fits.setdefault(padded, []).append(str(axis))
    told = [f"to {n} along axis {' or '.join(axes)}" for n, axes in fits.items()]
    return f": is it padded {', or '.join(told)}?" if told else ""


def _shaped(array: Array, place: Place, expected: Array) -> tuple[Array, str]:
    """An npy array in the files' shape: as it is, or from the graph's, without its ones, flat, or permuted."""
    shape = tuple(expected.shape[axis] for axis in place.axes)
    if array.shape == shape:
        return array, ""
    if array.shape == expected.shape:
        return place.stored(array), "in the model's layout"
    if array.size != expected.size:
        raise NotATensorError(f"its shape is {list(array.shape)}, not {list(shape)}", is_shape=True)
    if [n for n in array.shape if n != 1] == [n for n in shape if n != 1] or array.ndim == 1:
        return array.reshape(shape), ""
    return array, f"its shape is {list(array.shape)}, not {list(shape)}"


def _finish(stored: Array, message: str, place: Place, expected: Array) -> Dumped:
    """Integers of a quantized tensor as int64 (floats are put on the grid), others as they are."""
    shaped = stored.ndim == len(place.axes) and not message.startswith("its shape")
    if place.params is None:
        if stored.dtype.kind != place.dtype.kind and {stored.dtype.kind, place.dtype.kind} & {"f"}:
            raise NotATensorError(f"its elements are {stored.dtype}, not {place.dtype}")
    elif stored.dtype.kind == "f":
        stored, message = _on_grid(stored, place, expected, shaped=shaped, message=message)
    else:
        info = np.iinfo(stored.dtype) if stored.dtype.kind in "iu" else np.iinfo(np.uint8)
        stored = stored.clip(max(info.min, -_FARTHEST), min(info.max, _FARTHEST)).astype(np.int64)
    value = place.restored(stored) if shaped else stored
    return Dumped(value, stored, message)


def _on_grid(stored: Array, place: Place, expected: Array, *, shaped: bool, message: str) -> tuple[Array, str]:
    """Dequantized values, or integers that were saved as floats, as integers: what is nearer to the expected ones."""
    params = place.params
    if params is None or not np.isfinite(stored).all():
        raise NotATensorError("it holds NaN or infinity where there should be integers")
    real = stored.astype(np.float64)
    if np.abs(real).max(initial=0.0) >= 2.0**52:
        raise NotATensorError("it holds floats that are no integers of any grid")
    axis = params.axis
    if axis is not None:
        if not shaped:
            raise NotATensorError(message, is_shape=True)
        params = params.with_axis(place.axes.index(axis))
    scaled = np.rint(real / params.scale_array(stored.ndim) + params.zero_array(stored.ndim))
    scaled = scaled.clip(-_FARTHEST, _FARTHEST)
    if np.array_equal(np.rint(real), real) and _apart(real, expected) < _apart(scaled, expected):
        return real.astype(np.int64), _joined(message, "integers saved as floats")
    return scaled.astype(np.int64), _joined(message, "real values, put on the grid")


def _apart(values: Array, expected: Array) -> float:
    """How far the values of two tensors of one size are apart, in whatever order they lie."""
    return float(np.abs(np.sort(values, axis=None) - np.sort(expected, axis=None)).sum())


def _joined(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
