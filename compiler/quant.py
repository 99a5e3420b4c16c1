"""QuantParams: how integers stand for real numbers, `real = scale * (q - zero_point)`; all rounding lives here.

Formulas are those of ONNX QuantizeLinear and DequantizeLinear (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html):
`q = saturate(round_half_even(x / scale) + zero_point)`, computed in float32 as ONNX Runtime does.
"""

from __future__ import annotations

import functools
import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# dtype name -> (smallest, largest, numpy container)
_RANGES: Final[dict[str, tuple[int, int, type[np.integer[Any]]]]] = {
    "int2": (-2, 1, np.int8),
    "uint2": (0, 3, np.uint8),
    "int4": (-8, 7, np.int8),
    "uint4": (0, 15, np.uint8),
    "int8": (-128, 127, np.int8),
    "uint8": (0, 255, np.uint8),
    "int16": (-32768, 32767, np.int16),
    "uint16": (0, 65535, np.uint16),
    "int32": (-(2**31), 2**31 - 1, np.int32),
}
DTYPES: Final = tuple(_RANGES)
_SHOWN: Final = 8  # elements of an array that a dump lists
_DIGESTED: Final = 1 << 20  # elements of the largest array whose digest a dump gives
_BEYOND: Final = 2.0**40  # more steps than any type has
_CHUNK: Final = 1 << 18  # elements rounded at a time: no float copy of a large weight, and the cache holds them

# By how much float32 may miss a value of an element-wise function, relative to it or to 1, whichever is larger: the
# longest exported one (GELU through Erf) has nine operators, and ONNX Runtime's own exp, tanh and erf are within four
# units in the last place (measured, docs/verification.md).
FUNCTION_ERROR: Final = 32 * 2.0**-24
SMALLEST: Final = float(np.finfo(np.float32).tiny)  # what float32 holds with all its digits
LARGEST: Final = float(np.finfo(np.float32).max)


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    """The float32 nearest to each value, infinite where there is none (many times faster than through numpy)."""
    return tuple(array("f", values))


def dtype_range(dtype: str) -> tuple[int, int]:
    """The smallest and largest integer of `dtype` (int2 ... int32, uint2 ... uint16)."""
    return _RANGES[dtype][:2]


