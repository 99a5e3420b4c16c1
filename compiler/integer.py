"""IntegerGraph: the few fused integer operators that every integer target shares, and explicit islands of float.

A graph is a list of operators in execution order over named tensors. Each quantized tensor has QuantParams; each
computing operator states the clamp [lo, hi] of its output integers. Constants (weights, biases, tables) are arrays by
tensor name. The meaning of every operator is written in its docstring, in exact real arithmetic; *how* the final
`round` is computed is the arithmetic profile's business (`compiler/arithmetic/`), and `compiler/reference/`
executes it.

In the formulas `q` are integers, `r = scale * (q - zero_point)` is what they stand for, `clamp` is to [lo, hi].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from qatc.compiler.model.views import View
from qatc.compiler.quant import Array, QuantParams, dtype_name, text_of

Shape = tuple[int | str | None, ...]
CHOOSERS = frozenset({"Where", "Max", "Min"})  # Move: each element is one of those in its place in the operands
_FARTHEST = 1 << 62  # positions that int64 holds
_NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0, "groups": 1}


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor.

    `dtype` is the numpy name of the stored elements ("uint8", "int32", "float32", "int64", ...); `params` is None for
    everything that is not quantized (float islands, shapes, indices); `shape` is None where the rank is unknown, and
    symbolic dimensions are strings (None where nameless). `source` names the tensor of the input file that holds the
    same real values *after* rounding onto this grid (a DequantizeLinear output, say), or None where there is none.
    `sample_shape` is the shape for one sample (symbolic dimensions pinned, or 1), where inference can tell.
    """

    name: str
    dtype: str
    shape: Shape | None = None
    params: QuantParams | None = None
    source: str | None = None
    sample_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Op:
    """Base of all operators. `source` names the input file's node that it came from; "" is an absent optional input."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str = field(default="", kw_only=True)

    @property
    def kind(self) -> str:
        """The operator's name in integer.json: `Conv`, `Lookup`, ..."""
        return type(self).__name__

    @property
    def title(self) -> str:
        """The operator's name as people read it, in the words of ONNX where it has some: `Add`, `MaxPool`."""
        return self.kind

    @property
    def output(self) -> str:
        """The first output that has a name: a GRU may leave out all but its last state."""
        outputs = self.outputs
        return outputs[0] if outputs and outputs[0] else next(filter(None, outputs), "")


@dataclass(frozen=True)
class Clamped(Op):
    """An operator that rounds onto its output's grid and clamps to [lo, hi] (within the output's qmin, qmax)."""

    lo: int = field(kw_only=True)
    hi: int = field(kw_only=True)


@dataclass(frozen=True)
class Quantize(Clamped):
    """float32 x -> q = clamp(round(x / scale) + zero_point), exactly ONNX QuantizeLinear. inputs: (x,)."""


@dataclass(frozen=True)
class Dequantize(Op):
    """q (8, 16 or 32 bit) -> float32 scale * (q - zero_point) [+ bias]. inputs: (q,) or (q, bias).

    `bias` is a float32 constant of one element, or of one per channel: along the axis of the input's params, or along
    the last one where these have none. It is added in float.
    """


