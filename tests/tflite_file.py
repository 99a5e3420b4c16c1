"""What a TFLite file stores, read from its bytes: an independent record of the integers that training arrived at.

TFLite is a FlatBuffer (https://flatbuffers.dev/internals); the field numbers below are those of TensorFlow's
`compiler/mlir/lite/schema/schema.fbs`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TYPES = {0: "<f4", 2: "<i4", 3: "u1", 4: "<i8", 7: "<i2", 9: "i1"}
_SUBGRAPHS, _BUFFERS, _TENSORS, _DATA = 2, 4, 0, 0
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION = range(5)
_SCALE, _ZERO_POINT, _DIMENSION = 2, 3, 6


@dataclass(frozen=True)
class Stored:
    """A tensor with content: `values` as stored, one scale and zero point for all or per index of `axis`."""

    name: str
    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


class _Table:
    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place
        self.layout = place - struct.unpack_from("<i", data, place)[0]

    def _field(self, number: int) -> int | None:
        size = struct.unpack_from("<H", self.data, self.layout)[0]
        if 4 + 2 * number >= size:
            return None
        offset = struct.unpack_from("<H", self.data, self.layout + 4 + 2 * number)[0]
        return self.place + offset if offset else None

    def scalar(self, number: int, form: str, default: int = 0) -> int:
        place = self._field(number)
        return default if place is None else struct.unpack_from(form, self.data, place)[0]

    def _vector(self, number: int) -> tuple[int, int]:
        place = self._field(number)
        if place is None:
            return 0, 0
        start = place + struct.unpack_from("<I", self.data, place)[0]
        return start + 4, struct.unpack_from("<I", self.data, start)[0]

    def array(self, number: int, dtype: str) -> np.ndarray:
        start, count = self._vector(number)
        return np.frombuffer(self.data, dtype, count, start) if count else np.zeros(0, dtype)

    def text(self, number: int) -> str:
        return self.array(number, "u1").tobytes().decode("utf-8")

    def table(self, number: int) -> _Table | None:
        place = self._field(number)
        return None if place is None else _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def tables(self, number: int) -> list[_Table]:
        start, count = self._vector(number)
        places = [start + 4 * i for i in range(count)]
        return [_Table(self.data, place + struct.unpack_from("<I", self.data, place)[0]) for place in places]


def stored_tensors(path: Path) -> list[Stored]:
    """Every quantized tensor of the file that has content."""
    data = path.read_bytes()
    model = _Table(data, struct.unpack_from("<I", data, 0)[0])
    buffers = model.tables(_BUFFERS)
    found: list[Stored] = []
    for tensor in model.tables(_SUBGRAPHS)[0].tables(_TENSORS):
        content = buffers[tensor.scalar(_BUFFER, "<I")].array(_DATA, "u1")
        quantization, kind = tensor.table(_QUANTIZATION), tensor.scalar(_TYPE, "<b")
        if not content.size or quantization is None or kind not in _TYPES:
            continue
        scale = quantization.array(_SCALE, "<f4")
        if not scale.size:
            continue
        values = content.view(_TYPES[kind]).reshape(tensor.array(_SHAPE, "<i4"))
        zero_point = quantization.array(_ZERO_POINT, "<i8")
        found.append(Stored(tensor.text(_NAME), values, scale, zero_point, quantization.scalar(_DIMENSION, "<i")))
    return found
