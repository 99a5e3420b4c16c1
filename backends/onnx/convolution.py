"""An ordinary convolution, as it is written: what transposed, strided and widened ones become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qatc.backends.onnx.weights import Weight
from qatc.compiler.integer import Conv, Pool
from qatc.compiler.quant import QuantParams


@dataclass(frozen=True)
class Convolution:
    """An ordinary convolution of the tensor `x` on `grid`, weight [M, C/groups, kernel...]."""

    x: str
    grid: QuantParams
    weight: Weight
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int

    @property
    def spatial(self) -> int:
        """How many spatial axes there are."""
        return len(self.strides)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's sizes."""
        return tuple(self.weight.values.shape[2:])

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a matrix product at every position."""
        return all(k == 1 for k in self.kernel) and all(s == 1 for s in self.strides) and not any(self.pads)


def moves_of(op: Convolution | Conv | Pool) -> dict[str, Any]:
    """How a kernel moves, as ONNX attributes."""
    return {"strides": list(op.strides), "pads": list(op.pads), "dilations": list(op.dilations)}
