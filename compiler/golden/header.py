r"""Golden tensors as a C99 header: arrays for a bare-metal test that has no file system.

    static const uint8_t qatc_golden_0_0003_conv1[] = { 12, 255, ... };
    static const qatc_golden_tensor qatc_golden_tensors[] = { { "conv1", 0, "uint8", ... }, ... };

Compiles without a warning under `gcc -std=c99 -Wall -Wextra -Werror`. Names of tensors are string literals with
everything but plain characters escaped; long ones are cut (index.json has them whole).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from qatc.compiler.quant import Array, QuantParams

_COLUMNS: Final = 24  # elements a line
_LONGEST: Final = 200  # bytes of a name, well below the 4095 that C99 allows a string literal
_INT32_MIN: Final = -(2**31)
_PLAIN: Final = frozenset(
    " !#$%&'()*+,-./0123456789:;<=>@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopqrstuvwxyz{|}~"
)

_TYPES: Final = """\
/* Golden tensors, written by qatc. real = scale * (q - zero_point). */
#ifndef QATC_GOLDEN_H
#define QATC_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;          /* in the integer graph; golden/index.json knows the other names */
    const char *dtype;         /* "int8", "uint8", "int16", "uint16" or "int32": the type of the elements of data */
    const void *data;          /* in C order */
    const size_t *shape;       /* rank numbers */
    const float *scale;        /* channels numbers */
    const int32_t *zero_point; /* channels numbers */
    size_t count;              /* elements */
    size_t size;               /* bytes */
    size_t rank;
    size_t channels;           /* 1 where one scale serves the whole tensor */
    int axis;                  /* the axis of the channels, -1 where there is one scale */
    int sample;
} qatc_golden_tensor;
"""


@dataclass(frozen=True)
class HeaderTensor:
    """One array of the header: `stem` as in the golden index, `value` integers in the stored layout."""

    sample: int
    stem: str
    name: str
    value: Array
    params: QuantParams


def header_chunks(tensors: Iterable[HeaderTensor]) -> Iterator[str]:
    """The text of the header, ASCII, in pieces of bounded size; each tensor is asked for when its turn comes."""
    yield _TYPES
    rows: list[str] = []
    for tensor in tensors:
        symbol = f"{tensor.sample}_{tensor.stem}"
        yield from _array(tensor.value, f"qatc_golden_{symbol}")
        shape = ", ".join(str(n) for n in tensor.value.shape) or "1"
        scale = ", ".join(f"{s.hex()}f" for s in tensor.params.scale)
        zero = ", ".join(_literal(z) for z in tensor.params.zero_point)
        yield (
            f"static const size_t qatc_shape_{symbol}[] = {{ {shape} }};\n"
            f"static const float qatc_scale_{symbol}[] = {{ {scale} }};\n"
            f"static const int32_t qatc_zero_{symbol}[] = {{ {zero} }};\n"
        )
        rows.append(_row(tensor, symbol))
    yield f"\n#define QATC_GOLDEN_COUNT {len(rows)}\n\nstatic const qatc_golden_tensor qatc_golden_tensors[] = {{\n"
    yield ",\n".join(rows)
    yield "\n};\n\n#endif\n"


def _array(value: Array, symbol: str) -> Iterator[str]:
    yield f"\nstatic const {value.dtype.name}_t {symbol}[] = {{\n"
    flat = value.reshape(-1)
    for start in range(0, flat.size, _COLUMNS):
        numbers: list[int] = flat[start : start + _COLUMNS].tolist()
        yield f"    {', '.join(_literal(n) for n in numbers)},\n"
    yield "    0\n};\n" if not flat.size else "};\n"  # C has no empty arrays


def _literal(number: int) -> str:
    """A number as C reads it: -2147483648 is an expression there, of a type that is too wide."""
    return str(number) if number != _INT32_MIN else "(-2147483647 - 1)"


def _row(tensor: HeaderTensor, symbol: str) -> str:
    value, params = tensor.value, tensor.params
    axis = -1 if params.axis is None else params.axis
    dtype = np.dtype(value.dtype).name
    return (
        f'    {{ "{c_string(tensor.name)}", "{dtype}", qatc_golden_{symbol}, qatc_shape_{symbol}, qatc_scale_{symbol},'
        f" qatc_zero_{symbol}, {value.size}u, {value.nbytes}u, {value.ndim}u, {len(params.scale)}u, {axis},"
        f" {tensor.sample} }}"
    )


def c_string(text: str) -> str:
    """The inside of a C string literal: UTF-8, in octal (three digits, so that nothing runs on), cut if long."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > _LONGEST:
        half = (_LONGEST - 3) // 2
        data = data[:half] + b"..." + data[-half:]
    return "".join(chr(b) if chr(b) in _PLAIN else f"\\{b:03o}" for b in data)
