"""Convolutions between a SpaceToBatch and a BatchToSpace are dilated ones; TFLite writes those so.

    x [N, m * d, C] -> Reshape, Transpose [d * N, C, m] -> Conv -> Transpose, Reshape [N, m' * d, C']
    x -> Transpose [N, C, m * d] -> Conv[dilations = d] -> Transpose [N, m' * d, C']

Every d-th element of a row is an image of its own there. What becomes of an axis is followed by its factors: a Reshape
makes an axis of m * d elements one of m, which are d elements apart, and one of d neighbors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qatc.compiler.graph import Dim, Node, QuantGraph, Tensor, is_constant, shape_of, value_of
from qatc.compiler.model.links import computed, is_op, label_of
from qatc.compiler.model.views import View
from qatc.compiler.passes.chains import Chain, alike, keeps_values, show_at, view_of, write
from qatc.compiler.passes.movement import LAYOUT
from qatc.compiler.reference.functions import is_elementwise, is_table
from qatc.compiler.windows import window

_MOVES: Final = LAYOUT | {"SpaceToDepth", "DepthToSpace"}
_IMAGES: Final = 4  # dimensions of a batch of images
_LONGEST: Final = 16  # operators on either side of the convolution


@dataclass(frozen=True)
class Factor:
    """`size` positions along an axis, `step` elements apart."""

    axis: int
    step: int
    size: Dim


Axes = list[list[Factor]]  # of a tensor: what each axis runs over, from the slowest factor to the fastest; () is size 1


@dataclass(frozen=True)
class Split:
    """What a divided convolution reads: `view` of the source is what it would read undivided.

    `batch` are the factors of its batch, by the axes of the view; `steps` how far neighbors are apart along each axis.
    """

    view: View
    batch: list[Factor]
    steps: list[int]


def dilate(graph: QuantGraph) -> None:
    """Rewrite a graph with propagated parameters in place."""
    changed = [_dilated(graph, node) for node in graph.of("Conv") if is_op(graph.producer(node.inputs[0]), *_MOVES)]
    if any(changed):
        graph.sort()
        graph.clean()


def _dilated(graph: QuantGraph, node: Node) -> bool:
    source, split = _before(graph, node.inputs[0])
    made, kernel = shape_of(node.outputs[0]), shape_of(node.inputs[1])
    if split is None or made is None or kernel is None or not len(made) == len(split.steps) == len(kernel):
        return False
    moves = window(node, tuple(size for size in kernel[2:] if isinstance(size, int)))
    if moves is None or not len(moves.strides) == len(moves.dilations) == len(moves.borders) == len(made) - 2:
        return False
    divided = [place - 2 for place, step in enumerate(split.steps) if step > 1]
    if any(moves.strides[i] > 1 or any(moves.borders[i]) for i in divided):
        return False
    images = next((factor.size for factor in split.batch if factor.axis == 0), 1)
    sizes = [images, *(_times(size, step) for size, step in zip(made[1:], split.steps[1:], strict=True))]
    axes = [split.batch, *(_axis(Factor(i, step, made[i])) for i, step in enumerate(split.steps) if i)]
    found = _behind(graph, node, axes, sizes)
    if found is None:
        return False
    path, view, out = found
    graph.explain("dilations", f"{label_of(node)} is dilated: it read an image for each step")
    node.attrs["dilations"] = [d * step for d, step in zip(moves.dilations, split.steps[2:], strict=True)]
    node.attrs["pads"] = list(moves.pads)
    node.attrs.pop("auto_pad", None)
    x = write(graph, source, split.view)
    for op, read in zip(path, [node.inputs[0], *(op.outputs[0] for op in path)], strict=False):
        old = op.outputs[0]
        op.inputs[next(index for index, tensor in enumerate(op.inputs) if tensor is read)] = x
        x = op.outputs[0] = alike(graph, old, "_dilated", sizes)
    show_at(graph, Chain(x, view, 1), out)
    write(graph, x, view, out)
    return True


# -- in front of the convolution ------------------------------------------------------------------------------------
def _before(graph: QuantGraph, x: Tensor) -> tuple[Tensor, Split | None]:
    """What a convolution's operand is made of by layout operators, and how it is split there."""
    nodes: list[Node] = []
    while len(nodes) < _LONGEST and is_op(maker := graph.producer(x), *_MOVES) and _keeps_grid(graph, maker):
        nodes.append(maker)
        x = maker.inputs[0]
    sizes = shape_of(x)
    axes: Axes | None = None if sizes is None else [_axis(Factor(i, 1, size)) for i, size in enumerate(sizes)]
    for node in reversed(nodes):
        axes = None if axes is None else _through(node, axes)
    return x, None if axes is None or sizes is None else _split(axes, sizes)


