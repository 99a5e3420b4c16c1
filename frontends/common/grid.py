"""Weights that are plain floats on a grid: their integers, exactly.

tf2onnx writes no weight quantizers: TensorFlow folds the fake-quantized weights into float initializers, and batch norm
is folded on top, so that a channel's weights are `scale * integer` with a scale that no node states. It comes back from
the numbers alone: per channel the smallest k for which w * k / max|w| is whole within what float32 rounding explains.

    w = [-0.0371, 0.0, 0.0186, 0.0557]   ->   k = 3, scale = 0.0557 / 3, integers [-2, 0, 1, 3]

Only weights of Conv, ConvTranspose, MatMul and Gemm are looked at, and tables whose rows reach them as data: the dynamo
exporter folds an embedding's quantizer, too, where the table is small. One grid for the whole tensor is preferred to
one per channel. Channels whose k divides that of most others (sparse ones) are counted on the same number of levels.
Grids of up to 255 levels on one side (TF1's asymmetric weights) get a zero point that brings them into 8 bits; of so
many on both sides they have 16, where none of 8 bits fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qatc.compiler.diagnostics import printable
from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, is_constant
from qatc.compiler.model.links import label_of
from qatc.compiler.passes.movement import is_movement
from qatc.compiler.passes.products import PRODUCTS, output_axis
from qatc.compiler.quant import Array, Doubles, Integers, QuantParams

_LEVELS: Final = 255  # the largest k
_PROBES: Final = 6  # elements per channel that are tried with every k before the others are looked at
_ROWS: Final = 512  # channels tried at once
_BLOCK: Final = 1 << 20  # elements computed in float64 at once
_TELLING: Final = 64  # elements of a weight that tell a grid from chance
_SHARING: Final = 2  # elements of one scale that do so: one is on a grid of its own, whatever it is
_FLOATS: Final = ("float32", "float16")
_TINY: Final = float(np.finfo(np.float32).tiny)
_SAME_GRID: Final = frozenset({"Relu", "Clip", "Concat", "MaxPool"})  # beside movement: what keeps a tensor on its grid

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Precision:
    """How far from a whole number r * k may be, for the k of a channel: `share` * k + `own` * |r * k|."""

    share: float
    own: float = 0.0


_SINGLE: Final = _Precision(2.0**-21)  # four float32 roundings on the way to a weight
_HALF: Final = _Precision(2.0**-21, 2.0**-10)  # and two of float16: that of the weight and that of the largest one


@dataclass(frozen=True)
class Grid:
    """Integers and the parameters under which they are the weights."""

    integers: Integers
    params: QuantParams


# -- one tensor ---------------------------------------------------------------------------------------------------


def find_grid(weights: Array, axis: int | None) -> Grid | None:
    """The grid that float weights lie on: per tensor if there is one, else per channel along `axis`, else None.

    Args:
        weights: float array of any shape.
        axis: the output channels' axis, None to look for one grid of the whole tensor alone.
    """
    if not weights.size or not np.isfinite(weights).all():
        return None
    found = _find(weights, axis, _SINGLE, ("int8", "int16"))
    return found or (_find(weights, axis, _HALF, ("int8",)) if _is_half(weights) else None)


def _is_half(weights: Array) -> bool:
    """Whether float16 holds the weights as they are: then they were rounded to it, most likely."""
    head = weights.reshape(-1)[:_ROWS]
    with np.errstate(over="ignore"):
        return all(bool(np.array_equal(part.astype(np.float16), part)) for part in (head, weights))


def _find(weights: Array, axis: int | None, precision: _Precision, dtypes: tuple[str, ...]) -> Grid | None:
    wider: list[tuple[Array, Indices, tuple[int, ...], int | None]] = []  # whole numbers that `dtypes[0]` does not hold
    for rows, shape, along in _rows(weights, axis):
        levels = _levels(rows, precision)
        if levels is None:
            continue
        grid = _grid(rows, levels, shape, along, precision, dtypes[0])
        if grid is not None:
            return grid
        wider.append((rows, levels, shape, along))
    grids = (_grid(*found, precision, dtype) for dtype in dtypes[1:] for found in wider)
    return next((grid for grid in grids if grid is not None), None)


def _rows(weights: Array, axis: int | None) -> Iterator[tuple[Array, tuple[int, ...], int | None]]:
    """All weights in one row, then those of each channel, with the shape and axis that `_grid` is told."""
    yield weights.reshape(1, -1), weights.shape, None
    if axis is not None and weights.shape[axis] != 1:
        rows = np.moveaxis(weights, axis, 0)
        yield rows.reshape(rows.shape[0], -1), rows.shape, axis


def _levels(rows: Array, precision: _Precision) -> Indices | None:
    """Per row the smallest k, brought onto the number of levels of most rows; None if a row lies on no grid."""
    found = np.zeros(len(rows), np.int64)
    live = np.zeros(len(rows), np.bool_)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        peak = np.maximum(part.max(axis=1), -part.min(axis=1)).astype(np.float64)
        live[start : start + _ROWS] = peak > 0
        smallest = _smallest(part, np.where(peak > 0, peak, 1.0), precision)
        if smallest is None:
            return None
        found[start : start + _ROWS] = smallest
    common = int(np.bincount(found[live]).argmax()) if live.any() else 1
    found[(common % found) == 0] = common
    return found


def _smallest(rows: Array, peak: Doubles, precision: _Precision) -> Indices | None:
    """Per row the smallest k that makes every w * k / peak whole; None as soon as a row has none."""
    count, width = rows.shape
    k = np.arange(1, _LEVELS + 1, dtype=np.float64)
    probes = rows[:, :: max(1, width // _PROBES)][:, :_PROBES] / peak[:, None]
    fits: Flags = np.logical_and.reduce(
        _whole(probes[:, None, :] * k[:, None], k[:, None], precision), axis=2
    )  # rows x k
    left: Indices = np.arange(count, dtype=np.int64)
    found = np.zeros(count, np.int64)
    while left.size:
        if not bool(np.all(np.any(fits[left], axis=1))):
            return None
        guess: Indices = np.argmax(fits[left], axis=1) + 1
        error, worst = _largest_error(rows, left, guess / peak[left], precision.own)
        good = error <= guess * precision.share
        found[left[good]] = guess[good]
        left, worst = np.asarray(left[~good]), np.asarray(worst[~good])
        # the element that a guess fails on rules out most other guesses too
        fits[left] &= _whole((rows[left, worst] / peak[left])[:, None] * k, k, precision)
    return found


def _largest_error(rows: Array, chosen: Indices, factor: Doubles, own: float) -> tuple[Doubles, Indices]:
    """Of the chosen rows times their factors: the largest distance from a whole number, and where it is.

    `own` times the number itself is not counted.
    """
    error, worst = np.full(len(chosen), -1.0), np.zeros(len(chosen), np.int64)
    width = max(1, _BLOCK // max(1, len(chosen)))
    every = len(chosen) == len(rows)
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width] if every else rows[chosen, start : start + width]
        scaled = part * factor[:, None]
        excused = np.abs(scaled) * own if own else 0.0
        scaled -= np.rint(scaled)
        np.abs(scaled, out=scaled)
        scaled -= excused
        at = scaled.argmax(axis=1)
        here = scaled[np.arange(len(at)), at]
        better = here > error
        error[better], worst[better] = here[better], at[better] + start
    return error, worst


def _whole(values: Doubles, k: Doubles, precision: _Precision) -> Flags:
    return np.abs(values - np.rint(values)) <= k * precision.share + np.abs(values) * precision.own


def _grid(
    flat: Array, levels: Indices, shape: tuple[int, ...], axis: int | None, precision: _Precision, dtype: str
) -> Grid | None:
    """Scales and integers from the number of levels; a zero point where a side has more than 127 of them."""
    peak = np.abs(flat).max(axis=1).astype(np.float64)
    live = peak > 0
    scale = np.where(live, peak / levels, 0.0)
    scale[~live] = np.median(scale[live]) if live.any() else 1.0
    if (scale < _TINY).any():
        return None
    whole = np.rint(np.divide(flat, scale[:, None], dtype=np.float64)).astype(np.int16)
    if precision.own:
        scale = _fitted(flat, whole, scale)
    zero = _zero_points(whole)
    if zero is None:
        if dtype == "int8":
            return None
        zero = np.zeros(len(whole), np.int64)  # nine bits: DoReFa's of eight, and those of HGQ2 beside their sign
    integers = (whole + zero[:, None].astype(np.int16)).astype(dtype).reshape(shape)
    span = 128 if zero.any() else int(levels.max())  # 7 says that the weights have four bits
    lowest, highest = -span, min(span, int(np.iinfo(dtype).max))
    if axis is None:
        return Grid(integers, QuantParams.per_tensor(float(scale[0]), int(zero[0]), dtype, lowest, highest))
    moved = np.asarray(np.moveaxis(integers, 0, axis), order="C")
    return Grid(moved, QuantParams.per_channel(scale, axis, zero, dtype, lowest, highest))


def _fitted(flat: Array, whole: npt.NDArray[np.int16], scale: Doubles) -> Doubles:
    """Per row the scale that fits all weights best: the largest one alone has the error of its own rounding."""
    exact = whole.astype(np.float64)
    square = (exact * exact).sum(axis=1)
    fitted: Doubles = np.where(square > 0, (exact * flat).sum(axis=1) / np.where(square > 0, square, 1.0), scale)
    return fitted


def _zero_points(whole: npt.NDArray[np.int16]) -> Indices | None:
    """Zero points that bring rows of whole numbers into int8: one for all if possible, the nearest to zero."""
    low, high = whole.min(axis=1).astype(np.int64), whole.max(axis=1).astype(np.int64)
    least, most = np.maximum(-128 - low, -128), np.minimum(127 - high, 127)
    if (least > most).any():
        return None
    first, last = int(least.max()), int(most.min())
    if first <= last:
        return np.full(len(whole), min(max(0, first), last), np.int64)
    nearest: Indices = np.minimum(np.maximum(0, least), most)
    return nearest


def quantize_after_training(weights: Array, axis: int | None) -> Grid:
    """Symmetric int8 per channel (or per tensor), -127..127, from the largest absolute value: no grid was trained."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    peak = np.abs(weights).max(axis=others).reshape(-1).astype(np.float64)
    scale = np.maximum(np.where(peak > 0, peak / 127, 1.0), _TINY)
    if axis is None:
        params = QuantParams.per_tensor(float(scale[0]), 0, "int8", -127, 127)
    else:
        params = QuantParams.per_channel(scale, axis, 0, "int8", -127, 127)
    return Grid(params.quantize(weights), params)


