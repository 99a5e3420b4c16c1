"""The shared core: QuantizeLinear and DequantizeLinear of opsets 10 to 23 become the canonical form.

    x -> Q -> Clip -> DQ -> y                     x -> FakeQuant -> y                 qmin and qmax from the Clip
    x -> Q -> Reshape -> Transpose -> DQ -> y     x -> FakeQuant -> Reshape -> Transpose -> y
    x -> Q -> {DQ -> y, DQ -> z}                  x -> FakeQuant -> y (z reads y)
    int8 constant -> Clip -> DQ -> y              the constant, with parameters
    int8 graph input -> DQ -> y                   float graph input -> FakeQuant -> y  (graph.integer_ports says int8)
    x -> Q -> graph output                        x -> FakeQuant -> float graph output (likewise)

It works on values, not on patterns: walking the graph in order, every tensor of integers is known by the grid it came
from and by what moved or clamped it since, and each DequantizeLinear asks for the real numbers behind its input.
Whatever else reads such integers has no meaning in real numbers and is reported. A dialect normalizes by rewriting its
nodes into FakeQuant (`to_fake_quant`) or into standard Q/DQ, and then calling `lift`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph, Tensor, Variable, is_constant, value_of
from qatc.compiler.model.links import label_of, unlink
from qatc.compiler.passes.modernize import element_type, infer_if_possible
from qatc.compiler.passes.movement import LAYOUT, axis_through, is_movement, is_value_blind, joined
from qatc.compiler.quant import DTYPES, Array, QuantParams, dtype_name, dtype_range
from qatc.frontends.common.integers import (
    FAR,
    WIDEST,
    clamp_of,
    clips_weight,
    constant_of,
    data_of,
    is_dq,
    is_q,
    padding_of,
    quantizers,
)
from qatc.frontends.common.operands import refuse
from qatc.frontends.common.params import OF_ELEMENT, linear_params

_QUANTIZED: Final = frozenset(  # `modernize` casts int32
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)
_LOWERED: Final = (
    "integers may be moved, clipped and dequantized; of what a tool lowered to integer arithmetic of its own, give the"
    " model from before that; for integer operators (QLinearConv, ConvInteger, ...) use -m qoperator"
)
_FIRST_CHANNEL: Final = (
    "one side has the first channel's scale for all, as tf2onnx --tflite writes weights that are quantized as the"
    " network runs: give qatc the .tflite file itself, or convert with optimizations = [tf.lite.Optimize.DEFAULT]"
)


def lift(graph: QuantGraph) -> None:
    """Replace all Q/DQ by FakeQuant nodes and constants with parameters, in a sorted graph with folded constants.

    Findings (QAT104, QAT20x) go to `graph.diagnostics`; with an error among them the graph is not to be used further.
    """
    _Lifter(graph).run()


@dataclass(eq=False)
class _Integers:
    """A tensor of integers: a root (Q or graph input), or what one operator makes of others.

    `params` is the grid of the root; `low` and `high` bound the integers. `clip` marks
    a clamp of `parents[0]` to [low, high]; `siblings` are all outputs of the operator.
    """

    tensor: Tensor
    node: Node | None
    parents: tuple[_Integers, ...]
    params: QuantParams
    low: int
    high: int
    clip: bool = False
    siblings: tuple[_Integers, ...] = ()

    def source(self) -> Tensor:
        """Of a root: the real numbers that are quantized."""
        return self.tensor if self.node is None else self.node.inputs[0]

    def root(self) -> _Integers:
        found = self
        while found.parents:
            found = found.parents[0]
        return found


_Key = tuple[int, int, int]  # id of the integers, and the clamp that is applied to them


def _needs_rank(node: Node) -> bool:
    """Whether a Q or DQ counts its channel axis from the end of a tensor of unknown rank."""
    if "axis" not in node.attrs or node.attr("axis", 1) >= 0 or node.inputs[0].shape is not None:
        return False
    scale = value_of(node.inputs[1])
    return scale is not None and scale.size > 1


class _Lifter:
    def __init__(self, graph: QuantGraph) -> None:
        self.graph = graph
        self.integers: dict[int, _Integers] = {}
        self.real: dict[_Key, Tensor] = {}
        self.held: list[Node] = []  # operators on integers: gone when everything is lifted
        self.constants: dict[tuple[int, QuantParams], Constant] = {}
        self.read: dict[tuple[Any, ...], QuantParams | None] = {}

    def run(self) -> None:
        """One pass over the nodes in order; the new list of nodes grows behind it."""
        nodes, found = self.graph.nodes, quantizers(self.graph)
        broken = [n for n in found if len(n.inputs) < 2 or not n.outputs]
        for node in broken:
            refuse(self.graph, node, "QAT104", f"{node.op} has no scale or no output")
        if broken:
            return
        if any(map(_needs_rank, found)):
            infer_if_possible(self.graph)
        self._find_integer_inputs([n for n in found if is_dq(n) and not is_constant(n.inputs[0])])
        self.graph.nodes = []
        for node in nodes:
            if is_q(node):
                self._quantize(node)
            elif is_dq(node):
                self._dequantize(node)
            elif not self._follow(node):
                self._check_reads(node)
                self.graph.nodes.append(node)
        self._outputs()
        unlink(self.held)
        self.graph.clean()

    # -- roots ----------------------------------------------------------------------------------------------------
    def _find_integer_inputs(self, dequantizers: list[Node]) -> None:
        """Integers that are moved to a DequantizeLinear from a graph input or a constant (an embedding, say) are roots.

        Other integers (token ids, ...) are left alone.
        """
        inputs = {id(t) for t in self.graph.inputs if _of_element(t) is not None}
        seen: set[int] = set()
        for node in dequantizers:
            waiting = [node.inputs[0]]
            while waiting:
                tensor = waiting.pop()
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if id(tensor) in inputs:
                    self._declare_input(tensor, node)
                elif isinstance(tensor, Constant):
                    self._declare_constant(tensor, node)
                maker = self.graph.producer(tensor)
                if maker is not None and not maker.domain and not clips_weight(maker):
                    waiting.extend(data_of(maker))

    def _params(self, node: Node) -> QuantParams | None:
        """`linear_params`, read once for a Q and the DQs that share its parameters."""
        x, scale = node.inputs[:2]
        integers = self.integers.get(id(x))
        if integers is not None and not integers.parents:
            x = integers.source()  # of the same shape, which is known more often
        one = isinstance(scale, Constant) and scale.values.size == 1  # then the shape does not matter
        shape = None if one or x.shape is None else tuple(x.shape)
        key = (*map(id, node.inputs[1:]), node.attr("axis", 1), node.attr("block_size", 0), shape)
        if len(node.inputs) < 3 or key not in self.read:
            self.read[key] = linear_params(self.graph, node)
        return self.read[key]

    def _quantize(self, node: Node) -> None:
        self.held.append(node)
        if not node.inputs[0].name:
            refuse(self.graph, node, "QAT104", f"{node.op} has no input")
            return
        if id(node.inputs[0]) in self.integers:
            self._check_reads(node)
            return
        kind = element_type(node.inputs[0])
        if kind is not None and kind not in _QUANTIZED and self.graph.quant(node.inputs[0]) is None:
            name = onnx.TensorProto.DataType.Name(kind).lower()
            message = f"QuantizeLinear reads {name}, and ONNX has it of floats and int32 alone"
            refuse(self.graph, node, "QAT104", message, "cast what it reads to float in front of it")
            return
        params = self._params(node)
        if params is None:
            return
        if params.dtype == "int32" and not _is_vector(node.inputs[0]):  # what runs it takes 8 bits, and saturates
            message = "QuantizeLinear makes integers of 32 bits, and ONNX has it of 16 at most: its range is lost"
            hint = "give zero points of the type that was meant, int8 for instance"
            refuse(self.graph, node, "QAT104", message, hint)
            return
        self.integers[id(node.outputs[0])] = _Integers(node.outputs[0], node, (), params, params.qmin, params.qmax)

    # -- operators on integers ------------------------------------------------------------------------------------
    def _follow(self, node: Node) -> bool:
        """Take over an operator that moves or clamps known integers; False where the node is not one."""
        if not node.inputs or node.domain:
            return False
        if node.op == "Where":
            return self._choose(node)
        data = [t for t in node.inputs if t.name] if node.op == "Concat" else node.inputs[:1]
        parents = [self.integers[id(t)] for t in data if id(t) in self.integers]
        if not parents and node.op in ("Min", "Max"):
            data = node.inputs[1:2]
            parents = [self.integers[id(t)] for t in data if id(t) in self.integers]
        if not parents or len(parents) != len(data):
            return False
        parent = parents[0]
        bounds = clamp_of(node, parent.tensor)
        if bounds is not None:
            self._hold(node, tuple(parents), _clamp(parent.low, bounds), _clamp(parent.high, bounds), clip=True)
            return True
        if node.op in ("Min", "Max"):
            return self._choose(node)
        if node.op == "Cast":
            return self._cast(node, parent)
        if node.op != "Concat" and not is_movement(node):
            return False
        if node.op != "Concat":
            self._check_reads(node, 1)  # places and sizes that are integers of the network have no meaning
        if any(p.params != parent.params for p in parents):
            self._disagree(node, [p.params for p in parents])
        low, high = min(p.low for p in parents), max(p.high for p in parents)
        padding = padding_of(node)
        if padding is not None:
            low, high = min(low, padding), max(high, padding)
        self._hold(node, tuple(parents), low, high)
        return True

    def _choose(self, node: Node) -> bool:
        """A Where, Max or Min between integers of one grid, of which one may be constant."""
        sides = joined(node)
        found = [self.integers.get(id(t)) for t in sides]
        known = next((f for f in found if f is not None), None)
        if known is None:
            return False
        parents: list[_Integers] = []
        for tensor, one in zip(sides, found, strict=True):
            chosen = one or self._chosen_constant(tensor, known.params)
            if chosen is None:
                return False
            parents.append(chosen)
        if any(p.params != known.params for p in parents):
            self._disagree(node, [p.params for p in parents])
        self._hold(node, tuple(parents), min(p.low for p in parents), max(p.high for p in parents))
        return True

    def _chosen_constant(self, tensor: Tensor, params: QuantParams) -> _Integers | None:
        """A constant as integers of a grid, None where they are none of its type."""
        if not isinstance(tensor, Constant) or tensor.values.dtype.name != params.dtype or params.is_per_channel:
            return None
        return _Integers(tensor, None, (), params, *dtype_range(params.dtype))

    def _hold(self, node: Node, parents: tuple[_Integers, ...], low: int, high: int, *, clip: bool = False) -> None:
        self.held.append(node)
        made = tuple(_Integers(t, node, parents, parents[0].params, low, high, clip) for t in node.outputs)
        for one in made:
            one.siblings = made
            self.integers[id(one.tensor)] = one

    def _cast(self, node: Node, parent: _Integers) -> bool:
        """A Cast between integer types must keep every value; Casts to floats are not ours."""
        kind = int(node.attr("to"))
        if kind in (onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64):
            low, high = (0 if kind != onnx.TensorProto.INT64 else WIDEST[0]), WIDEST[1]
        elif kind in OF_ELEMENT:
            low, high = dtype_range(OF_ELEMENT[kind])
        else:
            return False
        if not low <= parent.low <= parent.high <= high:
            message = f"a Cast of integers {parent.low}..{parent.high} to {low}..{high} changes them"
            refuse(self.graph, node, "QAT104", message)
        self._hold(node, (parent,), parent.low, parent.high, clip=True)
        return True

    def _check_reads(self, node: Node, first: int = 0) -> None:
        """Report a node that computes with integers; one that reads their shape alone reads the real numbers'."""
        for index, tensor in enumerate(node.inputs[first:], first):
            found = self.integers.get(id(tensor))
            if found is None:
                continue
            if is_value_blind(node):
                node.inputs[index] = self._real(found, None) if found.parents else found.source()
                continue
            root = found.root()
            source = label_of(root.node) if root.node is not None else f"graph input {root.tensor.name}"
            message = f"{node.op} computes with the integers of {source}"
            self.graph.diagnostics.error("QAT104", message, node=label_of(node), tensor=tensor.name, hint=_LOWERED)

    def _disagree(self, node: Node, stated: Iterable[QuantParams | None]) -> None:
        grids = list(dict.fromkeys(stated))
        message = "integers of different grids meet: " + "; ".join(map(str, grids))
        hint = "quantize and dequantize a tensor with the same scale, zero point and axis"
        if len({p.scale[0] for p in grids if p is not None}) == 1 and len({p.is_per_channel for p in grids if p}) == 2:
            hint = _FIRST_CHANNEL
        refuse(self.graph, node, "QAT203", message, hint)

    # -- the real numbers behind integers -------------------------------------------------------------------------
    def _dequantize(self, node: Node) -> None:
        self.held.append(node)
        x, y = node.inputs[0], node.outputs[0]
        constant, bounds = constant_of(x)
        integers = self.integers.get(id(x))
        if constant is None and integers is None and self._blamed(x):
            return
        if constant is None:
            params = self._params(node)
        else:  # a Clip between may have no shape of its own
            params = linear_params(self.graph, node, constant.dtype, constant.shape)
        if params is None:
            return
        if constant is not None and not _is_held(constant, params):
            message = (
                f"this DequantizeLinear reads a constant of {constant.dtype} that holds no integers of {params.dtype}"
            )
            refuse(self.graph, node, "QAT104", message, "the file is damaged, or stores another type than it states")
            return
        constant, bounds = constant_of(node.inputs[0])  # channels without a scale are emptied
        if constant is not None:
            params = params.with_range(_clamp(params.qmin, bounds), _clamp(params.qmax, bounds))
            self.graph.replace(y, self._constant(x, y.name, constant, params))
        elif integers is not None:
            self._settle(node, integers, params, y)
        else:
            maker = self.graph.producer(x)
            message = f"this DequantizeLinear reads integers that {maker.op if maker else 'nothing known'} makes"
            refuse(self.graph, node, "QAT104", message, _LOWERED)

    def _blamed(self, x: Tensor) -> bool:
        """Whether the integers come from a Q whose parameters were reported already."""
        tensor: Tensor = x
        for _ in range(len(self.held) + 1):
            maker = self.graph.producer(tensor)
            if maker is None:
                return False
            if is_q(maker):
                return True
            tensor = maker.inputs[0] if maker.inputs else x
        return False

    def _settle(self, node: Node, integers: _Integers, params: QuantParams, y: Tensor) -> None:
        stated = integers.params
        axis = None if stated.axis is None else _axis_of(integers)
        if (stated.scale, stated.zero_point) != (params.scale, params.zero_point) or axis not in (None, params.axis):
            self._disagree(node, [stated if axis is None else stated.with_axis(axis), params])
            return
        node.outputs.clear()
        result = self._real(integers, y)
        if result is not y:
            self.graph.origin.setdefault(result.name, y.name)
            self.graph.replace(y, result)

    def _declare_input(self, tensor: Tensor, node: Node) -> None:
        """A graph input of integers becomes one of real numbers, on the grid that the DequantizeLinear states."""
        params, dtype = self._params(node), _of_element(tensor)
        if params is None or dtype is None:
            return
        low, high = dtype_range(dtype)
        if params.is_per_channel or not low <= params.zero_point[0] <= high:
            message = f"a graph input of integers has the parameters {params}"
            self.graph.diagnostics.error("QAT104", message, node=label_of(node), tensor=tensor.name)
            return
        params = QuantParams(params.scale, params.zero_point, dtype)
        self.integers[id(tensor)] = _Integers(tensor, None, (), params, low, high)
        self.graph.integer_ports[tensor.name] = element_type(tensor) or 0
        if isinstance(tensor, Variable):
            tensor.dtype = onnx.TensorProto.FLOAT

    def _declare_constant(self, tensor: Constant, node: Node) -> None:
        """Constant integers that are moved at run time lie on the grid that the DequantizeLinear states."""
        if tensor.values.dtype.name not in DTYPES:
            return
        params = linear_params(self.graph, node, tensor.values.dtype)
        if params is not None and not params.is_per_channel:
            self.integers[id(tensor)] = _Integers(tensor, None, (), params, *dtype_range(params.dtype))

    def _real(self, integers: _Integers, target: Tensor | None) -> Tensor:
        """The real numbers that integers stand for, made once; `target` becomes the new tensor where one is made."""
        last = _peel(integers, WIDEST)
        waiting = [last]
        while waiting:
            value, low, high = waiting[-1]
            key = (id(value), low, high)
            missing = [p for p in (_peel(p, (low, high)) for p in value.parents) if _key(p) not in self.real]
            if key in self.real:
                waiting.pop()
            elif missing:
                waiting.extend(reversed(missing))
            else:
                self._emit(value, low, high, target if waiting[-1] is last else None)
                waiting.pop()
        return self.real[_key(last)]

    def _emit(self, value: _Integers, low: int, high: int, target: Tensor | None) -> None:
        if value.parents:
            self._emit_move(value, low, high, target)
            return
        root = value.params
        if isinstance(value.tensor, Constant):
            stored = self._constant(value.tensor, value.tensor.name, value.tensor.values, root.with_range(low, high))
            self.real[(id(value), low, high)] = stored
            return
        result = target or self.graph.variable(f"{value.tensor.name}_real", onnx.TensorProto.FLOAT, value.tensor.shape)
        name = value.node.name if value.node is not None else ""
        lowest, highest = dtype_range(root.dtype)
        if lowest <= low <= high <= highest:
            root = root.with_range(low, high)
        else:
            message = f"{root.dtype} is clipped to {low}..{high}"
            self.graph.diagnostics.error("QAT104", message, tensor=value.tensor.name)
        fake = Node(FAKE_QUANT, name or result.name, {"params": root}, [value.source()], [result])
        self.graph.nodes.append(fake)
        self._name(result, value, low, high)

    def _emit_move(self, value: _Integers, low: int, high: int, target: Tensor | None) -> None:
        """Repeat an operator of the integers on the real numbers."""
        node = value.node
        if node is None:
            raise ValueError(f"nothing makes {value.tensor.name}")
        data = [self.real[_key(_peel(p, (low, high)))] for p in value.parents]
        others = node.inputs[len(data) :]
        padding = padding_of(node)
        if padding is not None:
            others = [others[0], self._pad_value(node, value, _clamp(padding, (low, high))), *others[2:]]
        outputs: list[Tensor] = []
        for one in value.siblings:
            fresh = target if one is value and target is not None else None
            outputs.append(
                fresh or self.graph.variable(f"{one.tensor.name}_real", onnx.TensorProto.FLOAT, one.tensor.shape)
            )
        inputs = [node.inputs[0], *data] if node.op == "Where" else [*data, *others]
        self.graph.nodes.append(Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain))
        for one, result in zip(value.siblings, outputs, strict=True):
            self._name(result, one, low, high)

    def _name(self, result: Tensor, value: _Integers, low: int, high: int) -> None:
        self.real[(id(value), low, high)] = result
        if isinstance(result, Variable):
            result.dtype = onnx.TensorProto.FLOAT
            if result.shape is None and value.tensor.shape is not None:
                result.shape = list(value.tensor.shape)
        if not result.name.endswith("_real"):
            self.graph.origin[result.name] = result.name

    def _pad_value(self, node: Node, value: _Integers, number: int) -> Constant:
        """What a Pad of integers fills with, as a real number."""
        params = value.params
        if params.is_per_channel:
            refuse(self.graph, node, "QAT302", "a Pad of integers that are quantized per channel")
            return self.graph.constant(f"{node.outputs[0].name}_value", np.zeros((), np.float32))
        real = np.float32(params.scale[0]) * np.float32(number - params.zero_point[0])
        return self.graph.constant(f"{node.outputs[0].name}_value", np.asarray(real, np.float32))

    # -- constants and outputs ------------------------------------------------------------------------------------
    def _constant(self, x: Tensor, origin: str, value: Array, params: QuantParams) -> Constant:
        """The integers of a constant under their parameters, one constant for all that read it alike."""
        known = self.constants.get((id(x), params))
        if known is None:
            integers = np.asarray(value.astype(params.container, copy=False), order="C")
            if not params.is_full_range:
                clipped = np.clip(integers, params.qmin, params.qmax)
                integers = np.asarray(clipped, integers.dtype)  # a scalar stays an array; NumPy 1 makes an int64 of it
            alone = len(x.outputs) == 1
            known = Constant(x.name, integers) if alone else self.graph.constant(x.name, integers)
            self.graph.params[known.name] = params
            self.graph.origin[known.name] = origin
            self.constants[id(x), params] = known
        return known

    def _outputs(self) -> None:
        """A graph output of integers becomes one of real numbers; the package may turn it back (`integer_ports`)."""
        for output in list(self.graph.outputs):
            integers = self.integers.get(id(output))
            if integers is None or (integers.root() is integers and integers.node is None):
                continue
            declared, own = element_type(output), integers.root().params.container
            known = declared if declared in OF_ELEMENT else onnx.helper.np_dtype_to_tensor_dtype(own)
            self.graph.integer_ports[output.name] = known or onnx.TensorProto.UINT8
            if integers.node is not None:
                self.graph.detach_producer(output)
            result = self._real(integers, output)
            if result is not output:
                self.graph.replace(output, result)
            if isinstance(output, Variable):
                output.dtype = onnx.TensorProto.FLOAT


