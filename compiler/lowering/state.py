"""What the lowering knows while it walks the graph: which tensor exists in which form, and how to get the other one.

Every tensor of the QuantGraph can exist as integers (`int_name`) or as floats (`float_name`) in the IntegerGraph. A
quantized tensor is made in integers when the walk reaches it; a float is made only when something asks for it, so that
what fuses into an integer operator never appears. Making floats is iterative, however long the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from qatc.compiler.graph import REQUANTIZE, Constant, Node, QuantGraph, Tensor, is_constant, shape_of
from qatc.compiler.integer import Dequantize, Float, Lookup, Move, Quantize, Rescale, Shape
from qatc.compiler.lowering.builder import Builder
from qatc.compiler.model.links import is_op, label_of
from qatc.compiler.passes.movement import is_movement, is_value_blind
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference.functions import Values

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers, as far as is known."""
    return tensor.dtype in (None, 0, *_FLOATS)


@dataclass(frozen=True)
class LoweringOptions:
    """What a target asks for.

    `activations`: "uint8" (int8 becomes uint8 by shifting the zero point, exact) or "keep". `io`: "float" or "integer".
    `operators`: the integer operators that are wanted beside those that every target has; `offered`: those that the
    target has, wanted or not. `arithmetic`: the profile, which what rounds down or up is proven with (`cuts.py`).
    """

    activations: str = "uint8"
    io: str = "float"
    operators: frozenset[str] = frozenset()
    offered: frozenset[str] = frozenset()
    arithmetic: str = "onnx"


@dataclass(frozen=True)
class Reason:
    """Why an operator stays in float, in words for the user; `tensor` is the one at fault, "" where none is."""

    text: str
    tensor: str = ""


@dataclass(frozen=True)
class Function:
    """A tensor that is an element-wise function of an 8-bit `root`: its real value for each of the root's 256 codes.

    With `at` the root is a tensor of real numbers that is compared with this number alone: the function has three
    values, for a root below it, at it and above. `other` has what becomes of it where ties that are rounded on the way
    fall to the other side; None where there are none.
    """

    root: Tensor
    values: Values
    text: str
    at: float | None = None
    other: Values | None = None


