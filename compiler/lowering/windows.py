"""How the kernel of a convolution or pooling moves: strides, dilations, and padding with auto_pad worked out."""

from __future__ import annotations

from dataclasses import dataclass

from qatc.compiler.graph import Node, shape_of
from qatc.compiler.integer import Shape
from qatc.compiler.lowering.state import State
from qatc.compiler.model_io import label_of


@dataclass(frozen=True)
class Window:
    """One number per spatial axis each; `pads` are [begins..., ends...]."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] = ()


def window(node: Node, kernel: tuple[int, ...]) -> Window | None:
    """The window of a convolution or pooling node; None where its padding depends on a size that is not known."""
    rank = len(kernel)
    strides, dilations = (tuple(int(v) for v in node.attr(n) or (1,) * rank) for n in ("strides", "dilations"))
    found = Window(tuple(int(k) for k in kernel), strides, dilations)
    pads = _pads(node, found)
    return None if pads is None else Window(found.kernel, strides, dilations, pads)


def sized_window(state: State, node: Node, kernel: tuple[int, ...]) -> Window:
    """The same, where the operator cannot be lowered without it: QAT009 where a size is not known."""
    found = window(node, kernel)
    if found is not None:
        return found
    state.graph.diagnostics.error(
        "QAT009",
        f"{node.attr('auto_pad', 'NOTSET')} padding needs the input's spatial size",
        node=label_of(node),
        tensor=node.inputs[0].name,
        hint="pin the dimensions with --shape NAME=1,3,224,224",
    )
    one = (1,) * len(kernel)
    return Window(kernel, one, one, (0,) * 2 * len(kernel))


def _pads(node: Node, moving: Window) -> tuple[int, ...] | None:
    rank = len(moving.kernel)
    mode, wanted = node.attr("auto_pad", "NOTSET"), node.attr("output_shape")
    if mode == "NOTSET" and not wanted:
        return tuple(int(p) for p in node.attr("pads") or (0,) * 2 * rank)
    if mode == "VALID":
        return (0,) * 2 * rank
    shape = shape_of(node.inputs[0])
    if node.op != "ConvTranspose":
        return _same(shape, mode, moving)
    extra = tuple(node.attr("output_padding") or (0,) * rank)
    return _transposed(shape, mode, moving, extra, None if not wanted else tuple(int(d) for d in wanted[-rank:]))


def _same(shape: Shape | None, mode: str, moving: Window) -> tuple[int, ...] | None:
    """The padding of SAME_UPPER or SAME_LOWER for an input [N, C, spatial...]."""
    totals: list[int] = []
    for i, (stride, dilation, size) in enumerate(zip(moving.strides, moving.dilations, moving.kernel, strict=True)):
        length = shape[i + 2] if shape is not None else None
        if not isinstance(length, int):
            if stride != 1:
                return None
            length = 1  # with stride 1 the padding does not depend on the length
        totals.append(max(0, (-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length))
    return _split(totals, mode)


def _transposed(
    shape: Shape | None, mode: str, moving: Window, extra: tuple[int, ...], target: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    totals: list[int] = []
    for i, stride in enumerate(moving.strides):
        length = shape[i + 2] if shape is not None else None
        reach = moving.dilations[i] * (moving.kernel[i] - 1) + 1
        if target is None:  # SAME: output = length * stride, whatever the length
            totals.append(max(0, extra[i] + reach - stride))
        elif isinstance(length, int):
            totals.append(max(0, stride * (length - 1) + extra[i] + reach - target[i]))
        else:
            return None
    return _split(totals, "SAME_UPPER" if mode == "SAME_UPPER" else "SAME_LOWER")  # the larger half first by default


def _split(totals: list[int], mode: str) -> tuple[int, ...]:
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    return (*large, *small) if mode == "SAME_LOWER" else (*small, *large)
