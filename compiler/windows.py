"""How the kernel of a convolution or pooling moves: strides, dilations, and padding with auto_pad worked out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from qatc.compiler.graph import Node, QuantGraph, shape_of
from qatc.compiler.model.links import label_of


@dataclass(frozen=True)
class Window:
    """One number per spatial axis each; `pads` are [begins..., ends...], `extra` what a transposed convolution adds."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()

    @property
    def borders(self) -> tuple[tuple[int, int], ...]:
        """The padding in front and behind, per spatial axis."""
        rank = len(self.kernel)
        return tuple(zip(self.pads[:rank], self.pads[rank:], strict=True))

    def reach(self, axis: int) -> int:
        """How many input positions a dilated kernel spans."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def positions(self) -> Iterator[tuple[int, ...]]:
        """Every kernel position, row-major."""
        return product(*(range(k) for k in self.kernel))

    def read_at(self, position: tuple[int, ...], outer: tuple[int, ...]) -> tuple[slice, ...]:
        """What one kernel position reads of the padded input for `outer` results (or, transposed, writes)."""
        return tuple(
            slice(at * dilation, at * dilation + (n - 1) * stride + 1, stride)
            for at, dilation, stride, n in zip(position, self.dilations, self.strides, outer, strict=True)
        )


def window(node: Node, kernel: tuple[int, ...]) -> Window | None:
    """The window of a convolution or pooling node; None where its padding depends on a size that is not known."""
    rank = len(kernel)
    strides, dilations = (tuple(int(v) for v in node.attr(n) or (1,) * rank) for n in ("strides", "dilations"))
    extra = tuple(int(v) for v in node.attr("output_padding") or ())
    found = Window(tuple(int(k) for k in kernel), strides, dilations, extra=extra)
    mode = node.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return replace(found, pads=(0,) * 2 * rank)
    if mode == "NOTSET" and not node.attr("output_shape"):
        return replace(found, pads=tuple(int(p) for p in node.attr("pads") or (0,) * 2 * rank))
    if node.op == "ConvTranspose":
        return _transposed(node, mode, found)
    return _same(node, mode, found)


def sized_window(graph: QuantGraph, node: Node, kernel: tuple[int, ...]) -> Window:
    """The same, where the operator cannot be lowered without it: QAT009 where a size is not known."""
    found = window(node, kernel)
    if found is not None:
        return found
    graph.diagnostics.error(
        "QAT009",
        f"{node.attr('auto_pad', 'NOTSET')} padding needs the input's spatial size",
        node=label_of(node),
        tensor=node.inputs[0].name,
        hint="pin the dimensions with --shape NAME=1,3,224,224",
    )
    one = (1,) * len(kernel)
    return Window(kernel, one, one, (0,) * 2 * len(kernel))


def _same(node: Node, mode: str, moving: Window) -> Window | None:
    """SAME_UPPER or SAME_LOWER, for an input [N, C, spatial...]."""
    shape = shape_of(node.inputs[0])
    totals: list[int] = []
    for i, (stride, dilation, size) in enumerate(zip(moving.strides, moving.dilations, moving.kernel, strict=True)):
        length = shape[i + 2] if shape is not None else None
        if not isinstance(length, int):
            if stride != 1:
                return None
            length = 1  # with stride 1 the padding does not depend on the length
        totals.append(max(0, (-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length))
    return replace(moving, pads=_split(totals, mode))


def _transposed(node: Node, mode: str, moving: Window) -> Window | None:
    """SAME, or the size of the output: what that is larger by than the input makes is added at its end."""
    shape, wanted = shape_of(node.inputs[0]), node.attr("output_shape")
    extra = moving.extra or (0,) * len(moving.kernel)
    totals: list[int] = []
    for i, stride in enumerate(moving.strides):
        length = shape[i + 2] if shape is not None else None
        reach = moving.dilations[i] * (moving.kernel[i] - 1) + 1
        if not wanted:  # SAME: output = length * stride, whatever the length
            totals.append(max(0, extra[i] + reach - stride))
        elif isinstance(length, int):
            totals.append(stride * (length - 1) + extra[i] + reach - int(wanted[i - len(moving.kernel)]))
        else:
            return None
    if min(totals) < 0:
        moving = replace(moving, extra=tuple(e + max(0, -t) for e, t in zip(extra, totals, strict=True)))
    mode = mode if mode == "SAME_UPPER" else "SAME_LOWER"  # the larger half first by default
    return replace(moving, pads=_split([max(0, t) for t in totals], mode))


def _split(totals: list[int], mode: str) -> tuple[int, ...]:
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    return (*large, *small) if mode == "SAME_LOWER" else (*small, *large)