@functools.cache
def _container(dtype: str) -> np.dtype[np.integer[Any]]:
    return np.dtype(_RANGES[dtype][2])


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which numpy puts together anew each time."""
    return dtype.name


@dataclass(frozen=True)
class QuantParams:
    """The grid of one tensor: `real = scale * (q - zero_point)` with `qmin <= q <= qmax`.

    `scale` (float32 numbers) and `zero_point` have length 1 (per tensor, `axis` is None) or C (per channel along
    `axis`). `qmin`/`qmax` default to the range of `dtype`; narrower ones are first class.

    Raises:
        ValueError: on any illegal state (scale not a positive normal float32, zero point or range outside `dtype`,
            lengths that disagree, a missing or negative axis).
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    dtype: str
    axis: int | None = None
    qmin: int = None  # type: ignore[assignment]  # filled from dtype below
    qmax: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.dtype not in _RANGES:
            raise ValueError(f"unknown quantized type {self.dtype}; known are {', '.join(DTYPES)}")
        lowest, highest = dtype_range(self.dtype)
        set_ = object.__setattr__
        set_(self, "scale", _float32(self.scale))
        set_(self, "qmin", lowest if self.qmin is None else self.qmin)  # pyright: ignore[reportUnnecessaryComparison]
        set_(self, "qmax", highest if self.qmax is None else self.qmax)  # pyright: ignore[reportUnnecessaryComparison]
        bad = [s for s in self.scale if not (SMALLEST <= s <= LARGEST)]
        if bad or not self.scale:
            raise ValueError(f"scale must be positive, finite and normal in float32, found {bad[0] if bad else 'none'}")
        if len(self.zero_point) != len(self.scale):
            raise ValueError(f"{len(self.scale)} scales but {len(self.zero_point)} zero points")
        if min(self.zero_point) < lowest or max(self.zero_point) > highest:
            wrong = next(z for z in self.zero_point if not lowest <= z <= highest)
            raise ValueError(f"zero point {wrong} is outside {self.dtype} [{lowest}, {highest}]")
        if not lowest <= self.qmin <= self.qmax <= highest:
            raise ValueError(f"range [{self.qmin}, {self.qmax}] is empty or outside {self.dtype} [{lowest}, {highest}]")
        if self.axis is None and len(self.scale) != 1:
            raise ValueError(f"{len(self.scale)} scales need an axis")
        if self.axis is not None and self.axis < 0:
            raise ValueError(f"axis {self.axis} must be counted from the front")

    # -- makers ---------------------------------------------------------------------------------------------------
    @classmethod
    def per_tensor(
        cls, scale: float, zero_point: int = 0, dtype: str = "uint8", qmin: int | None = None, qmax: int | None = None
    ) -> QuantParams:
        """One scale and zero point for the whole tensor."""
        lowest, highest = dtype_range(dtype)
        return cls(
            (float(scale),),
            (int(zero_point),),
            dtype,
            None,
            lowest if qmin is None else qmin,
            highest if qmax is None else qmax,
        )

    @classmethod
    def per_channel(
        cls,
        scale: Sequence[float] | Array,
        axis: int,
        zero_point: Sequence[int] | Array | int = 0,
        dtype: str = "int8",
        qmin: int | None = None,
        qmax: int | None = None,
    ) -> QuantParams:
        """One scale (and zero point) per index of `axis`."""
        scales = tuple(float(s) for s in scale)
        zeros = (zero_point,) * len(scales) if isinstance(zero_point, int) else tuple(int(z) for z in zero_point)
        lowest, highest = dtype_range(dtype)
        return cls(scales, zeros, dtype, axis, lowest if qmin is None else qmin, highest if qmax is None else qmax)

    # -- questions ------------------------------------------------------------------------------------------------
    @property
    def is_per_channel(self) -> bool:
        """Whether there is one scale per index of `axis`."""
        return self.axis is not None

    @property
    def container(self) -> np.dtype[np.integer[Any]]:
        """The numpy dtype that holds the integers (sub-byte types sit in a byte)."""
        return _container(self.dtype)

    @property
    def is_8bit(self) -> bool:
        """Whether the integers fit a byte."""
        return self.container.itemsize == 1

    @property
    def is_byte(self) -> bool:
        """Whether the integers are bytes on one grid for the whole tensor, as most kernels want them."""
        return self.is_8bit and not self.is_per_channel

    @property
    def is_signed(self) -> bool:
        """Whether the dtype is signed."""
        return not self.dtype.startswith("u")

    @property
    def is_full_range(self) -> bool:
        """Whether qmin and qmax are the whole range of `dtype`."""
        return (self.qmin, self.qmax) == dtype_range(self.dtype)

    def same_grid(self, other: QuantParams) -> bool:
        """Whether an integer means the same real number under both (ranges may differ)."""
        return (self.scale, self.zero_point, self.axis) == (other.scale, other.zero_point, other.axis)

    # -- changes --------------------------------------------------------------------------------------------------
    def with_range(self, qmin: int, qmax: int) -> QuantParams:
        """The same grid with another range."""
        return self if (qmin, qmax) == (self.qmin, self.qmax) else replace(self, qmin=qmin, qmax=qmax)

    def with_axis(self, axis: int) -> QuantParams:
        """Per-channel parameters with the channels along another axis."""
        return replace(self, axis=axis) if self.is_per_channel else self

    def as_dtype(self, dtype: str) -> QuantParams:
        """The same grid in a type of the other signedness or another width: zero point and range are shifted together.

        int8 with zero point z equals uint8 with z + 128: real numbers do not change.

        Raises:
            ValueError: when the shifted range does not fit `dtype`.
        """
        if dtype == self.dtype:
            return self
        shift = self.shift_to(dtype)
        return replace(
            self,
            zero_point=tuple(z + shift for z in self.zero_point),
            dtype=dtype,
            qmin=self.qmin + shift,
            qmax=self.qmax + shift,
        )

    def shift_to(self, dtype: str) -> int:
        """What to add to an integer of this type for the same real number in `dtype` (see `as_dtype`)."""
        return (
            0 if self.dtype.startswith("u") == dtype.startswith("u") else self._offset() * (1 if self.is_signed else -1)
        )

    def moved(self, q: Integers, dtype: str) -> Integers:
        """Integers of this grid as those of `as_dtype(dtype)`, for the same real numbers."""
        shift = self.shift_to(dtype)
        return (q.astype(np.int32) + shift).astype(self.as_dtype(dtype).container) if shift else q

    def _offset(self) -> int:
        return 1 << (self.container.itemsize * 8 - 1)

    def channel(self, index: int) -> QuantParams:
        """The per-tensor parameters of one channel, which are these themselves where there are no others."""
        if not self.is_per_channel:
            return self
        return replace(self, scale=(self.scale[index],), zero_point=(self.zero_point[index],), axis=None)

    def take(self, indices: Array) -> QuantParams:
        """Per-channel parameters reordered or picked by `indices` along the channel axis."""
        if not self.is_per_channel:
            return self
        picked: list[int] = np.asarray(indices).reshape(-1).tolist()
        return replace(
            self, scale=tuple(self.scale[i] for i in picked), zero_point=tuple(self.zero_point[i] for i in picked)
        )

    # -- values ---------------------------------------------------------------------------------------------------
    def scale_array(self, rank: int) -> Floats:
        """The scales as float32, shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
        return self._shaped(np.asarray(self.scale, np.float32), rank)

    def zero_array(self, rank: int) -> npt.NDArray[np.int32]:
        """The zero points as int32, shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
        return self._shaped(np.asarray(self.zero_point, np.int32), rank)

    def _shaped(self, values: Array, rank: int) -> Array:
        if self.axis is None:
            return values.reshape(())
        return values.reshape([-1 if i == self.axis else 1 for i in range(rank)])

    def part_of(self, block: tuple[slice, ...]) -> tuple[slice, ...]:
        """Where in `scale_array` and `zero_array` the parameters of a block of the tensor are (see `blocks`)."""
        return tuple(s if i == self.axis else slice(None) for i, s in enumerate(block)) if self.is_per_channel else ()

    def quantize(self, x: Array, out: Integers | None = None) -> Integers:
        """Round real numbers (any shape) to integers of `container`: half to even, saturated to [qmin, qmax].

        Computed as ONNX Runtime does: float32 division, then rounding. NaN raises ValueError. The result goes to `out`
        (same shape, dtype `container`) where it is given; what is computed on the way takes little memory.
        """
        x = np.asarray(x)
        self.check_shape(x.shape)
        if x.ndim == 0:
            return self.quantize(x.reshape(1), None if out is None else out.reshape(1)).reshape(())
        result = np.empty(x.shape, self.container) if out is None else out
        scale, zero = self.scale_array(x.ndim), self.zero_array(x.ndim)
        if x.size <= _CHUNK:
            self._quantize_into(x, result, scale, zero)
            return result
        for block in blocks(x.shape):
            part = self.part_of(block)
            self._quantize_into(x[block], result[block], scale[part], zero[part])
        return result

    def on_other_side(self, x: Array) -> Integers | None:
        """The integers of an element-wise function's values x (float64; one scale), each tie rounded the other way.

        A tie is what float32 cannot tell from one; all others are rounded as `quantize` does. None where there is none.
        """
        with np.errstate(invalid="ignore"):  # infinite steps are no ties
            steps = x / self.scale[0]
            down = np.floor(steps)
            tied = np.abs(steps - down - 0.5) <= FUNCTION_ERROR * np.maximum(np.abs(steps), 1 / self.scale[0])
        if not tied.any():
            return None
        integers = self.quantize(x.astype(np.float32))
        below, above = (np.clip(down[tied] + n + self.zero_point[0], self.qmin, self.qmax) for n in (0, 1))
        integers[tied] = np.where(integers[tied] == below, above, below)
        return integers

    def _quantize_into(self, x: Array, out: Array, scale: Array, zero: Array) -> None:
        with np.errstate(over="ignore"):  # what is infinite in steps saturates like any other
            real = np.divide(x, scale, dtype=np.float32) if x.dtype != np.float64 else np.divide(x, scale)
        if np.isnan(real).any():
            raise ValueError("NaN cannot be quantized")
        np.rint(real, out=real)
        wide = self.container.itemsize > 2  # float32 cannot hold every 32-bit integer
        rounded = real.astype(np.float64) if wide else real
        rounded += zero
        np.clip(rounded, self.qmin, self.qmax, out=rounded)
        np.copyto(out, rounded, casting="unsafe")

    def quantize_number(self, value: float) -> tuple[int, ...]:
        """What `quantize` makes of one float32 on each scale, infinite ones too; without arrays, for a clamp's ends.

        A quotient of float32, rounded from float64's, is float32's own: 6 / 0.0470588 is the tie 127.5 there, not less.
        """
        found: list[int] = []
        for scale, zero in zip(self.scale, self.zero_point, strict=True):
            steps = round(float(np.float32(min(max(value / scale, -_BEYOND), _BEYOND))))
            found.append(min(max(steps + zero, self.qmin), self.qmax))
        return tuple(found)

    def dequantize(self, q: Integers) -> Floats:
        """The real numbers (float32) that integers stand for: `scale * (q - zero_point)`, infinite beyond float32."""
        q = np.asarray(q)
        self.check_shape(q.shape)
        offset: Array = q.astype(np.int64 if q.dtype.itemsize > 2 else np.int32)
        np.subtract(offset, self.zero_array(q.ndim), out=offset)
        with np.errstate(over="ignore"):
            return np.multiply(offset.astype(np.float32), self.scale_array(q.ndim))

    def fake_quantize(self, x: Array) -> Floats:
        """`dequantize(quantize(x))`: the nearest real number of the grid."""
        return self.dequantize(self.quantize(x))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless per-channel parameters fit a tensor of `shape`."""
        if self.axis is not None and (self.axis >= len(shape) or shape[self.axis] != len(self.scale)):
            raise ValueError(f"{len(self.scale)} channels along axis {self.axis} do not fit the shape {list(shape)}")

    def __str__(self) -> str:
        def few(values: tuple[float, ...] | tuple[int, ...]) -> str:
            if len(set(values)) == 1:
                return f"{values[0]:.9g}"
            return f"{min(values):.9g}..{max(values):.9g}"

        span = "" if self.is_full_range else f"[{self.qmin},{self.qmax}]"
        channels = f" axis {self.axis} x{len(self.scale)}" if self.is_per_channel else ""
        return f"{self.dtype}{span} scale {few(self.scale)} zero {few(self.zero_point)}{channels}"


def blocks(shape: tuple[int, ...], size: int = _CHUNK) -> Iterator[tuple[slice, ...]]:
    """Slices that cover an array of `shape` (rank 1 or more) in order, each of about `size` elements or fewer."""
    length, inner = shape[0], math.prod(shape[1:])
    if inner > size and len(shape) > 1:
        for index in range(length):
            for rest in blocks(shape[1:], size):
                yield (slice(index, index + 1), *rest)
        return
    step = max(1, size // max(1, inner))
    for start in range(0, length, step):
        yield (slice(start, start + step),)


def number_of(value: Array | None) -> float | None:
    """The number in an array of one, whatever its shape; None for others, and for what is no number."""
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 and value.dtype.kind in "biuf" else None


def text_of(value: Array) -> str:
    """A short stable text of an array's elements, for dumps: the elements of a small one, else a digest."""
    if value.size <= _SHOWN:
        elements: list[Any] = value.reshape(-1).tolist()
        return "{" + ",".join(f"{v:.9g}" if isinstance(v, float) else str(v) for v in elements) + "}"
    if value.size > _DIGESTED:
        return "#..."
    return f"#{hashlib.sha256(np.asarray(value, order='C').tobytes()).hexdigest()[:8]}"