# -- the graph ----------------------------------------------------------------------------------------------------


def recover_weights(graph: QuantGraph, *, quantize_others: bool) -> None:
    """Give float weights that lie on a grid their integers, in a graph that is canonical otherwise.

    Weights that lie on none stay floats, with a note (QAT206), where their data operand is quantized; with
    `quantize_others` they are quantized as after training, with a warning.
    """
    for table in _float_tables(graph):
        grid = find_grid(table.values, None)
        if grid is not None and grid.params.dtype in ("int8", "uint8"):
            _set(graph, table, grid)
    weights = float_weights(graph)
    on_grid = _on_grid(graph) if weights else set[int]()
    for weight, axis, readers in weights:
        if not np.isfinite(weight.values).all():
            message = "the weight holds NaN or infinite values"
            hint = "training diverged, or the file is damaged: export the model again from a sound checkpoint"
            graph.diagnostics.error("QAT209", message, node=label_of(readers[0]), tensor=weight.name, hint=hint)
            continue
        grid = find_grid(weight.values, axis)
        if grid is None and axis != 0 and all(n.op == "ConvTranspose" for n in readers):
            grid = find_grid(weight.values, 0)  # PyTorch's quantizers count filters there
        if grid is not None:
            _set(graph, weight, grid)
            continue
        trained = [n for n in readers if any(id(t) in on_grid for t in n.inputs[:2] if t is not weight)]
        if trained and quantize_others:
            grid = quantize_after_training(weight.values, axis)
            _report_quantized(graph, weight, trained[0], grid)
            _set(graph, weight, grid)
        elif trained:
            _report_float(graph, weight, trained[0])