def _split(axes: Axes, sizes: Sequence[Dim]) -> Split | None:
    """How a batch holds steps of spatial axes, each of them whole; None where it holds none, or something else."""
    if any(len(axis) > 1 for axis in axes[1:]):
        return None
    firsts: list[Factor | None] = [None, *(axis[0] if axis else None for axis in axes[1:])]
    places = {factor.axis: place for place, factor in enumerate(firsts) if factor is not None}
    steps, batch = [1] * len(axes), list[Factor]()
    for factor in axes[0]:
        place = places.get(factor.axis, 0)
        batch.append(Factor(place, 1, factor.size))
        if not place and firsts[0] is None:
            firsts[0] = factor
        elif place > 1 and steps[place] == factor.step == 1 and isinstance(factor.size, int):
            steps[place] = factor.size
        else:
            return None
    ends = [(f, step) for f, step in zip(firsts, steps, strict=True) if f is not None]
    if max(steps) == 1 or any(f.step != step or _times(f.size, step) != sizes[f.axis] for f, step in ends):
        return None
    return Split(View(len(sizes), tuple(None if f is None else f.axis for f in firsts)), batch, steps)


# -- behind it ------------------------------------------------------------------------------------------------------
def _behind(graph: QuantGraph, node: Node, axes: Axes, sizes: Sequence[Dim]) -> tuple[list[Node], View, Tensor] | None:
    """The operators up to where a convolution's result is put together, which view of it that is, and its tensor."""
    path, x = [node], node.outputs[0]
    for _ in range(_LONGEST):
        reader = graph.only_consumer(x)
        if is_op(reader, *_MOVES) and _keeps_grid(graph, reader):
            moved = _through(reader, axes)
            view = None if moved is None else _whole(moved, sizes)
            if moved is None or view is not None:
                return None if view is None else (path, view, reader.outputs[0])
            axes = moved
        elif reader is not None and _is_of_each(graph, reader, x):
            path.append(reader)
        else:
            return None
        x = reader.outputs[0]
    return None


def _is_of_each(graph: QuantGraph, node: Node, x: Tensor) -> bool:
    """Whether a node computes a function of each element of `x`."""
    if not is_elementwise(node) or is_table(node) or len(node.outputs) != 1 or computed(node) != [x]:
        return False
    params = graph.quant(node.outputs[0])
    numbers = [value_of(tensor) for tensor in node.inputs if is_constant(tensor)]
    return (params is None or not params.is_per_channel) and all(v is not None and v.size == 1 for v in numbers)


def _whole(axes: Axes, sizes: Sequence[Dim]) -> View | None:
    """The view that a tensor is, if all its axes are whole ones again."""
    labels: list[int | None] = []
    for axis in axes:
        factors = _merged(axis)
        if len(factors) > 1 or any(f.step > 1 or f.size != sizes[f.axis] for f in factors):
            return None
        labels += [factor.axis for factor in factors] or [None]
    return View(len(sizes), tuple(labels))


