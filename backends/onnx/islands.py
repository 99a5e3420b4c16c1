"""Float products between two grids, which ONNX Runtime would compute on other integers.

    Dequantize -> Conv(float weight) -> Relu -> Quantize

ONNX Runtime (1.32, basic optimizations) holds that such a product was left out of quantization by mistake: it rounds
the weight to int8 with one scale, whatever it was, and the bias to int32. It looks for a DequantizeLinear right before
the product, or before what only moves its result, and for a QuantizeLinear behind. A product of two dequantized
tensors becomes its own integer kernel, which rounds once more, and saturates on some processors. So what feeds such a
product is written as arithmetic that gives the same real numbers (`Writer.dequantize`).
"""

from __future__ import annotations

from typing import Final

from qatc.backends.onnx.writer import Writer
from qatc.compiler.integer import Dequantize, Float, Move, Op, Quantize
from qatc.compiler.passes.products import PRODUCTS

# Functions that no optimization moves a QuantizeLinear before, nor folds into a product.
_OPAQUE: Final = frozenset(
    {"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Sigmoid", "Softplus", "Tanh"}
)


def feeds_float_weights(w: Writer, op: Dequantize) -> bool:
    """Whether real numbers of `op` meet float or computed weights in a product that ends on a grid."""
    names, seen = [op.output], set[str]()
    while names:
        name = names.pop()
        for reader in w.consumers.get(name, ()):
            if _is_product(w, reader, name) and ends_on_grid(w, reader):
                return True
            if reader.name not in seen and _moves(reader, name):
                seen.add(reader.name)
                names.extend(reader.outputs)
    return False


def _is_product(w: Writer, op: Op, x: str) -> bool:
    """Whether `x` is multiplied in `op` by a float weight; in a Conv, as or by one that is computed at run time."""
    if not isinstance(op, Float) or op.domain or op.op_type not in PRODUCTS:
        return False
    weight = op.inputs[1]
    return x == op.inputs[0] if weight in w.graph.constants else op.op_type == "Conv" and x in (op.inputs[0], weight)


def _moves(op: Op, x: str) -> bool:
    return op.inputs[0] == x and (isinstance(op, Move) or (isinstance(op, Float) and op.op_type == "MaxPool"))


def ends_on_grid(w: Writer, op: Op) -> bool:
    """Whether `op` is rounded in the end: by one of its readers, or behind readers that each are the only one."""
    walked: list[str] = []
    at: Op | None = op
    found = False
    while at is not None and len(at.outputs) == 1:
        name = at.output
        if name in w.rounded:
            found = w.rounded[name]
            break
        walked.append(name)
        readers = w.consumers.get(name, [])
        found = any(isinstance(reader, Quantize) for reader in readers)
        alone = not found and len(readers) == 1 and _is_transparent(readers[0])
        at = readers[0] if alone else None
    w.rounded.update(dict.fromkeys(walked, found))
    return found


def _is_transparent(op: Op) -> bool:
    """Whether ONNX Runtime may find behind `op` what it looks for in front."""
    return isinstance(op, Move) or (isinstance(op, Float) and op.op_type not in _OPAQUE)