def _set(graph: QuantGraph, weight: Constant, grid: Grid) -> None:
    weight.values = grid.integers
    graph.params[weight.name] = grid.params
    graph.origin.setdefault(weight.name, weight.name)


def _float_tables(graph: QuantGraph) -> list[Constant]:
    """Float constants that products read through operators that move elements, a Gather among them; each once."""
    seen: set[int] = set()
    found: dict[int, Constant] = {}
    for product in graph.of(*PRODUCTS):
        for tensor in product.inputs[:2]:
            gathers = False
            while id(tensor) not in seen:
                seen.add(id(tensor))
                node = graph.producer(tensor)
                if node is None or not is_movement(node):
                    break
                gathers = gathers or node.op in ("Gather", "GatherND")
                tensor = node.inputs[0]
            if gathers and isinstance(tensor, Constant) and tensor.name not in graph.params and tensor.values.ndim > 1:
                found[id(tensor)] = tensor
    return [t for t in found.values() if t.values.dtype == np.float32 and np.isfinite(t.values).all()]


def weight_axis(node: Node, index: int, shape: tuple[int, ...]) -> int | None:
    """The output channels' axis of operand `index` of a product, if it has one."""
    if node.op == "ConvTranspose" and shape[1] == 1 and node.attr("group", 1) != 1:
        return 0  # depthwise: those of the input
    return output_axis(node, len(shape), index)