def _merged(factors: list[Factor]) -> list[Factor]:
    """Neighbors of one axis as one."""
    merged: list[Factor] = []
    for factor in factors:
        last = merged[-1] if merged else None
        size = None if last is None else _times(last.size, factor.size)
        if last is not None and last.axis == factor.axis and last.step == _times(factor.size, factor.step) and size:
            merged[-1] = Factor(factor.axis, factor.step, size)
        else:
            merged.append(factor)
    return merged


# -- factors --------------------------------------------------------------------------------------------------------
def _axis(factor: Factor) -> list[Factor]:
    return [] if factor.size == 1 else [factor]


def _times(size: Dim, step: Dim) -> Dim:
    if isinstance(size, int) and isinstance(step, int):
        return size * step
    return size if step == 1 else None


def _keeps_grid(graph: QuantGraph, node: Node) -> bool:
    params = graph.quant(node.inputs[0])
    return (params is None or not params.is_per_channel) and keeps_values(graph, node)


def _through(node: Node, axes: Axes) -> Axes | None:
    """The factors behind a layout operator; None where nobody knows."""
    view, after = view_of(node), shape_of(node.outputs[0])
    if view is not None:
        return [[] if axis is None else axes[axis] for axis in view.axes] if view.rank == len(axes) else None
    if node.op in ("SpaceToDepth", "DepthToSpace"):
        return _with_blocks(node, axes)
    return None if after is None or node.op == "Transpose" else _reshaped(axes, after)


def _with_blocks(node: Node, axes: Axes) -> Axes | None:
    """Factors behind a SpaceToDepth or DepthToSpace: the positions in a block are slower channels, or faster ones."""
    block, after = int(node.attr("blocksize", 0)), shape_of(node.outputs[0])
    if block < 1 or after is None or not len(axes) == len(after) == _IMAGES:
        return None
    images, depth, *space = map(deque[Factor], axes)
    made: list[list[Factor] | None]
    if node.op == "SpaceToDepth":
        outer = [_cut(axis, size, from_end=False) for axis, size in zip(space, after[2:], strict=True)]
        made = [[*images], [*space[0], *space[1], *depth], *outer]
    else:
        faster = node.attr("mode", "DCR") == "CRD"
        inner = [_cut(depth, block, from_end=faster) for _ in space][:: -1 if faster else 1]
        made = [[*images], [*depth], *(part and [*axis, *part] for axis, part in zip(space, inner, strict=True))]
    known = [axis for axis in made if axis is not None]
    return known if len(known) == _IMAGES else None


def _reshaped(axes: Axes, after: Sequence[Dim]) -> Axes | None:
    """Factors of a Reshape's result, of which one size may be unknown: it has what the others leave."""
    factors = deque(factor for axis in axes for factor in axis)
    unknown = [place for place, size in enumerate(after) if not isinstance(size, int)]
    first = unknown[0] if unknown else len(after)
    made: Axes = [[] for _ in after]
    for place in (*range(first), *range(len(after) - 1, first, -1)):
        cut = _cut(factors, after[place], from_end=place > first)
        if cut is None:
            return None
        made[place] = cut
    if unknown:
        made[first] = list(factors)
    return made if len(unknown) == 1 or (not unknown and not factors) else None


def _cut(factors: deque[Factor], size: Dim, *, from_end: bool) -> list[Factor] | None:
    """Take factors of `size` elements off the end, or the front; one is parted where it has more."""
    taken: deque[Factor] = deque()
    while size != 1:
        factor = (factors.pop() if from_end else factors.popleft()) if factors else None
        have = None if factor is None else factor.size
        if factor is None or not isinstance(size, int) or not isinstance(have, int) or not size or not have:
            return None
        if size % have and have % size:
            return None
        if size % have:
            inner = size if from_end else have // size
            near = Factor(factor.axis, factor.step, inner)
            far = Factor(factor.axis, factor.step * inner, have // inner)
            (factors.append if from_end else factors.appendleft)(far if from_end else near)
            factor, have = (near if from_end else far), size
        (taken.appendleft if from_end else taken.append)(factor)
        size //= have
    return list(taken)