def _key(item: tuple[_Integers, int, int]) -> _Key:
    return (id(item[0]), item[1], item[2])


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


def _peel(value: _Integers, bounds: tuple[int, int]) -> tuple[_Integers, int, int]:
    """Integers without the clamps on top of them, and the clamp that those come to (`bounds` are applied last)."""
    while value.clip:
        bounds = (_clamp(value.low, bounds), _clamp(value.high, bounds))
        value = value.parents[0]
    return value, _clamp(value.low, bounds), _clamp(value.high, bounds)


def _axis_of(value: _Integers) -> int | None:
    """The channel axis of integers, None where they have none, or what moved them does not tell."""
    moves: list[Node] = []
    axis = value.params.axis
    while value.parents and axis is not None:
        if not value.clip and value.node is not None:
            moves.append(value.node)
        value = value.parents[0]
        if len(moves) > FAR:
            return None
    for node in reversed(moves):
        axis = axis_through(node, axis) if axis is not None and node.op in LAYOUT else None
    return axis


def _is_held(value: Array, params: QuantParams) -> bool:
    """Whether a constant holds integers of a grid's type: another type may be stored than the zero point has."""
    if dtype_name(value.dtype) in DTYPES or not value.size:
        return True
    low, high = dtype_range(params.dtype)
    return value.dtype.kind in "iu" and low <= int(value.min()) <= int(value.max()) <= high


def _is_vector(tensor: Tensor) -> bool:
    """Whether a constant has the dimensions of a bias, whose integers have 32 bits everywhere."""
    return isinstance(tensor, Constant) and tensor.values.ndim <= 1


def _of_element(tensor: Tensor) -> str | None:
    """The quantized type of a tensor of integers."""
    return OF_ELEMENT.get(element_type(tensor) or 0)
