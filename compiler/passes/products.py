"""Products: convolutions and matrix products, and where the channels of their results are; and sums, those of ones.

Conv [M, C/g, k...]: axis 0     ConvTranspose [C, M/g, k...]: 1     Gemm [K, M]: 1, [M, K] with transB: 0
MatMul [..., K, M]: the last; of a left operand [..., M, K] the last but one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from qatc.compiler.graph import Constant, Node, QuantGraph, Tensor, Variable, rank_of, shape_of
from qatc.compiler.model.links import is_op
from qatc.compiler.quant import number_of

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
SUMS: Final = MEANS | {"ReduceSum", "ReduceL1"}
Vector = npt.NDArray[np.float64]


def is_product(node: Node) -> bool:
    """Whether the node is one of ai.onnx's convolutions and matrix products."""
    return node.op in PRODUCTS and not node.domain


def is_sum(node: Node) -> bool:
    """Whether the node adds up or averages elements of its input (of a ReduceL1: their magnitudes)."""
    return node.op in SUMS and not node.domain


def output_axis(node: Node, rank: int | None, operand: int = 1) -> int | None:
    """The axis of a product's operand (its right one unless said otherwise) that is the channels of the result.

    None where it has none: a vector, the data of a convolution, an operator that is no product.
    """
    if node.op == "Gemm":
        return (0 if node.attr("transB", 0) else 1) if operand else (1 if node.attr("transA", 0) else 0)
    if node.op == "MatMul":
        return None if rank is None or rank < 2 else rank - 1 if operand else rank - 2
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op) if operand else None


@dataclass(frozen=True)
class Mac:
    """A convolution or matrix product with a constant weight: where its output channels are.

    `axis` is the weight's output-channel axis, `from_end` the channel axis of the result counted from the end.
    """

    node: Node
    weight: Constant
    axis: int
    from_end: int
    channels: int


def mac_of(node: Node) -> Mac | None:
    """What `node` multiplies by, if it is a product whose constant weight has the channels of one group."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if not isinstance(weight, Constant) or not is_product(node):
        return None
    rank = weight.values.ndim
    is_conv = node.op in ("Conv", "ConvTranspose")
    axis = output_axis(node, rank)
    if axis is None or (rank < 3 if is_conv else rank != 2) or (axis and is_conv and node.attr("group", 1) != 1):
        return None
    return Mac(node, weight, axis, 1 - rank if is_conv else -1, weight.values.shape[axis])


def with_number(graph: QuantGraph, node: Node | None, op: str, inverse: str) -> tuple[Tensor, float] | None:
    """The x and c of a node that is op(x, c), in either order, or inverse(x, c): a tensor and one float32 number.

    None for other nodes, and for a number that gives the result more dimensions.
    """
    if not is_op(node, op, inverse) or len(node.inputs) != 2:
        return None
    x, constant = node.inputs
    if isinstance(x, Constant) and node.op == op:
        x, constant = constant, x
    value = graph.real(constant) if isinstance(constant, Constant) else None
    number = number_of(value)
    if value is None or number is None or value.dtype != np.float32 or isinstance(x, Constant):
        return None
    return (x, number) if value.ndim <= (rank_of(x) or 0) else None


def put_behind(graph: QuantGraph, node: Node, op: str, operand: Tensor, hint: str, name: str) -> Variable:
    """Put a float operator with a second operand behind a node; who read the node's result reads the new one's.

    Returns what the node makes now, whose name starts with `hint`; that of the new node starts with `name`.
    """
    out = node.outputs[0]
    made = node.outputs[0] = graph.variable(hint, onnx.TensorProto.FLOAT, shape_of(out))
    graph.insert(op, [made, operand], [out], hint=name)
    return made


def per_channel(value: npt.NDArray[Any] | None, axis: int, channels: int) -> Vector | None:
    """A broadcast constant as one number per channel, or None where it varies along another axis."""
    if value is None or value.dtype.kind != "f":
        return None
    if value.size == 1:
        return np.full(channels, float(value.reshape(-1)[0]))
    if value.ndim < -axis or value.shape[axis] != channels or value.size != channels:
        return None
    return value.reshape(-1).astype(np.float64)
