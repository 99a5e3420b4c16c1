"""Writer: builds the ONNX graph of an IntegerGraph, node by node; names, constants and rounding onto grids live here.

Everything is deterministic and linear: names come from the integer graph, helpers count up; small equal constants are
shared; weights are written as they are, without a copy where nothing about them changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qatc.backends.onnx.saturation import Wide, signed_bytes, wide_form
from qatc.compiler.backend import DATA_FILE, Emission, aligned, bytes_of, must_be_apart
from qatc.compiler.integer import Float, IntegerGraph, Move, Op
from qatc.compiler.model.names import Names
from qatc.compiler.model.protos import MICROSOFT
from qatc.compiler.model.tensors import put_outside
from qatc.compiler.model_io import add_attribute
from qatc.compiler.quant import Array, QuantParams, dtype_name, dtype_range
from qatc.compiler.storage import SPILL_AT

INT64_MAX: Final = 2**63 - 1
_WIDE_OPSET: Final = 21  # QuantizeLinear and DequantizeLinear know 16 bits from here on
_SHARED: Final = 1024  # constants of up to so many bytes are compared and shared
_KEPT_INSIDE: Final = 1 << 27  # more bytes of weights than this are never copied into the ModelProto
_LARGE: Final = 1 << 12  # constants below this many bytes stay inside in any case
_DEEP: Final = 2048  # nodes up to which there are two forms: loading an If takes quadratic time
_OLDEST_IR: Final = 8
_BYTES: Final = frozenset({"uint8", "int8"})


@dataclass(frozen=True)
class Ending:
    """From what a `kernel` writes, bytes of the type `have`, to the tensor `out`, of type `want` and within bounds."""

    kernel: str
    made: str  # moved to `want`, not yet bounded
    have: str
    want: str
    bounds: tuple[int, int]
    out: str


class Writer:
    """The model under construction.

    `standard` keeps to ai.onnx operators, `float_sums` lets some accumulators be floats and `float_tables` some tables;
    `weights` is the type of weights whose products saturate on some processors (see `saturation`): int8, uint8, or auto
    for both.
    """

    def __init__(
        self,
        graph: IntegerGraph,
        *,
        standard: bool = False,
        float_sums: bool = False,
        float_tables: bool = False,
        data_file: bool = False,
        weights: str = "auto",
    ) -> None:
        self.graph = graph
        self.standard = standard
        self.float_sums, self.float_tables = float_sums, float_tables
        self.opset = graph.opset
        self._data_file = data_file
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: list[tuple[str, Array]] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scalars: dict[tuple[float | np.generic, str], str] = {}
        self._tensor_names = Names([*graph.tensors, *graph.constants, *graph.inputs])
        self._node_names = Names(counts=self._tensor_names.counts)
        self._written: set[str] = set()
        self._derived: dict[str, str] = {}  # constant of the integer graph -> what the model has in its place
        self._reals: dict[str, str] = {}
        self._dequantized: dict[str, str] = {}  # what DequantizeLinear makes -> the element type of its integers
        self.label = ""
        self.consumers = graph.consumers()
        self.producers = graph.producers()
        self.outputs = frozenset(graph.outputs)
        self.pooled: set[str] = set()  # results of global pooling
        self.rounded: dict[str, bool] = {}  # float tensors, and whether they end on a grid (see `islands`)
        self.absorbed: set[str] = set()  # tensors of the integer graph that fused operators leave out

    # -- names ----------------------------------------------------------------------------------------------------
    def begin(self, op: Op) -> None:
        """Nodes that follow belong to `op`: their names say so."""
        self.label = op.name

    def fresh(self, hint: str) -> str:
        """A tensor name that nothing has yet, `hint` itself where it is free."""
        return self._tensor_names.fresh(hint)

    def node_name(self, hint: str) -> str:
        """A node name that nothing has yet, `hint` itself where it is free."""
        return self._node_names.fresh(hint)

    # -- nodes ----------------------------------------------------------------------------------------------------
    def node(
        self, op_type: str, inputs: Iterable[str], out: str = "", *, domain: str = "", hint: str = "", **attrs: Any
    ) -> str:
        """Append a node with one output and return the output's name: `out`, or a new one made from `hint`."""
        out = out or self.fresh(f"{hint or self.label}_{op_type}")
        self.nodes(op_type, inputs, (out,), domain=domain, attrs=attrs)
        return out

    def nodes(
        self,
        op_type: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        *,
        domain: str = "",
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a node with any number of outputs."""
        hint = self.label if self.label not in self._node_names else f"{self.label}_{op_type}"
        name = self.node_name(hint)
        proto = NodeProto(op_type=op_type, name=name, domain=domain, input=list(inputs), output=list(outputs))
        for key, value in sorted((attrs or {}).items()):
            if value is not None and not key.startswith("_"):
                add_attribute(proto, key, value)
        self._nodes.append(proto)

    def proto(self, proto: NodeProto) -> None:
        """Append a node that exists already; its name is made unique."""
        proto.name = self.node_name(self.label)
        self._nodes.append(proto)

    # -- constants ------------------------------------------------------------------------------------------------
    def read(self, name: str) -> str:
        """The name under which nodes read a tensor of the integer graph; a constant is written on its first use."""
        if name in self.graph.constants and name not in self._written:
            self._written.add(name)
            self._constants.append((name, self.graph.constants[name]))
        return name

    def array(self, value: Array, hint: str, source: str = "") -> str:
        """A constant with this value; small equal ones are one.

        `source` is the constant of the integer graph that it is (then it keeps its name) or that it was made from.
        """
        if source and self.graph.constants[source] is value:
            return self.read(source)
        name = self._array(value, hint)
        if source:
            self._derived.setdefault(source, name)
        return name

    def _array(self, value: Array, hint: str) -> str:
        if value.nbytes <= _SHARED:
            key = (value.dtype.char, value.shape, value.tobytes())
            if key in self._shared:
                return self._shared[key]
            name = self._shared[key] = self.fresh(hint)
        else:
            name = self.fresh(hint)
        self._constants.append((name, value))
        return name

    def scalar(self, value: float | np.generic, dtype: str) -> str:
        """A scalar constant of a numpy dtype, named after its value."""
        key = (value, dtype)
        if key not in self._scalars:
            number = np.asarray(value, dtype)
            self._scalars[key] = self.array(number, f"{dtype}_{number.item():.9g}".replace("-", "minus_"))
        return self._scalars[key]

    def ints(self, values: Sequence[int]) -> str:
        """An int64 vector: a shape, axes, indices."""
        text = "_".join(str(v) for v in values[:8]).replace("-", "minus_")
        return self.array(np.asarray(values, np.int64), f"ints_{text}")

    def scale(self, params: QuantParams) -> str:
        """The scale of a grid as a constant: a scalar, or a vector per channel."""
        if params.is_per_channel:
            return self.array(np.asarray(params.scale, np.float32), f"{self.label}_scale")
        return self.scalar(params.scale[0], "float32")

    def zero(self, params: QuantParams) -> str:
        """The zero point of a grid as a constant, like `scale`; "" for int32, which ONNX wants without."""
        if params.dtype == "int32":
            return ""
        if params.is_per_channel:
            return self.array(np.asarray(params.zero_point, params.container), f"{self.label}_zero_point")
        return self.scalar(params.zero_point[0], stored(params))

    def on(self, x: str, params: QuantParams) -> tuple[str, str, str]:
        """A tensor with its scale and zero point, as kernels of bytes read them."""
        return x, self.scale(params), self.zero(params)

    def holds_within(self, name: str, lo: int, hi: int) -> bool:
        """Whether no integer of the tensor lies outside [lo, hi]; whoever feeds an input may feed any."""
        params = self.graph.params(name)
        low, high = dtype_range(stored(params)) if name in self.graph.inputs else (params.qmin, params.qmax)
        return lo <= low and high <= hi

    # -- rounding -------------------------------------------------------------------------------------------------
    def target(self, op_lo: int, op_hi: int, dtype: str, out: str) -> str:
        """Where an operator that saturates to `dtype` writes: `out`, or a tensor that `clip` will bound."""
        return out if (op_lo, op_hi) == dtype_range(dtype) else self.fresh(f"{out}_unclamped")

    def ending(self, have: str, want: str, lo: int, hi: int, out: str) -> Ending:
        """Where a kernel that saturates to the byte type `have` writes what becomes `out`; `end` writes the rest."""
        made = self.target(lo, hi, want, out)
        return Ending(made if have == want else self.fresh(f"{out}_{have}"), made, have, want, (lo, hi), out)

    def end(self, ending: Ending) -> None:
        """Move a kernel's bytes to the type that is wanted, and bound them."""
        if ending.have != ending.want:
            self.shift(ending.kernel, ending.have, ending.want, ending.made)
        self.clip(ending.made, *ending.bounds, ending.want, ending.out)

    def clip(self, x: str, lo: int, hi: int, dtype: str, out: str) -> str:
        """Bound the integers `x` to [lo, hi]; nothing where `x` is `out` itself (see `target`)."""
        if x == out:
            return out
        low, high = dtype_range(dtype)
        bounds = [x, "" if lo == low else self.scalar(lo, dtype), "" if hi == high else self.scalar(hi, dtype)]
        while not bounds[-1]:
            bounds.pop()
        if len(bounds) == 1:
            return self.node("Identity", bounds, out)
        if dtype in _BYTES:
            return self.node("Clip", bounds, out)
        wide = self.node("Cast", [x], to=TensorProto.INT32)  # there is no kernel for 16 bits
        wide = self.node("Clip", (wide, self.scalar(lo, "int32"), self.scalar(hi, "int32")))
        return self.node("Cast", [wide], out, to=tensor_type(np.dtype(dtype)))

    def quantize(self, x: str, params: QuantParams, out: str = "", lo: int | None = None, hi: int | None = None) -> str:
        """float32 `x` to integers of the grid's container, within [lo, hi]: QuantizeLinear and its clamp."""
        dtype = stored(params)
        lowest, highest = dtype_range(dtype)
        lo, hi = lowest if lo is None else lo, highest if hi is None else hi
        if self._is_wide(params) or (params.container.itemsize == 2 and (lo, hi) != (lowest, highest)):
            return self._quantize_wide(x, params, lo, hi, out)
        out = out or self.fresh(f"{x}_quantized")
        made = out if (lo, hi) == (lowest, highest) else self.fresh(f"{out}_unclamped")
        if self._dequantized.get(x) == dtype:  # ONNX Runtime would make one pair of Q/DQ of two, on a third grid
            x = self.node("Sum", [x])
        self.node("QuantizeLinear", self._grid(x, params), made, axis=params.axis)
        return self.clip(made, lo, hi, dtype, out)

    def _quantize_wide(self, x: str, params: QuantParams, lo: int, hi: int, out: str) -> str:
        """QuantizeLinear to 16 bits, spelled out: the zero point after the rounding, the clamp in float (exact)."""
        if params.is_per_channel:
            made = self.node("QuantizeLinear", self._grid(x, params), domain=self._wide_domain(), axis=params.axis)
            return self.clip(made, lo, hi, stored(params), out or self.fresh(f"{x}_quantized"))
        zero = int(params.zero_point[0])
        rounded = self.node("Round", [self.node("Div", (x, self.scale(params)))])
        low, high = self.scalar(lo - zero, "float32"), self.scalar(hi - zero, "float32")
        moved = self.node("Add", (self.node("Clip", (rounded, low, high)), self.scalar(zero, "float32")))
        return self.node("Cast", [moved], out, to=tensor_type(params.container))

    def dequantize(self, q: str, params: QuantParams, out: str = "", *, plain: bool = False) -> str:
        """The real numbers (float32) of integers on a grid; `plain`: without DequantizeLinear (see `islands`)."""
        out = out or self.fresh(f"{q}_real")
        if self._is_wide(params) and params.is_per_channel:
            return self.node(
                "DequantizeLinear", self._grid(q, params), out, domain=self._wide_domain(), axis=params.axis
            )
        if self._is_wide(params) or (plain and not params.is_per_channel and params.container.itemsize < 4):
            zero = self.scalar(params.zero_point[0], "float32")
            centered = self.node("Sub", (self.node("Cast", [q], to=TensorProto.FLOAT), zero))
            return self.node("Mul", (centered, self.scale(params)), out)
        if params.container.itemsize == 4 and not params.is_per_channel:
            return self.real_sums(q, self.scale(params), out)
        self._dequantized[out] = stored(params)
        return self.node("DequantizeLinear", self._grid(q, params), out, axis=params.axis)

    def real_sums(self, sums: str, scale: str, out: str = "") -> str:
        """int32 sums times a constant, which is what DequantizeLinear computes.

        ONNX Runtime (1.32, basic optimizations) puts a QuantizeLinear to uint8 behind a DequantizeLinear of int32
        without zero point that a Transpose, Reshape or Slice reads, and so destroys the sums. Up to 1.27 it does so
        with scales per channel as well, where a Transpose reads it, and then refuses the model that it made.
        """
        return self.node("Mul", (self.node("Cast", [sums], to=TensorProto.FLOAT), scale), out)

    def is_transposed(self, name: str) -> bool:
        """Whether a Transpose reads a tensor of the integer graph."""
        return any(isinstance(r, (Float, Move)) and r.op_type == "Transpose" for r in self.consumers.get(name, ()))

    def _grid(self, x: str, params: QuantParams) -> list[str]:
        """The operands of QuantizeLinear and DequantizeLinear."""
        zero = self.zero(params)
        return [x, self.scale(params), zero] if zero else [x, self.scale(params)]

    def real(self, name: str) -> str:
        """The real numbers of a quantized tensor of the integer graph, made once however many read them."""
        if name not in self._reals:
            self._reals[name] = self.dequantize(self.read(name), self.graph.params(name))
        return self._reals[name]

    def _wide_domain(self) -> str:
        return MICROSOFT if self.opset < _WIDE_OPSET else ""

    def _is_wide(self, params: QuantParams) -> bool:
        return params.container.itemsize == 2 and self.opset < _WIDE_OPSET

    def as_dtype(self, name: str, dtype: str) -> tuple[str, QuantParams]:
        """An 8-bit tensor in uint8 or int8: (name, its grid there). The same real numbers, exactly."""
        params = self.graph.params(name)
        have = stored(params)
        if have == dtype:
            return self.read(name), params
        byte, moved = in_bytes(params, have), in_bytes(params, dtype)
        constant = self.graph.constants.get(name)
        if constant is not None:
            return self.array(byte.moved(constant, dtype), f"{name}_{dtype}"), moved
        return self.shift(self.read(name), have, dtype), moved

    def shift(self, x: str, have: str, want: str, out: str = "") -> str:
        """Integers of one 8-bit type moved to the other: +128 or -128, exact on unit scale."""
        unit = self.scalar(1.0, "float32")
        zeros = {"uint8": self.scalar(128, "uint8"), "int8": self.scalar(0, "int8")}
        real = self.node("DequantizeLinear", (x, unit, zeros[have]))
        return self.node("QuantizeLinear", (real, unit, zeros[want]), out)

    # -- shapes ---------------------------------------------------------------------------------------------------
    def rank(self, name: str) -> int | None:
        """The rank of a tensor, None where it is unknown."""
        constant = self.graph.constants.get(name)
        if constant is not None:
            return constant.ndim
        shape = self.graph.tensors[name].shape
        return None if shape is None else len(shape)

    def reshape_like(self, x: str, like: str, out: str) -> str:
        """Give `x` the shape of a tensor of the integer graph, whatever is known of it."""
        shape = self.graph.tensors[like].shape
        unknown = -1 if shape is None else sum(not isinstance(d, int) for d in shape)
        if shape is not None and 0 <= unknown <= 1:
            return self.node("Reshape", (x, self.ints([d if isinstance(d, int) else -1 for d in shape])), out)
        return self.node("Reshape", (x, self.node("Shape", [like])), out)

    # -- the model ------------------------------------------------------------------------------------------------
    def finish(self) -> Emission:
        """The model of everything that was written."""
        graph = self.graph
        for name in graph.outputs:
            self.read(name)  # a constant may be a result
        kept = (n for n in graph.tensors if n in self._written or (n not in graph.constants and n not in self.absorbed))
        names = {name: name for name in kept} | {n: d for n, d in self._derived.items() if n not in self._written}
        wide = self._wide_form(names)
        size = sum(value.nbytes for _, value in self._constants)
        apart = self._data_file or must_be_apart(size)
        model = self._model()
        model.graph.name = graph.name or "graph"
        model.graph.node.extend(self._nodes)
        model.graph.input.extend(self._port(n) for n in graph.inputs)
        model.graph.output.extend(self._port(n) for n in graph.outputs)
        external = self._initialize(model.graph, apart=apart or size > _KEPT_INSIDE)
        return Emission(model, names, tuple(external), apart, None if wide is None else wide.body())

    def _wide_form(self, names: dict[str, str]) -> Wide | None:
        """The exact form of products that may saturate, for the model to hold beside the fast one, if there are any.

        Where it is to be the only one, it becomes the model's own, and `names` those of its tensors.
        """
        if self._weights == "int8":
            return None
        constants = dict(self._constants)
        alone = self._weights == "uint8" or len(self._nodes) > _DEEP or signed_bytes(constants) > SPILL_AT
        wide = wide_form(self, self._nodes, constants, stored=alone)
        if wide is None or not alone:
            return wide
        self._nodes = wide.nodes
        read = {name for node in self._nodes for name in node.input} | self.outputs
        self._constants = [(name, value) for name, value in self._constants if name in read]
        names.update({name: wide.unsigned.get(place, place) for name, place in names.items()})
        return None

    def _initialize(self, graph: GraphProto, *, apart: bool) -> list[tuple[str, Array]]:
        """Write the constants as initializers; the data of those that are only declared if `apart`."""
        external: list[tuple[str, Array]] = []
        position = 0
        for name, value in self._constants:
            tensor = graph.initializer.add(name=name, data_type=tensor_type(value.dtype), dims=value.shape)
            if value.nbytes < _LARGE or not apart:
                tensor.raw_data = bytes(bytes_of(value))
            else:
                start = aligned(position)
                position = start + value.nbytes
                external.append((name, value))
                put_outside(tensor, DATA_FILE, start, value.nbytes)
        return external

    def _model(self) -> ModelProto:
        """The model without its graph."""
        used = {node.domain for node in self._nodes}
        imports = [onnx.helper.make_opsetid("", self.opset)]
        domains = {MICROSOFT: 1, **self.graph.domains}
        imports += [onnx.helper.make_opsetid(d, v) for d, v in sorted(domains.items()) if d in used]
        ir_version = max(_OLDEST_IR, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))
        return ModelProto(ir_version=ir_version, producer_name="qatc", opset_import=imports)

    def _port(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors[name]
        kind = TensorProto.STRING if tensor.dtype == "object" else tensor_type(np.dtype(tensor.dtype))
        shape = None if tensor.shape is None else list(tensor.shape)
        return onnx.helper.make_tensor_value_info(name, kind, shape)


def stored(params: QuantParams) -> str:
    """The numpy name of the type that holds a grid's integers."""
    return dtype_name(params.container)


def in_bytes(params: QuantParams, dtype: str) -> QuantParams:
    """A grid over the whole range of an 8-bit type: the same real numbers where it is that of its integers."""
    return QuantParams.per_tensor(params.scale[0], params.zero_point[0], stored(params)).as_dtype(dtype)


def tensor_type(dtype: np.dtype[Any]) -> int:
    """The TensorProto type of a numpy dtype."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
