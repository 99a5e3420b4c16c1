"""Graphs of a few operators, built by hand, and numbers to feed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qatc.compiler.arithmetic import PROFILES
from qatc.compiler.integer import (
    Conv,
    IntegerGraph,
    Op,
    Tensor,
    integer_tensor,
)
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference import execute

ONNX, EXACT = PROFILES["onnx"], PROFILES["exact"]
MS = "com.microsoft"


class Net:
    """A graph of a few operators, built by hand."""

    def __init__(self) -> None:
        self.graph = IntegerGraph("net", [], [], [], {}, {}, 21)
        self.feeds: dict[str, np.ndarray] = {}

    def feed(self, name: str, value: np.ndarray, params: QuantParams | None = None) -> str:
        self.graph.inputs.append(name)
        self.graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        self.feeds[name] = value
        return name

    def constant(self, name: str, value: np.ndarray, params: QuantParams | None = None) -> str:
        self.graph.constants[name] = value
        self.graph.tensors[name] = Tensor(name, value.dtype.name, value.shape, params)
        return name

    def out(self, name: str, params: QuantParams | None = None, dtype: str = "float32") -> str:
        self.graph.tensors[name] = integer_tensor(name, params) if params else Tensor(name, dtype)
        self.graph.outputs = [name]
        return name

    def add(self, op: Op) -> None:
        self.graph.ops.append(op)

    def run(self, profile=ONNX, **options: Any) -> dict[str, np.ndarray]:
        self.graph.verify()
        return execute(self.graph, self.feeds, profile, **options)


def random_params(rng: np.random.Generator, dtype: str, low: float = 0.01, high: float = 0.1) -> QuantParams:
    lowest, highest = dtype_range(dtype)
    return QuantParams.per_tensor(rng.uniform(low, high), int(rng.integers(lowest, highest + 1)), dtype)


def integers(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> np.ndarray:
    lowest, highest = dtype_range(dtype)
    return rng.integers(lowest, highest + 1, shape).astype(dtype)


def related(scale: float, count: int) -> float:
    """A scale that is a simple multiple of another: exact ties occur."""
    return float(np.float32(scale * count / 4))


def conv_op(name: str, inputs: tuple[str, ...], rank: int, attrs: Mapping[str, Any], **more: Any) -> Conv:
    defaults = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "groups": 1}
    return Conv(name, inputs, ("y",), **{**defaults, **attrs, **more})