def float_weights(graph: QuantGraph) -> list[tuple[Constant, int | None, list[Node]]]:
    """Float constants that Conv, ConvTranspose, MatMul and Gemm multiply by, each once, with its channel axis."""
    found: dict[int, tuple[Constant, set[int | None], list[Node]]] = {}
    for node in graph.of(*PRODUCTS):
        for index in (0, 1) if node.op in ("MatMul", "Gemm") else (1,):
            tensor = node.inputs[index]
            if not isinstance(tensor, Constant) or tensor.name in graph.params:
                continue
            if tensor.values.dtype.name not in _FLOATS or tensor.values.ndim < 2 or not tensor.values.size:
                continue
            entry = found.setdefault(id(tensor), (tensor, set(), []))
            entry[1].add(weight_axis(node, index, tensor.values.shape))
            entry[2].append(node)
    return [(t, axes.pop() if len(axes) == 1 else None, readers) for t, axes, readers in found.values()]


def has_weight_on_grid(graph: QuantGraph) -> bool:
    """Whether a weight of some size lies on a grid; a handful of numbers may do so by chance, and one always does.

    A depthwise 1x1 convolution, as batch norm may be, says nothing, however many channels it has.
    """
    for weight, axis, _ in float_weights(graph):
        grid = find_grid(weight.values, axis) if weight.values.size >= _TELLING else None
        if grid is not None and weight.values.size >= _SHARING * len(grid.params.scale):
            return True
    return False


def _on_grid(graph: QuantGraph) -> set[int]:
    """Tensors whose values are rounded onto a grid: FakeQuant results, and what only moves or clamps them."""
    found: set[int] = set()
    for node in graph.nodes:
        data = node.inputs if node.op == "Concat" else node.inputs[:1]
        keeps = node.op == FAKE_QUANT or (
            (is_movement(node) or node.op in _SAME_GRID)
            and all(id(t) in found or (is_constant(t) and t.name in graph.params) for t in data)
        )
        if keeps:
            found.update(id(t) for t in node.outputs)
    return found


def _report_float(graph: QuantGraph, weight: Constant, reader: Node) -> None:
    graph.diagnostics.note(
        "QAT206",
        f"the weights of this {reader.op} are floats on no grid: training left them unquantized, so it stays float",
        node=label_of(reader),
        tensor=weight.name,
        hint="quantize the layer's weights in training; where the framework rounds them as it runs, and an export loses"
        " that (compressed-tensors), store the rounded weights before",
    )


def _report_quantized(graph: QuantGraph, weight: Constant, reader: Node, grid: Grid) -> None:
    graph.restated.append("with the weights that qatc rounded")
    error = float(np.abs(grid.params.dequantize(grid.integers) - weight.values).max())
    many = "per channel" if grid.params.is_per_channel else "per tensor"
    graph.diagnostics.warning(
        "QAT206",
        f"training left the weights of this {reader.op} unquantized; they are rounded to int8 {many} now,"
        f" by {error:.3g} at most (largest weight {float(np.abs(weight.values).max()):.3g})",
        node=label_of(reader),
        tensor=printable(weight.name),
        hint="quantize the layer's weights in training (tfmot leaves out Conv and Dense before a separate activation)",
    )
