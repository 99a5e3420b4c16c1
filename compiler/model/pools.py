"""Where the windows of a pool end that rounds their number up.

A window that would begin in the padding behind the input does not exist, in ONNX Runtime and in PyTorch and, from
opset 22 on, in ONNX's shape inference, which counts it before. The number of windows without it is that of a pool that
rounds down over a padding that ends where the last window ends, whatever the size of the input:

    ceil_mode = 1, pads [begin, end]    ->    ceil_mode = 0, pads [begin, min(end + stride - 1, reach - 1)]

`reach` is how far a window reaches, (kernel - 1) * dilation + 1; a window begins before the padding exactly if it ends
less than `reach` behind the input.
"""

from __future__ import annotations

from typing import Final

import onnx

from qatc.compiler.model.protos import domain_of

_POOLS: Final = frozenset({"AveragePool", "LpPool", "MaxPool"})


def rounded_down(node: onnx.NodeProto) -> onnx.NodeProto:
    """A pool with as many windows, counted by rounding down; any other node as it is. Only shapes are equal."""
    if node.op_type not in _POOLS or domain_of(node.domain):
        return node
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    kernel = attrs.get("kernel_shape")
    if not attrs.get("ceil_mode") or not kernel or attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return node
    rank = len(kernel)
    strides, dilations = (attrs.get(n) or [1] * rank for n in ("strides", "dilations"))
    pads = attrs.get("pads") or [0] * 2 * rank
    if not len(strides) == len(dilations) == rank == len(pads) / 2:
        return node  # ONNX's inference tells it
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    ends = [max(e, min(e + s - 1, r - 1)) for e, s, r in zip(pads[rank:], strides, reach, strict=True)]
    made = onnx.NodeProto()
    made.CopyFrom(node)
    del made.attribute[:]
    made.attribute.extend(a for a in node.attribute if a.name not in ("auto_pad", "ceil_mode", "pads"))
    made.attribute.append(onnx.helper.make_attribute("pads", [*pads[:rank], *ends]))
    return made