@dataclass
class State:
    """The walk's memory. `raw` makes the float result of a pending multiply-accumulate node (set by `lower`)."""

    graph: QuantGraph
    options: LoweringOptions
    build: Builder
    raw: Callable[[State, Node], bool]
    why: Callable[[State, Node], Reason]
    ints: dict[int, str] = field(default_factory=dict[int, str])
    floats: dict[int, str] = field(default_factory=dict[int, str])
    forms: dict[str, QuantParams] = field(default_factory=dict[str, QuantParams])
    begun: dict[str, QuantParams] = field(default_factory=dict[str, QuantParams])  # those that begin at 0
    unrounded: dict[int, str] = field(default_factory=dict[int, str])
    functions: dict[int, Function] = field(default_factory=dict[int, Function])
    tables: dict[int, tuple[Function, npt.NDArray[Any]]] = field(
        default_factory=dict[int, tuple[Function, npt.NDArray[Any]]]
    )
    weights: dict[tuple[Any, ...], str] = field(default_factory=dict[tuple[Any, ...], str])

    # -- questions ------------------------------------------------------------------------------------------------
    def params(self, tensor: Tensor) -> QuantParams | None:
        """The tensor's parameters as the integer graph has them: whole bytes, activations unsigned if asked for."""
        params = self.graph.quant(tensor)
        if params is None:
            return None
        found = self.forms.get(tensor.name)
        if found is None:
            found = self.forms[tensor.name] = self.stored(params, weight=is_constant(tensor))
        return found

    def grid(self, tensor: Tensor) -> QuantParams:
        """The same of a tensor that is quantized for certain; ValueError where it is not."""
        params = self.params(tensor)
        if params is None:
            raise ValueError(f"tensor {tensor.name} is not quantized")
        return params

    def stored(self, params: QuantParams, *, weight: bool = False) -> QuantParams:
        """`params` in the type that the integer graph stores: weights in int8, activations in uint8 if asked for."""
        if not params.is_8bit:
            return params
        signed = weight or (params.is_signed and self.options.activations != "uint8")
        return params.as_dtype("int8" if signed else "uint8")

    def usable(self, tensor: Tensor) -> QuantParams | None:
        """The parameters of a tensor that integer operators can read: 8 bits, one scale."""
        params = self.params(tensor)
        return params if params is not None and params.is_byte else None

    # -- tensors --------------------------------------------------------------------------------------------------
    def new_int(self, tensor: Tensor) -> str:
        """Describe the integer form of a quantized tensor that is about to be made, and return its name."""
        params = self.grid(tensor)
        port = self.graph.is_output(tensor) and params == self.port_params(tensor)
        name = self.build.quantized(
            tensor.name if port else f"{tensor.name}_quantized",
            params,
            shape_of(tensor),
            self.graph.origin.get(tensor.name),
            exact=port,
            sample_shape=self.graph.sample_shapes.get(tensor.name),
        )
        self.ints[id(tensor)] = name
        if tensor.name in self.begun:
            kept = self.stored(self.graph.params[tensor.name])
            self.build.graph.lowered[name] = kept.zero_point[0] - params.zero_point[0]
        if tensor.name in self.graph.shifted:
            self.build.graph.shifted[name] = self.graph.shifted[tensor.name]
        if tensor.name in self.graph.turned:
            self.build.graph.turned[name] = self.graph.turned[tensor.name]
        return name

    def new_float(self, tensor: Tensor) -> str:
        """Describe the float (or index, boolean ...) form of a tensor that is about to be made, under its own name."""
        kind = tensor.dtype if isinstance(tensor.dtype, int) and tensor.dtype else onnx.TensorProto.FLOAT
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind != onnx.TensorProto.STRING else "object"
        name, origin = tensor.name, self.graph.origin.get(tensor.name)
        source = origin if name in self.graph.params else name if name in self.graph.known else None
        if name in self.build.graph.tensors or (self.graph.is_output(tensor) and self.port_params(tensor)):
            # a float input that is rounded on the way in, or an output of integers: this is their rounded float form
            name = self.build.fresh(f"{name}_dequantized")
        name = self.build.plain(name, dtype, shape_of(tensor), source, self.graph.sample_shapes.get(tensor.name))
        self.floats[id(tensor)] = name
        return name

    def port_params(self, tensor: Tensor) -> QuantParams | None:
        """The parameters of a graph input or output of integers: the file's own, or those of the integer graph.

        None where the deployed graph reads or writes floats.
        """
        if tensor.name in self.graph.integer_ports:
            return self.graph.quant(tensor)
        return self.params(tensor) if self.options.io == "integer" else None

    def new_result(self, tensor: Tensor) -> str:
        """Describe what a float operator computes: the tensor itself, or its value before it is rounded."""
        if tensor.name not in self.graph.params:
            return self.new_float(tensor)
        sample_shape = self.graph.sample_shapes.get(tensor.name)
        name = self.build.plain(
            self.build.fresh(f"{tensor.name}_unrounded"), "float32", shape_of(tensor), None, sample_shape
        )
        self.unrounded[id(tensor)] = name
        return name

    def int_name(self, tensor: Tensor) -> str:
        """The integer form of a quantized tensor."""
        name = self.ints.get(id(tensor))
        if name is None:
            if isinstance(tensor, Constant):
                return self._int_constant(tensor)
            name = self._lookup(tensor)
        return name

    def _int_constant(self, tensor: Constant) -> str:
        own = self.graph.params[tensor.name]
        params = self.stored(own)  # not a weight here: it meets activations, in their type
        value = own.moved(tensor.values, params.dtype)
        name = self.ints[id(tensor)] = self.build.constant(tensor.name, value, params)
        return name

    def _lookup(self, tensor: Tensor) -> str:
        """Make the table of a tensor that is a function of another one."""
        function, table = self.tables[id(tensor)]
        source, params, have = self.int_name(function.root), self.grid(tensor), self.grid(function.root)
        lowest = dtype_range(have.dtype)[0]
        codes = np.arange(have.qmin, have.qmax + 1)
        reached = table[codes - lowest].astype(np.int64)
        if have.same_grid(params) and have.dtype == params.dtype:
            low, high = int(reached.min()), int(reached.max())
            if np.array_equal(reached, codes):
                self.ints[id(tensor)] = source
                return source
            if np.array_equal(reached, np.clip(codes, low, high)):
                out = (self.new_int(tensor),)
                return self.build.add(
                    Rescale, f"Clip_{tensor.name}", (source,), out, lo=low, hi=high, source=self._node(tensor)
                )
        inputs = (source, self.build.constant(f"{tensor.name}_table", table))
        name = self.build.add(
            Lookup, f"Lookup_{tensor.name}", inputs, (self.new_int(tensor),), lo=int(reached.min()),
            hi=int(reached.max()), function=function.text, source=self._node(tensor),
        )  # fmt: skip
        if function.other is not None:
            self.build.graph.doubts[name] = params.quantize(function.other.astype(np.float32))
        factor = self._factor(tensor, function.root)
        if factor is not None:
            self.build.graph.factors[name] = factor
        return name

    def _factor(self, tensor: Tensor, root: Tensor) -> QuantParams | None:
        """The grid of what `root` is multiplied by to make `tensor`, if that is a table of `root` as well."""
        node = self.graph.producer(tensor)
        others = [t for t in node.inputs if t is not root] if is_op(node, "Mul") else []
        known = self.tables.get(id(others[0])) if len(others) == 1 else None
        return self.usable(others[0]) if known is not None and known[0].root is root else None

    def _node(self, tensor: Tensor) -> str:
        node = self.graph.producer(tensor)
        return label_of(node) if node is not None else ""

    def float_name(self, tensor: Tensor) -> str:
        """The float form of a tensor (or its only form, where it is not quantized); made now if it is missing."""
        stack = [tensor]
        while stack:
            current = stack[-1]
            if id(current) in self.floats or not current.name:
                stack.pop()
            elif isinstance(current, Constant):
                value = self.graph.real(current)
                self.floats[id(current)] = self.build.constant(current.name, np.asarray(value, order="C"))
            elif current.name in self.graph.params and (id(current) in self.ints or id(current) in self.tables):
                self._dequantize(current)
            else:
                stack.extend(self._make_float(current))
        return self.floats[id(tensor)]

    def unrounded_name(self, tensor: Tensor) -> str:
        """The float value of a tensor before it is rounded onto its grid (the tensor itself where it has none)."""
        if tensor.name not in self.graph.params:
            return self.float_name(tensor)
        while id(tensor) not in self.unrounded:
            for missing in self._make_float(tensor):
                self.float_name(missing)
        return self.unrounded[id(tensor)]

    def _dequantize(self, tensor: Tensor) -> None:
        source, out = self.int_name(tensor), self.new_float(tensor)
        self.build.add(Dequantize, f"Dequantize_{tensor.name}", (source,), (out,), source=self._node(tensor))

    def _make_float(self, tensor: Tensor) -> list[Tensor]:
        """Make a pending float tensor; what must be made first is returned instead."""
        node = self.graph.producer(tensor)
        if node is None:
            raise ValueError(f"tensor {tensor.name} has no producer and no value")
        if self.raw(self, node):
            return []
        blind = is_value_blind(node)
        missing = [t for t in node.inputs if t.name and id(t) not in self.floats and not (blind and id(t) in self.ints)]
        if missing:
            return missing
        self.emit_float(node)
        return []

    def emit_float(self, node: Node) -> None:
        """The node as it is, on floats: an island with its reason, shape arithmetic, or movement."""
        if node.op == REQUANTIZE:  # nothing is computed: the rounding onto its own grid comes with its integers
            out = node.outputs[0]
            forms = self.unrounded if out.name in self.graph.params else self.floats
            forms[id(out)] = self.floats[id(node.inputs[0])]
            return
        ints: dict[int, str] = self.ints if is_value_blind(node) else {}
        inputs = tuple(ints.get(id(t)) or self.floats[id(t)] if t.name else "" for t in node.inputs)
        outputs = tuple(self.new_result(t) if t.name else "" for t in node.outputs)
        label, attrs = label_of(node), dict(node.attrs)
        if is_movement(node) or is_op(node, "Concat"):
            self.build.add(Move, label, inputs, outputs, op_type=node.op, attrs=attrs, source=label)
            return
        between = is_op(node, "Cast") and is_float(node.inputs[0])  # types of real numbers
        computes = any(is_float(t) for t in node.outputs if t.name) and not between
        reason = self.why(self, node) if computes else Reason("")
        self.build.add(
            Float, label, inputs, outputs, op_type=node.op, attrs=attrs, reason=reason.text, domain=node.domain or "",
            tensor=reason.tensor, source=label,
        )  # fmt: skip

    def transposed(self, tensor: Tensor, name: str, order: tuple[int, ...]) -> str:
        """The integers of a tensor, which are called `name`, with its dimensions in another order."""
        if order == tuple(range(len(order))):
            return name
        params, shape = self.build.graph.params(name), permuted(shape_of(tensor), order)
        out = self.build.quantized(f"{tensor.name}_transposed", params, shape)
        return self.move("Transpose", (name,), out, perm=list(order))

    def move(self, op: str, inputs: tuple[str, ...], out: str, **attrs: object) -> str:
        """A movement that no node of the file is: the result, `out`."""
        return self.build.add(Move, op, inputs, (out,), op_type=op, attrs=attrs)

    # -- rounding -------------------------------------------------------------------------------------------------
    def quantize_float(self, tensor: Tensor, source: str, lo: int, hi: int) -> None:
        """Make the integers of `tensor` from the float tensor `source`, clamped to [lo, hi]."""
        out = (self.new_int(tensor),)
        self.build.add(Quantize, f"Quantize_{tensor.name}", (source,), out, lo=lo, hi=hi, source=self._node(tensor))


def permuted(shape: Shape | None, order: tuple[int, ...]) -> Shape | None:
    """A shape with its dimensions in another order, None where they are not known to be as many."""
    return None if shape is None or len(shape) != len(order) else tuple(shape[i] for i in order)
