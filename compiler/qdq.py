r"""QuantGraph -> clean QDQ: the same meaning in standard ONNX, one Q/DQ pair behind every tensor that is rounded.

    y<P> = Conv(x<R>, w<S>)      x -> Q(R) -> DQ -\
                                 w int8 -> DQ(S) -> Conv -> y -> Q(P) [-> Clip(qmin, qmax)] -> DQ -> readers

Scales and zero points are scalars, or vectors with `axis` where parameters are per channel; weights are stored as their
integers behind a DequantizeLinear; a range narrower than the type becomes a Clip on the integers; a Requantize is one
more Q/DQ pair. Stripping the result gives the same QuantGraph again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import TensorProto

from qatc.compiler.backend import DATA_FILE, aligned, must_be_apart
from qatc.compiler.diagnostics import fail
from qatc.compiler.graph import (
    FAKE_QUANT,
    REQUANTIZE,
    Constant,
    Node,
    QuantGraph,
    Tensor,
    Variable,
    is_constant,
    rank_of,
    value_of,
)
from qatc.compiler.model.names import Names
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.model.tensors import put_outside
from qatc.compiler.model_io import node_proto, value_info
from qatc.compiler.passes.products import output_axis
from qatc.compiler.quant import Array, QuantParams, dtype_range

BiasForm = Literal["int32", "float"]
IoForm = Literal["source", "float"]

_WIDE_OPSET: Final = 21  # QuantizeLinear knows 16 bits from here on
_STORED: Final = {"int2": "int8", "uint2": "uint8", "int4": "int8", "uint4": "uint8"}
_LARGE: Final = 1 << 12  # bytes from which a constant may go to a data file
_HINT_WIDE: Final = (
    "PPQ writes the zero points of 16 bits as int32, which loses the range: quantize activations to 8 bits, or export"
    " zero points of int16 (opset 21)"
)
_FLOAT: Final = int(TensorProto.FLOAT)
# Operators through which the grid of a bias's result is looked for: they do not change what one LSB is worth.
_KEEP_SCALE: Final = frozenset({"Relu", "Clip", "LeakyRelu", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True)
class QdqModel:
    """A written model and where its tensors are.

    Attributes:
        model: the QDQ model.
        rounded: tensor of the graph -> tensor of the model with its real values after rounding.
        integers: tensor of the graph -> tensor of the model with its integers.
        unrounded: tensor of the graph -> tensor of the model with its real values before rounding, where there are any.
        external: data of the initializers that the model only declares, in the order of their offsets in a data file.
        data_file: whether they need a file of their own.
        notes: what could not be written as asked, for `--explain`.
    """

    model: onnx.ModelProto
    rounded: Mapping[str, str]
    integers: Mapping[str, str]
    unrounded: Mapping[str, str]
    external: tuple[tuple[str, Array], ...] = ()
    data_file: bool = False
    notes: tuple[str, ...] = ()


def to_qdq(
    graph: QuantGraph,
    *,
    bias: BiasForm = "int32",
    max_bias_error: float = 0.01,
    io: IoForm = "source",
    portable: bool = True,
    data_file: bool = False,
    ir_version: int = 10,
) -> QdqModel:
    """Write a stripped graph as a QDQ model.

    Args:
        graph: without FakeQuant nodes; it is not changed. Its opset is at least 13.
        bias: "int32" stores the float biases of convolutions and matrix products with quantized operands as integers of
            scale s_x * s_w behind a DequantizeLinear, as integer kernels want them; "float" leaves them alone.
        max_bias_error: a bias that this rounding would move by more than so many LSB of the result stays float.
        io: "float" has float inputs and outputs, "source" those that `graph.integer_ports` states.
        portable: whether only ai.onnx operators may be used; else ONNX Runtime's own QuantizeLinear stands in where
            ai.onnx has none (16-bit tensors below opset 21).
        data_file: whether large constants go to a file of their own also where the model file could hold them.
        ir_version: what to stamp.

    Raises:
        CompileError: QAT302 where QDQ cannot say it (activations of 32 bits).
    """
    return _Writer(graph, bias, max_bias_error, io, portable, data_file, ir_version).write()


@dataclass
class _Writer:
    graph: QuantGraph
    bias: BiasForm
    max_bias_error: float
    io: IoForm
    portable: bool
    data_file: bool
    ir_version: int
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    constants: dict[str, Array] = field(default_factory=dict[str, Array])
    rounded: dict[str, str] = field(default_factory=dict[str, str])
    integers: dict[str, str] = field(default_factory=dict[str, str])
    raw: dict[str, str] = field(default_factory=dict[str, str])
    grids: dict[QuantParams, tuple[str, str]] = field(default_factory=dict[QuantParams, tuple[str, str]])
    bounds: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    notes: list[str] = field(default_factory=list[str])
    named: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.names = Names({t.name for t in self.graph.tensors()} | {n.name for n in self.graph.nodes})
        self.outputs = {t.name for t in self.graph.outputs}
        wide = any(p.container.itemsize == 2 for p in self.graph.params.values())
        self.opset = self.graph.opset
        self.wide_domain = ""
        if wide and self.opset < _WIDE_OPSET:
            if self.portable and can_raise(self.graph, _WIDE_OPSET):
                self.opset = _WIDE_OPSET
            else:
                self.wide_domain = MICROSOFT
                self.notes.append("16-bit tensors use com.microsoft QuantizeLinear: the opset cannot be raised to 21")

    def write(self) -> QdqModel:
        for tensor in self.graph.inputs:
            self._input(tensor)
        for node in self.graph.nodes:
            self._node(node)
        for output in self.graph.outputs:
            if is_constant(output):
                self._read(output)
        tensors, external, apart = self._tensors()
        body = onnx.helper.make_graph(
            self.nodes,
            self.graph.name or "graph",
            [self._port(t) for t in self.graph.inputs],
            [self._port(t) for t in self.graph.outputs],
            tensors,
        )
        domains = {d: v for d, v in self.graph.domains.items() if any(n.domain == d for n in self.graph.nodes)}
        if any(n.domain == MICROSOFT for n in self.nodes):
            domains.setdefault(MICROSOFT, 1)
        imports = [onnx.helper.make_opsetid("", self.opset)]
        imports += [onnx.helper.make_opsetid(d, v) for d, v in sorted(domains.items())]
        model = onnx.helper.make_model(body, opset_imports=imports, ir_version=self.ir_version, producer_name="qatc")
        return QdqModel(model, self.rounded, self.integers, self.raw, external, apart, tuple(self.notes))

    def _tensors(self) -> tuple[list[TensorProto], tuple[tuple[str, Array], ...], bool]:
        """The initializers, and the arrays of large ones whose data are not in them (memory-mapped ones stay so)."""
        size = sum(a.nbytes for a in self.constants.values())
        apart = self.data_file or must_be_apart(size)
        tensors: list[TensorProto] = []
        external: list[tuple[str, Array]] = []
        position = 0
        for name, value in self.constants.items():
            if value.nbytes < _LARGE or not apart:
                tensors.append(onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))
                continue
            start = aligned(position)
            position = start + value.nbytes
            external.append((name, value))
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            tensors.append(TensorProto(name=name, data_type=kind, dims=value.shape))
            put_outside(tensors[-1], DATA_FILE, start, value.nbytes)
        return tensors, tuple(external), apart

    # -- the interface --------------------------------------------------------------------------------------------
    def _is_integer_port(self, tensor: Tensor) -> bool:
        ports = () if self.io == "float" else self.graph.integer_ports
        return tensor.name in self.graph.params and tensor.name in ports

    def _port_params(self, tensor: Tensor) -> QuantParams:
        """The grid in the element type that the port of integers has."""
        params = self.graph.params[tensor.name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.graph.integer_ports[tensor.name]).name
        return params if dtype == params.dtype else params.as_dtype(dtype)

    def _port(self, tensor: Tensor) -> onnx.ValueInfoProto:
        info = value_info(tensor)
        if self._is_integer_port(tensor):
            info.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(self._port_params(tensor).container)
        elif tensor.name in self.graph.params and is_constant(tensor):
            info.type.tensor_type.elem_type = _FLOAT
        return info

    def _input(self, tensor: Variable) -> None:
        params = self.graph.params.get(tensor.name)
        if params is None or not self._is_integer_port(tensor):
            self.raw[tensor.name] = tensor.name
        if params is None:
            return
        if self._is_integer_port(tensor):
            self.integers[tensor.name] = tensor.name
            self._dequantize(tensor, self._port_params(tensor), tensor.name)
        else:
            self._pair(tensor, params, tensor.name)

    # -- nodes ----------------------------------------------------------------------------------------------------
    def _node(self, node: Node) -> None:
        if node.op == FAKE_QUANT:
            raise ValueError(f"{FAKE_QUANT} {node.name} is left; strip the graph first")
        if node.op == REQUANTIZE:
            target = node.outputs[0]
            self._pair(target, self.graph.params[target.name], self._read(node.inputs[0]))
            return
        stored_bias = self._integer_bias(node)
        inputs = [
            Variable(stored_bias if stored_bias is not None and index == 2 else self._read(tensor))
            for index, tensor in enumerate(node.inputs)
        ]
        outputs = [Variable(self._raw_name(t)) for t in node.outputs]
        copy = Node(node.op, self._node_name(node), dict(node.attrs), inputs, outputs, node.domain)
        self.nodes.append(_raised(node_proto(copy), self))
        for tensor in node.outputs:
            params = self.graph.params.get(tensor.name)
            if params is not None:
                self._pair(tensor, params, self.raw[tensor.name])

    def _node_name(self, node: Node) -> str:
        """The node's own name, or a new one where it has none or another node has it too."""
        own = bool(node.name) and node.name not in self.named
        name = node.name if own else self.names.fresh(f"{node.op}_{node.outputs[0].name}")
        self.named.add(name)
        return name

    def _raw_name(self, tensor: Tensor) -> str:
        """What the node itself writes: an output that is rounded keeps its name for the rounded value."""
        if not tensor.name:
            return ""
        rounded_output = tensor.name in self.graph.params and tensor.name in self.outputs
        self.raw[tensor.name] = self.names.fresh(f"{tensor.name}_unrounded") if rounded_output else tensor.name
        return self.raw[tensor.name]

    def _read(self, tensor: Tensor) -> str:
        """The name under which readers find the tensor's (rounded) value."""
        if tensor.name in self.rounded:
            return self.rounded[tensor.name]
        if isinstance(tensor, Constant):
            return self._constant(tensor)
        return tensor.name

    def _constant(self, tensor: Constant) -> str:
        params = self.graph.params.get(tensor.name)
        value = tensor.values
        if params is None:
            if tensor.name not in self.constants:
                self.store(tensor.name, value)
            return tensor.name
        if params.container.itemsize > 2 and any(params.zero_point):  # DequantizeLinear takes no int32 zero point
            self.store(tensor.name, params.dequantize(value))
            self.rounded[tensor.name] = tensor.name
            return tensor.name
        output = tensor.name in self.outputs
        name = self.names.fresh(f"{tensor.name}_quantized")
        self.store(name, value)
        self.integers[tensor.name] = name
        return self._dequantize(tensor, params, name, keep_name=output)

    def store(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    # -- Q and DQ -------------------------------------------------------------------------------------------------
    def _pair(self, tensor: Tensor, params: QuantParams, source: str) -> None:
        """Q [-> Clip] -> DQ from `source`."""
        if params.container.itemsize > 2:
            message = f"this tensor is quantized to {params.dtype}: QuantizeLinear makes integers of 16 bits at most"
            raise fail("QAT302", message, tensor=tensor.name, hint=_HINT_WIDE)
        integer_output = tensor.name in self.outputs and self._is_integer_port(tensor)
        if integer_output:
            params = self._port_params(tensor)
        source = self._as_float(tensor, source)
        clipped = (params.qmin, params.qmax) != dtype_range(_STORED.get(params.dtype, params.dtype))
        scale, zero = self._grid(tensor.name, params)
        last = tensor.name if integer_output else self.names.fresh(f"{tensor.name}_QuantizeLinear_Output")
        first = self.names.fresh(f"{tensor.name}_QuantizeLinear_Unclipped") if clipped else last
        self._add("QuantizeLinear", f"{tensor.name}_QuantizeLinear", [source, scale, zero], first, params)
        if clipped:
            self._clip(f"{tensor.name}_QuantizeLinear", params, first, last)
        self.integers[tensor.name] = last
        if not integer_output:
            self._dequantize(tensor, params, last, keep_name=tensor.name in self.outputs)
        elif self.graph.consumers(tensor):
            self._dequantize(tensor, params, last)

    def _clip(self, name: str, params: QuantParams, integers: str, out: str) -> None:
        """Integers within their range; ONNX Runtime has no Clip of 16 bits, so that those become 32 in between."""
        held, first, last = params.container, integers, out
        if held.itemsize == 2:
            held = np.dtype(np.int32)
            first, last = (self.names.fresh(f"{name}_Int32") for _ in range(2))
            self._retype(integers, first, held)
        bounds = [self._bound(held, params.qmin), self._bound(held, params.qmax)]
        self.nodes.append(onnx.helper.make_node("Clip", [first, *bounds], [last], self.names.fresh(f"{name}_Clip")))
        if held != params.container:
            self._retype(last, out, params.container)

    def _retype(self, integers: str, out: str, dtype: np.dtype[Any]) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        self.nodes.append(onnx.helper.make_node("Cast", [integers], [out], self.names.fresh(f"{out}_Cast"), to=kind))

    def _dequantize(self, tensor: Tensor, params: QuantParams, source: str, *, keep_name: bool = False) -> str:
        kind = tensor.dtype if isinstance(tensor.dtype, int) and isinstance(tensor, Variable) else None
        result = tensor.name if keep_name else self.names.fresh(f"{tensor.name}_DequantizeLinear_Output")
        inner = result if kind in (None, _FLOAT) else self.names.fresh(f"{tensor.name}_DequantizeLinear_Float")
        scale, zero = self._grid(tensor.name, params)
        inputs = [source, scale, zero] if zero else [source, scale]
        self._add("DequantizeLinear", f"{tensor.name}_DequantizeLinear", inputs, inner, params)
        if inner != result and kind is not None:
            cast = self.names.fresh(f"{tensor.name}_DequantizeLinear_Cast")
            self.nodes.append(onnx.helper.make_node("Cast", [inner], [result], cast, to=kind))
        self.rounded[tensor.name] = result
        return result

    def _as_float(self, tensor: Tensor, source: str) -> str:
        """`source` as float32: half and double tensors are rounded in float32, as QuantParams does."""
        if tensor.dtype == _FLOAT or not isinstance(tensor.dtype, int):
            return source
        result = self.names.fresh(f"{tensor.name}_QuantizeLinear_Float")
        self.nodes.append(onnx.helper.make_node("Cast", [source], [result], self.names.fresh(result), to=_FLOAT))
        return result

    def _add(self, op: str, name: str, inputs: Sequence[str], output: str, params: QuantParams) -> None:
        domain = self.wide_domain if params.container.itemsize == 2 else ""
        node = onnx.helper.make_node(op, inputs, [output], self.names.fresh(name), domain=domain)
        if params.axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", params.axis))
        self.nodes.append(node)

    def _grid(self, tensor: str, params: QuantParams) -> tuple[str, str]:
        """Constants for scale and zero point, one pair for all tensors of equal grids."""
        key = params.with_range(*dtype_range(params.dtype)).with_axis(0)
        if key not in self.grids:
            one = not params.is_per_channel
            scale = np.asarray(params.scale, np.float32)
            zero = np.asarray(params.zero_point, params.container)
            wide = params.container.itemsize > 2  # takes no zero point
            self.grids[key] = (
                self.store(self.names.fresh(f"{tensor}_scale"), scale.reshape(()) if one else scale),
                "" if wide else self.store(self.names.fresh(f"{tensor}_zero_point"), zero.reshape(()) if one else zero),
            )
        return self.grids[key]

    def _bound(self, dtype: np.dtype[Any], value: int) -> str:
        key = (dtype.name, value)
        if key not in self.bounds:
            name = self.names.fresh(f"{key[0]}_{'minus_' if value < 0 else ''}{abs(value)}")
            self.bounds[key] = self.store(name, np.asarray(value, dtype))
        return self.bounds[key]

    # -- biases ---------------------------------------------------------------------------------------------------
    def _integer_bias(self, node: Node) -> str | None:
        """The name of the node's bias as int32 behind a DequantizeLinear, None where it stays as it is."""
        if self.bias != "int32" or node.op not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 3:
            return None
        x, weight, bias = node.inputs[:3]
        value = value_of(bias)
        grid = accumulator_grid(self.graph, node)
        if value is None or bias.name in self.graph.params or grid is None or value.ndim != 1:
            return None
        if len(grid) > 1 and value.size not in (1, len(grid)):
            return None
        scales = np.asarray(grid, np.float32)
        step = result_step(self.graph, node.outputs[0])
        integers = np.rint(value.astype(np.float64) / scales)
        if step is None or np.abs(integers).max(initial=0) > 2**31 - 1:
            return None
        error = float(np.abs(integers * scales - value).max(initial=0)) / step
        if error > self.max_bias_error:
            self.notes.append(f"{node.op} {node.name}: the bias stays float, int32 would move it by {error:.3g} LSB")
            return None
        shared = len(self.graph.consumers(bias)) > 1
        name = f"{bias.name}_{x.name}_{weight.name}" if shared else bias.name
        params = (
            QuantParams.per_tensor(grid[0], 0, "int32")
            if len(grid) == 1
            else QuantParams.per_channel(grid, 0, np.zeros(len(grid), np.int64), "int32")
        )
        stored = self.store(self.names.fresh(f"{name}_quantized"), integers.astype(np.int32))
        result = self.names.fresh(f"{name}_DequantizeLinear_Output")
        scale, _ = self._grid(name, params)
        self._add("DequantizeLinear", f"{name}_DequantizeLinear", [stored, scale], result, params)
        return result


def accumulator_grid(graph: QuantGraph, node: Node) -> tuple[float, ...] | None:
    """What one unit of the accumulator is worth: s_x * s_w per output channel in float32, None where unknown."""
    x, weight = (graph.quant(t) for t in node.inputs[:2])
    if x is None or weight is None or x.is_per_channel or not is_constant(node.inputs[1]):
        return None
    if not (x.is_8bit and weight.is_8bit):
        return None
    if node.op == "Gemm" and (node.attr("alpha", 1.0) != 1.0 or node.attr("beta", 1.0) != 1.0):
        return None
    axis = output_axis(node, rank_of(node.inputs[1]))
    if weight.axis not in (None, axis) or (axis == 1 and weight.is_per_channel and node.attr("group", 1) != 1):
        return None
    grid = np.asarray(weight.scale, np.float32) * np.float32(x.scale[0])
    if not (np.isfinite(grid).all() and (grid >= np.finfo(np.float32).tiny).all()):
        return None
    return tuple(float(s) for s in grid)


def result_step(graph: QuantGraph, tensor: Tensor) -> float | None:
    """One LSB of the grid that `tensor` is rounded onto, at once or after a Relu and the like; None where it is not."""
    for _ in range(8):
        params = graph.quant(tensor)
        if params is not None:
            return min(params.scale)
        reader = graph.only_consumer(tensor)
        if reader is None or (reader.op not in _KEEP_SCALE and reader.op != REQUANTIZE):
            return None
        tensor = reader.outputs[0]
    return None


# -- opset 21 -----------------------------------------------------------------------------------------------------

# Operators whose meaning or form changes between opset 13 and 21 in a way that is not handled below: so may those in
# bodies.
_FROZEN: Final = {"GroupNormalization": 21, "DFT": 20, "If": 21, "Loop": 21, "Scan": 21}
_REDUCTIONS: Final = frozenset(
    {
        "ReduceMax",
        "ReduceMin",
        "ReduceMean",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    }
)


def can_raise(graph: QuantGraph, opset: int) -> bool:
    """Whether the graph's operators can be written in a later `opset` (up to 21) with the same meaning."""
    return all(node.domain or graph.opset >= _FROZEN.get(node.op, 0) for node in graph.nodes) and opset <= _WIDE_OPSET


def _raised(node: onnx.NodeProto, writer: _Writer) -> onnx.NodeProto:
    """The node as the written opset has it: what was an attribute in the graph's opset may be an input there."""
    old, new = writer.graph.opset, writer.opset
    if old == new or node.domain:
        return node
    attributes = {a.name: a for a in node.attribute}
    if node.op_type in _REDUCTIONS and old < 18 <= new and "axes" in attributes:
        axes = np.asarray(attributes["axes"].ints, np.int64)
        node.attribute.remove(attributes["axes"])
        node.input.append(writer.store(writer.names.fresh(f"{node.output[0]}_axes"), axes))
    elif node.op_type == "Split" and old < 18 <= new and len(node.input) < 2:
        node.attribute.append(onnx.helper.make_attribute("num_outputs", len(node.output)))
    elif node.op_type == "RoiAlign" and old < 16 <= new and "coordinate_transformation_mode" not in attributes:
        node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))
    elif node.op_type == "GridSample" and old < 20 <= new and "mode" in attributes:
        mode = attributes["mode"].s.decode()
        attributes["mode"].s = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode).encode()
    return node