@dataclass(frozen=True)
class Conv(Clamped):
    """acc[n,c,...] = sum (q_x - z_x) * (q_w - z_w[c]) + bias[c]; out = clamp(round(acc * acc_scale[c] / s_y) + z_y).

    inputs: (x, weight) or (x, weight, bias). N-D convolution (1-D to 3-D), layout [N, C, spatial...]; weight is
    [M, C/groups, kernel...], or for `transposed` [C, M/groups, kernel...] as in ONNX ConvTranspose; bias int32 [M].
    The weight may be an activation, per tensor.
    Padding contributes real zeros (q_x = z_x). `acc_scale` has M entries: the real value of one unit of acc (normally
    s_x * s_w[c]; an affine folded into the operator may change it, sign included never: it is positive). x has a scale
    per channel (and one zero point) in depthwise convolutions alone, where it is a factor of acc_scale like any other.
    When the output tensor's dtype is int32 the raw accumulator is the result: out = acc, no bias input, lo/hi are the
    int32 range, and the output's params are (acc_scale, 0) along axis 1.
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    acc_scale: tuple[float, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class MatMul(Clamped):
    """acc = matmul(q_a - z_a, q_b - z_b) + bias, numpy.matmul broadcasting; out as for Conv.

    inputs: (a, b) or (a, b, bias). `b` may be a constant weight [K, N] (per channel along its last axis) or an
    activation. bias int32 [N] (constant). `acc_scale` has 1 or N entries (along the output's last axis).
    Raw int32 output as for Conv, with the params' axis the output's last one (per tensor when acc_scale has 1 entry).
    """

    acc_scale: tuple[float, ...]


@dataclass(frozen=True)
class Elementwise(Clamped):
    """out = clamp(round((r_a op r_b) / s_y) + z_y) for op "Add", "Sub" or "Mul", numpy broadcasting. inputs: (a, b).

    An "Add" may have more operands: their sum is rounded once. inputs: (a, b, c, ...).
    """

    op: str

    @property
    def title(self) -> str:
        """`Add`, `Sub` or `Mul`."""
        return self.op


@dataclass(frozen=True)
class Lookup(Clamped):
    """out = table[q_x - lowest(dtype of x)]: any function of one 8-bit tensor, element by element. inputs: (x, table).

    `table` is a constant of 256 integers of the output's dtype. `function` says what it computes, for people
    ("Sigmoid * x"). lo/hi are the table's own extremes.
    """

    function: str


@dataclass(frozen=True)
class Rescale(Clamped):
    """out = clamp(round(r_x / s_y) + z_y); on equal grids a pure clamp (or a shift of the zero point). inputs: (x,)."""


@dataclass(frozen=True)
class Pool(Clamped):
    """Pooling over the spatial dimensions of [N, C, spatial...]. inputs: (x,).

    mode "max": the largest q of the window (the input's params; padding never wins). mode "average": the mean of r over
    the window (out = clamp(round(mean / s_y) + z_y)); the divisor is the count of real elements, or the whole kernel
    with `count_include_pad` as ONNX AveragePool defines. `kernel` () means global: all spatial positions; the output
    keeps the spatial dimensions as ones unless `keepdims` is False (then they are dropped). Strides and
    dilations of a kernel that comes without are ones, its pads zeros.
    """

    mode: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    ceil_mode: bool = False
    count_include_pad: bool = False
    keepdims: bool = True

    def __post_init__(self) -> None:
        ones = (1,) * len(self.kernel)
        for name, default in (("strides", ones), ("dilations", ones), ("pads", (0,) * 2 * len(ones))):
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def title(self) -> str:
        """`MaxPool`, `GlobalAveragePool`, ..."""
        where = "" if self.kernel else "Global"
        return f"{where}MaxPool" if self.mode == "max" else f"{where}AveragePool"

    def over(self, spatial: tuple[int, ...]) -> Pool:
        """The same with its kernel spelled out, where that is all of `spatial`."""
        return self if self.kernel else replace(self, kernel=spatial)


@dataclass(frozen=True)
class Resize(Clamped):
    """Linear interpolation along `axes`: element `i` of the result lies at `(slope * i + offset) / denominator` in x.

    inputs: (x,). Positions are held within the input, [0, n - 1]. Between two integers, at `low + f / denominator`, the
    value is `((denominator - f) * r[low] + f * r[low + 1]) / denominator`; along several axes one after the other. So
    acc is a sum of q_x - z_x with integer weights, within int32, and out = clamp(round(acc * s_x / (product of the
    denominators) / s_y) + z_y). One number per axis each; `sizes` are the result's.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    slopes: tuple[int, ...]
    offsets: tuple[int, ...]
    denominators: tuple[int, ...]

    @property
    def divisor(self) -> int:
        """What the weights of one element add up to."""
        return math.prod(self.denominators)


@dataclass(frozen=True)
class Softmax(Clamped):
    """out = clamp(round(exp(r_x) / sum(exp(r_x)) / s_y) + z_y), the sum along `axis`. inputs: (x,), 8 bits, one scale.

    Differences of integers are all that counts: exp(r_x - max r_x) is a table over max q_x - q_x, 0 to 255.
    """

    axis: int


@dataclass(frozen=True)
class LayerNorm(Clamped):
    """out = clamp(round((gamma * (r_x - mean) / sqrt(variance + epsilon) + beta) / s_y) + z_y).

    inputs: (x, gamma) or (x, gamma, beta); x has 8 bits and one scale. Mean and (biased) variance are those over the
    last axes of x, as many as `gamma` has. `gamma` and `beta` are float32 constants of these axes' shape: real factors,
    like `acc_scale`. With N elements, D = N * q_x - sum(q_x) and W = N * sum(q_x^2) - sum(q_x)^2 are integers, and the
    normalized value is D / sqrt(W + N^2 * epsilon / s_x^2): the zero point is nowhere in it.

    `uncentered` leaves the mean out (RMS normalization): r_x / sqrt(mean(r_x^2) + epsilon) takes the place of the
    normalized value, with D = N * (q_x - z_x) and W = N * sum((q_x - z_x)^2).
    """

    epsilon: float
    uncentered: bool = False


@dataclass(frozen=True)
class Concat(Clamped):
    """Concatenation along `axis`; every input is rescaled from its own grid to the output's. inputs: (x0, x1, ...)."""

    axis: int


@dataclass(frozen=True)
class Move(Op):
    """An ONNX operator that only moves elements (Reshape, Transpose, Slice, Gather, Pad, Resize nearest, Split, ...).

    Max and Min of tensors are among them, like Where: of the elements in a place they take one.

    Executed on the stored integers as they are; quantized inputs and outputs share their grid. Further inputs (shapes,
    indices, pad values as integers) are as the ONNX operator `op_type` of opset `IntegerGraph.opset` has them.
    """

    op_type: str
    attrs: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The ONNX operator."""
        return self.op_type


@dataclass(frozen=True)
class Float(Op):
    """One ONNX operator left as it is: a float island with the `reason` why, or shape arithmetic (`reason` "").

    `tensor` names the tensor of the source that the reason speaks of, "" where it speaks of none.
    """

    op_type: str
    attrs: Mapping[str, Any]
    reason: str
    domain: str = ""
    tensor: str = ""

    @property
    def title(self) -> str:
        """The ONNX operator."""
        return self.op_type


@dataclass(frozen=True)
class Sign:
    """What a Conv or MatMul means that takes the sign of its sums: for each, which of three numbers.

    `codes` are its results for a sum below zero, of zero and above. `bias` belongs to the sums: as it was before it was
    made an integer that decides alike (float64, in units of the accumulator, one number or one per channel).
    """

    bias: Array
    codes: tuple[int, int, int]


@dataclass(frozen=True)
class Cut:
    """What a Conv or MatMul means that rounds down or up: the numbers that are rounded to the nearest in its place.

    `bias` is half a step less than the real one (up: more), `unit` what one of the accumulator's units is worth, both
    float64, one number or one per channel. Multiples of a step come to lie half way between two integers.
    """

    bias: Array
    unit: Array
    down: bool


@dataclass
class IntegerGraph:
    """Operators in execution order, the tensors they connect and the constants they read.

    `inputs`/`outputs` are tensor names (the deployed graph's interface, in order). `tensors` describes every tensor
    but the constants' values, `constants` holds arrays (weights as integers with their params in `tensors`; tables,
    int32 biases, float constants of islands). `opset` is the ai.onnx opset that Move and Float operators are written
    in.
    """

    name: str
    inputs: list[str]
    outputs: list[str]
    ops: list[Op]
    tensors: dict[str, Tensor]
    constants: dict[str, Array]
    opset: int
    domains: dict[str, int] = field(default_factory=dict[str, int])  # custom domains of Float islands
    # Output of a Conv or MatMul -> its bias before it was rounded to int32 (float64, in units of the accumulator), so
    # that what the rounding costs can be told apart from an error.
    real_biases: dict[str, Array] = field(default_factory=dict[str, Array])
    # Output of a Conv or MatMul that takes signs -> what it means; its acc_scale then only says how it saturates.
    signs: dict[str, Sign] = field(default_factory=dict[str, Sign])
    # Output of a Conv or MatMul that rounds down or up -> what it means; its acc_scale and bias decide alike.
    cuts: dict[str, Cut] = field(default_factory=dict[str, Cut])
    # Output of a Lookup that is its input times a function of it which is rounded first (x * Sigmoid(x) with a grid
    # between) -> that grid. The table holds the whole; two kernels may be faster than it.
    factors: dict[str, QuantParams] = field(default_factory=dict[str, QuantParams])
    # Output of a Lookup with roundings on the way -> its table where their ties (float32's error away) fall otherwise.
    doubts: dict[str, Array] = field(default_factory=dict[str, Array])
    # Quantized tensor -> a tensor of the source file, and by how much its values are larger (QuantGraph.shifted).
    shifted: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    # Quantized tensor -> a tensor of the source file, and the view of it that has its values (QuantGraph.turned).
    turned: dict[str, tuple[str, View]] = field(default_factory=dict[str, tuple[str, View]])
    # Quantized tensor that is stored from 0 on -> by how much its integers are smaller than the bytes of the file.
    lowered: dict[str, int] = field(default_factory=dict[str, int])

    def made(self) -> list[str]:
        """The graph's inputs and what its operators make, in execution order."""
        return [*self.inputs, *(o for op in self.ops for o in op.outputs if o)]

    def producers(self) -> dict[str, Op]:
        """Tensor name -> the operator that makes it."""
        return {o: op for op in self.ops for o in op.outputs if o}

    def consumers(self) -> dict[str, list[Op]]:
        """Tensor name -> the operators that read it, in execution order (graph outputs are not operators)."""
        readers: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                if name:
                    readers.setdefault(name, []).append(op)
        return readers

    def islands(self) -> Iterator[Float]:
        """The operators that stay in float, each with its reason."""
        return (op for op in self.ops if isinstance(op, Float) and op.reason)

    def params(self, tensor: str) -> QuantParams:
        """The QuantParams of a quantized tensor; KeyError names one that has none."""
        found = self.tensors[tensor].params
        if found is None:
            raise KeyError(f"tensor {tensor} is not quantized")
        return found

    def verify(self) -> None:
        """Check the structural invariants; ValueError names the first breach (a bug of ours, never of the input)."""
        ready = set(self.inputs) | set(self.constants)
        for op in self.ops:
            for name in op.inputs:
                if name and name not in ready:
                    raise ValueError(f"{op.kind} {op.name} reads {name} before it is made")
            for name in op.outputs:
                if name in ready:
                    raise ValueError(f"{op.kind} {op.name} makes {name} a second time")
                if name and name not in self.tensors:
                    raise ValueError(f"{op.kind} {op.name} makes {name}, which is not described")
            ready.update(o for o in op.outputs if o)
            if isinstance(op, Clamped):
                self._verify_clamp(op)
            if isinstance(op, LayerNorm):
                self._verify_layer_norm(op)
            if isinstance(op, Resize):
                self._verify_resize(op)
        for name in self.outputs:
            if name not in ready:
                raise ValueError(f"graph output {name} is never made")
        for name, value in self.constants.items():
            if name in self.tensors and self.tensors[name].dtype != dtype_name(value.dtype):
                raise ValueError(f"constant {name} holds {value.dtype.name}, described as {self.tensors[name].dtype}")

    def _verify_clamp(self, op: Clamped) -> None:
        params = self.params(op.output)
        if not params.qmin <= op.lo <= op.hi <= params.qmax:
            raise ValueError(f"{op.kind} {op.name} clamps to [{op.lo}, {op.hi}], outside {params}")
        if isinstance(op, Lookup) and self.constants[op.inputs[1]].shape != (256,):
            raise ValueError(f"Lookup {op.name} needs a table of 256 entries")

    def _verify_layer_norm(self, op: LayerNorm) -> None:
        constants = [self.constants.get(name) for name in op.inputs[1:]]
        if not constants or any(v is None or v.dtype != np.float32 for v in constants) or not op.epsilon > 0:
            raise ValueError(f"LayerNorm {op.name} needs float32 constants and a positive epsilon")

    def _verify_resize(self, op: Resize) -> None:
        if len({len(op.axes), len(op.sizes), len(op.slopes), len(op.offsets), len(op.denominators)}) > 1:
            raise ValueError(f"Resize {op.name} does not say the same of each of its axes")
        params = self.params(op.inputs[0])
        if params.is_per_channel or min(op.denominators, default=1) < 1 or len(set(op.axes)) < len(op.axes):
            raise ValueError(f"Resize {op.name} needs one grid, positive denominators and each axis once")
        ends = (size * abs(slope) + abs(at) for size, slope, at in zip(op.sizes, op.slopes, op.offsets, strict=True))
        if not fits_int32(op.divisor, params) or max(ends, default=0) > _FARTHEST:
            raise ValueError(f"Resize {op.name} has weights or positions that are too large")

    def dump(self) -> str:
        """A stable text of the graph: one line an operator, for tests and people."""
        lines = [f"graph {self.name} opset {self.opset}"]
        lines += [f"input {self._describe(name)}" for name in self.inputs]
        read = dict.fromkeys(name for op in self.ops for name in op.inputs)
        lines += [f"constant {self._describe(n)} {text_of(self.constants[n])}" for n in read if n in self.constants]
        for op in self.ops:
            outputs = ", ".join(self._describe(o) if o else "_" for o in op.outputs)
            lines.append(f"{outputs} = {op.kind}{self._details(op)}({', '.join(i or '_' for i in op.inputs)})")
        lines += [f"output {name}" for name in self.outputs]
        return "\n".join(lines) + "\n"

    def _describe(self, name: str) -> str:
        tensor = self.tensors[name]
        shape = "?" if tensor.shape is None else "x".join("?" if d is None else str(d) for d in tensor.shape)
        return f"{name}<{tensor.params if tensor.params else tensor.dtype} {shape}>"

    def _details(self, op: Op) -> str:
        skip = {"name", "inputs", "outputs", "source"}
        parts: list[str] = []
        for key, value in sorted(vars(op).items()):
            if key in skip or _is_neutral(key, value):
                continue
            if isinstance(value, Mapping):
                attrs = cast("Mapping[str, object]", value)
                parts += [f"{k}={_text(v)}" for k, v in sorted(attrs.items()) if not k.startswith("_")]
            elif key == "acc_scale":
                parts.append(f"acc_scale={min(value):.9g}..{max(value):.9g}")
            else:
                parts.append(f"{key}={value}")
        return f"[{' '.join(parts)}]" if parts else ""


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return text_of(cast("Array", value))
    plain = isinstance(value, (int, float, str)) or type(value) in (list, tuple)
    return str(value) if plain else type(value).__name__


def _is_neutral(key: str, value: object) -> bool:
    """Whether a dump may leave a field out: it is empty, or says nothing (strides of 1, pads of 0)."""
    if key in _NEUTRAL:
        return all(
            v == _NEUTRAL[key] for v in (cast("tuple[int, ...]", value) if isinstance(value, tuple) else [value])
        )
    return value is False or value in ((), "")


def fits_int32(divisor: int, params: QuantParams) -> bool:
    """Whether int32 holds sums of q - zero_point, whatever q, with weights that add up to `divisor`."""
    return divisor << 8 * params.container.itemsize <= 1 << 31


def integer_tensor(
    name: str,
    params: QuantParams,
    shape: Shape | None = None,
    source: str | None = None,
    sample_shape: tuple[int, ...] | None = None,
) -> Tensor:
    """A quantized tensor's description."""
    return Tensor(name, dtype_name(params.container), shape, params, source, sample_shape)


def raw_accumulator(acc_scale: tuple[float, ...], axis: int) -> QuantParams:
    """The exact grid of an int32 accumulator: its own scale per channel, zero point 0."""
    if len(acc_scale) == 1:
        return QuantParams.per_tensor(acc_scale[0], 0, "int32")
    return QuantParams.per_channel(acc_scale, axis, np.zeros(len(acc_scale), np.int64), "int32")
