"""Random small QDQ models, as exporters could write them, for property tests of passes and lowering.

Two kinds. "dyadic" models hold powers of two and small integers only, so that every float32 result is exact and two
correct compilers agree bit for bit. "real" models have arbitrary scales: there a result may differ by one LSB where the
exact value lies on a rounding boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")


class Dice(Protocol):
    """Where decisions come from: hypothesis (they shrink) or a plain generator."""

    def choose(self, options: Sequence[T]) -> T: ...

    def integer(self, low: int, high: int) -> int: ...


@dataclass
class Seeded:
    """Dice of a numpy generator, to look at very many models outside hypothesis."""

    rng: np.random.Generator

    def choose(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


@dataclass
class Drawn:
    """Dice of a hypothesis strategy."""

    draw: Callable[[st.SearchStrategy], object]

    def choose(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))  # type: ignore[return-value]

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))  # type: ignore[return-value]


@dataclass(frozen=True)
class Value:
    """A float tensor of the model: its name, shape, largest magnitude (about), and the step of its grid if rounded."""

    name: str
    shape: tuple[int, ...]
    reach: float
    step: float | None = None  # the scale of its grid


@dataclass
class Net:
    """A model under construction."""

    dice: Dice
    rng: np.random.Generator
    dyadic: bool
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    count: int = 0

    # -- building blocks ----------------------------------------------------------------------------------------
    def name(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def chance(self, percent: int) -> bool:
        """A decision; shrinks to False."""
        return self.dice.integer(0, 99) >= 100 - percent

    def constant(self, hint: str, value: np.ndarray) -> str:
        name = self.name(hint)
        self.constants[name] = np.asarray(value)
        return name

    def op(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: object) -> list[str]:
        made = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, self.name(f"node_{op}_"), **attrs))
        return made

    def floats(self, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> np.ndarray:
        """Constants of the model: multiples of 1/8 in dyadic ones."""
        values = self.rng.uniform(low, high, tuple(shape))
        return (np.rint(values * 8) / 8 if self.dyadic else values).astype(np.float32)

    def factors(self, count: int) -> np.ndarray:
        """Channel factors, negative ones and at times a zero among them."""
        if self.dyadic:
            return self.rng.choice([0.5, 1.0, 2.0, -0.5, -1.0, -2.0, 0.0], count, p=[0.2] * 3 + [0.1] * 3 + [0.1])
        return self.rng.choice([-1.0, 1.0, 1.0, 1.0], count) * self.rng.uniform(0.3, 2.0, count)

    # -- quantization -------------------------------------------------------------------------------------------
    def scale_for(self, reach: float) -> float:
        if self.dyadic:
            return float(2.0 ** np.clip(np.ceil(np.log2(max(reach, 1e-6) / 127)), -6, -3))
        return float(np.float32(max(reach, 1e-3) / 127 * self.rng.uniform(0.6, 1.4)))

    def fake_quantize(self, x: Value, grid: tuple[float, int, str] | None = None) -> Value:
        """Q [-> Clip] -> DQ behind a tensor."""
        dtype = grid[2] if grid else self.dice.choose(["uint8", "int8"])
        low, high = (0, 255) if dtype == "uint8" else (-128, 127)
        usual = [128, 0, 100] if dtype == "uint8" else [0, -128, 9]
        scale, zero = grid[:2] if grid else (self.scale_for(x.reach), self.dice.choose(usual))
        s, z = self.constant("s", np.float32(scale)), self.constant("z", np.asarray(zero, dtype))
        (q,) = self.op("QuantizeLinear", [x.name, s, z])
        if grid is None and self.chance(20):
            narrow = self.dice.choose([(low + 1, high), (low, high // 2), (zero, high)])
            bounds = [self.constant("bound", np.asarray(b, dtype)) for b in narrow]
            (q,) = self.op("Clip", [q, *bounds])
        (y,) = self.op("DequantizeLinear", [q, s, z])
        return Value(y, x.shape, 128 * scale, scale)

    def weight(self, shape: Sequence[int], axis: int | None, depth: int) -> tuple[str, np.ndarray]:
        """A quantized weight: stored as floats behind Q/DQ or as integers behind DQ. Returns its scale as well."""
        count = shape[axis] if axis is not None else 1
        low, high = self.dice.choose([(-127, 127), (-128, 127), (-8, 7)])
        if self.dyadic:
            scale = 2.0 ** self.rng.integers(-8, -4, count).astype(np.float64)
        else:
            scale = self.rng.uniform(0.5, 2.0, count) / (high * np.sqrt(depth))
        scale = scale.astype(np.float32)
        integers = self.rng.integers(low, high + 1, tuple(shape)).astype(np.int8)
        zero = np.zeros(count, np.int8)
        if axis is None and self.chance(15):
            zero[:] = 3
        s = self.constant("ws", scale if axis is not None else scale[0])
        z = self.constant("wz", zero if axis is not None else zero[0])
        attrs = {} if axis is None else {"axis": axis}
        source = self.constant("w", integers)
        if self.chance(50):
            view = [-1 if i == axis else 1 for i in range(len(shape))]
            real = (integers.astype(np.float32) - zero.reshape(view)) * scale.reshape(view)
            source = self.constant("w", real.astype(np.float32))
            (source,) = self.op("QuantizeLinear", [source, s, z], **attrs)
        (result,) = self.op("DequantizeLinear", [source, s, z], **attrs)
        return result, scale

    def bias(self, x: Value, scale: np.ndarray, count: int) -> str | None:
        """A bias: none, plain floats, or int32 behind DQ."""
        kind = self.dice.choose(["none", "float", "int32"])
        if kind == "none":
            return None
        if kind == "float" or x.step is None:
            return self.constant("b", self.floats([count], -2, 2))
        unit = np.broadcast_to(np.float32(x.step) * scale, (count,)).astype(np.float32)
        integers = np.rint(self.floats([count], -2, 2) / unit).astype(np.int32)
        per_channel = scale.size > 1
        s = self.constant("bs", unit if per_channel else unit[0])
        zero = self.constant("bz", np.zeros_like(unit, np.int32) if per_channel else np.int32(0))
        attrs = {"axis": 0} if per_channel else {}
        return self.op("DequantizeLinear", [self.constant("bq", integers), s, zero], **attrs)[0]

    # -- choosing -----------------------------------------------------------------------------------------------
    def pick(self, rank: int | None = None, rounded: bool = True) -> Value | None:
        """An earlier tensor, the newest ones first; mostly a rounded one."""
        fits = [v for v in self.values if rank in (None, len(v.shape))]
        if rounded:
            fits = [v for v in fits if v.step is not None] or fits
        return self.dice.choose(fits[::-1][:4]) if fits else None

    def finish(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        ends = [v for v in self.values if v.name not in read and v.name not in {i.name for i in self.inputs}]
        ends = ends or self.values[-1:]
        if self.chance(20):
            ends.append(self.dice.choose(self.values))
        ends = list({v.name: v for v in ends if v.name not in {i.name for i in self.inputs}}.values())
        if not ends:
            value = self.op("Identity", [self.values[-1].name])[0]
            ends = [Value(value, self.values[-1].shape, 1.0)]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape) for v in self.inputs],
            [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.shape) for v in ends],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


# -- layers: each takes the net and makes one tensor, or returns None where nothing fits -----------------------------


def convolution(net: Net) -> Value | None:
    x = net.pick(4)
    if x is None:
        return None
    n, c, h, w = x.shape
    kernel = net.dice.choose([1, 3]) if min(h, w) >= 3 else 1
    groups = net.dice.choose([1, c]) if c > 1 else 1
    out = c if groups > 1 else net.dice.choose([2, 3, 4])
    stride = net.dice.choose([1, 2]) if min(h, w) >= 3 else 1
    pad = kernel // 2 if net.chance(50) else 0
    depth = c // groups * kernel * kernel
    weight, scale = net.weight([out, c // groups, kernel, kernel], net.dice.choose([0, None]), depth)
    inputs = [x.name, weight]
    bias = net.bias(x, scale, out)
    if bias is not None:
        inputs.append(bias)
    (y,) = net.op("Conv", inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups)
    size = [(d + 2 * pad - kernel) // stride + 1 for d in (h, w)]
    made = Value(y, (n, out, *size), x.reach * 1.5)
    return behind_convolution(net, made, out)


def behind_convolution(net: Net, x: Value, channels: int) -> Value:
    """At times batch norm, PyTorch's division, or per-channel arithmetic."""
    kind = net.dice.choose(["none", "none", "bn", "div+bn", "mul", "add", "mul+add", "sub"])
    shape = [1, channels, 1, 1] if net.chance(50) else [channels, 1, 1]
    name, factor = x.name, net.factors(channels).astype(np.float32)
    if kind == "none":
        return x
    if kind == "div+bn":
        factor[factor == 0] = 1.0
        (name,) = net.op("Div", [name, net.constant("d", factor.reshape(shape))])
        if net.chance(50):
            (name,) = net.op("Add", [name, net.constant("a", net.floats(shape))])
    if kind.endswith("bn"):
        var = net.rng.choice([0.25, 1.0, 4.0], channels).astype(np.float32)
        gamma = (factor * np.sqrt(var)).astype(np.float32)
        inputs = [gamma, net.floats([channels]), net.floats([channels]), var]
        epsilon = 0.0 if net.dyadic else 1e-5
        (name,) = net.op("BatchNormalization", [name, *(net.constant("bn", v) for v in inputs)], epsilon=epsilon)
    if "mul" in kind:
        value = factor.reshape(shape) if net.chance(70) else np.float32(0.5)
        operands = [name, net.constant("m", value)]
        (name,) = net.op("Mul", operands if net.chance(70) else operands[::-1])
    if "add" in kind:
        (name,) = net.op("Add", [name, net.constant("a", net.floats(shape))])
    if kind == "sub":
        operands = [name, net.constant("a", net.floats(shape))]
        (name,) = net.op("Sub", operands if net.chance(50) else operands[::-1])
    return Value(name, x.shape, x.reach + 1)


def transposed_convolution(net: Net) -> Value | None:
    x = net.pick(4)
    if x is None:
        return None
    n, c, h, w = x.shape
    out = net.dice.choose([2, 3])
    weight, scale = net.weight([c, out, 2, 2], net.dice.choose([1, None]), c * 2)
    inputs = [x.name, weight]
    bias = net.bias(x, scale, out)
    if bias is not None:
        inputs.append(bias)
    (y,) = net.op("ConvTranspose", inputs, kernel_shape=[2, 2], strides=[2, 2])
    return behind_convolution(net, Value(y, (n, out, 2 * h, 2 * w), x.reach), out)


def batch_norm(net: Net) -> Value | None:
    x = net.pick(4)
    if x is None:
        return None
    channels = x.shape[1]
    var = net.rng.choice([0.25, 1.0, 4.0], channels).astype(np.float32)
    gamma = (net.factors(channels) * np.sqrt(var)).astype(np.float32)
    inputs = [gamma, net.floats([channels]), net.floats([channels]), var]
    epsilon = 0.0 if net.dyadic else 1e-5
    (y,) = net.op("BatchNormalization", [x.name, *(net.constant("bn", v) for v in inputs)], epsilon=epsilon)
    return Value(y, x.shape, x.reach * 1.5 + 1)


def gemm(net: Net) -> Value | None:
    x = net.pick(2)
    if x is None:
        return None
    depth, out, transposed = x.shape[1], net.dice.choose([2, 5]), net.dice.choose([0, 1])
    shape = [out, depth] if transposed else [depth, out]
    weight, scale = net.weight(shape, net.dice.choose([1 - transposed, None]), depth)
    inputs = [x.name, weight]
    bias = net.bias(x, scale, out)
    if bias is not None:
        inputs.append(bias)
    attrs = net.dice.choose([{}, {}, {"alpha": 0.5, "beta": 2.0}, {"alpha": -2.0}])
    (y,) = net.op("Gemm", inputs, transB=transposed, **attrs)
    return Value(y, (x.shape[0], out), x.reach * 1.5)


def matmul(net: Net) -> Value | None:
    x = net.pick(net.dice.choose([2, 3]))
    if x is None:
        return None
    depth, out = x.shape[-1], net.dice.choose([2, 5])
    weight, _ = net.weight([depth, out], net.dice.choose([1, None]), depth)
    (y,) = net.op("MatMul", [x.name, weight])
    if net.chance(30):
        (y,) = net.op("Mul", [y, net.constant("m", np.float32(0.5))])
    if net.chance(60):
        (y,) = net.op("Add", [y, net.constant("a", net.floats([out]))])
    return Value(y, (*x.shape[:-1], out), x.reach * 1.5)


def convolution_1d(net: Net) -> Value | None:
    """A temporal convolution, at times with an addend along the wrong axis: the frames, not the channels."""
    x = net.pick(3)
    if x is None:
        return None
    n, c, length = x.shape
    weight, scale = net.weight([length, c, 1], net.dice.choose([0, None]), c)
    inputs = [x.name, weight]
    bias = net.bias(x, scale, length)
    if bias is not None:
        inputs.append(bias)
    (y,) = net.op("Conv", inputs, kernel_shape=[1])
    if net.chance(40):
        (y,) = net.op(net.dice.choose(["Add", "Mul"]), [y, net.constant("a", net.floats([length]))])
    return Value(y, (n, length, length), x.reach * 1.5 + 1)


def late_norm(net: Net) -> Value | None:
    """Linear -> Transpose -> BatchNorm1d: the channels move before they are normalized."""
    x = net.pick(3)
    if x is None:
        return None
    depth, out = x.shape[2], net.dice.choose([2, 3])
    weight, _ = net.weight([depth, out], net.dice.choose([1, None]), depth)
    (y,) = net.op("MatMul", [x.name, weight])
    (y,) = net.op("Transpose", [y], perm=[0, 2, 1])
    var = net.rng.choice([0.25, 1.0, 4.0], out).astype(np.float32)
    gamma = (net.factors(out) * np.sqrt(var)).astype(np.float32)
    inputs = [gamma, net.floats([out]), net.floats([out]), var]
    epsilon = 0.0 if net.dyadic else 1e-5
    (y,) = net.op("BatchNormalization", [y, *(net.constant("bn", v) for v in inputs)], epsilon=epsilon)
    return Value(y, (x.shape[0], out, x.shape[1]), x.reach * 1.5 + 1)


def gemm_of_activations(net: Net) -> Value | None:
    x = net.pick(2)
    if x is None or x.step is None:
        return None
    first = net.dice.choose([0, 1])
    (y,) = net.op("Gemm", [x.name, x.name], transA=first, transB=1 - first)
    size = x.shape[first]
    return Value(y, (size, size), x.reach * x.reach)


def attention(net: Net) -> Value | None:
    """A product of two activations."""
    x = net.pick(3)
    if x is None or x.step is None:
        return None
    (turned,) = net.op("Transpose", [x.name], perm=[0, 2, 1])
    (y,) = net.op("MatMul", [x.name, turned])
    if net.chance(50):
        (y,) = net.op("Mul", [y, net.constant("m", np.float32(0.125))])
    return Value(y, (x.shape[0], x.shape[1], x.shape[1]), x.reach * x.reach)


def pair(net: Net) -> Value | None:
    x = net.pick()
    if x is None:
        return None
    fits = [v for v in net.values if v.shape == x.shape and v.step is not None] or [x]
    other, op = net.dice.choose(fits[::-1]), net.dice.choose(["Add", "Sub", "Mul"])
    (y,) = net.op(op, [x.name, other.name])
    return Value(y, x.shape, x.reach * other.reach if op == "Mul" else x.reach + other.reach)


def quantized_constant(net: Net) -> Value | None:
    """A sum or product with a constant that is quantized itself."""
    x = net.pick()
    if x is None:
        return None
    value = Value(net.constant("k", net.floats(x.shape[1:])), x.shape[1:], 1.0)
    fake = net.fake_quantize(value)
    (y,) = net.op(net.dice.choose(["Add", "Mul"]), [x.name, fake.name])
    return Value(y, x.shape, x.reach + 1)


def scalar(net: Net) -> Value | None:
    x = net.pick()
    if x is None:
        return None
    op, value = net.dice.choose([("Add", 0.5), ("Mul", 0.25), ("Mul", -2.0), ("Div", 4.0), ("Sub", 1.0)])
    operands = [x.name, net.constant("k", np.float32(value))]
    (y,) = net.op(op, operands if op != "Sub" or net.chance(50) else operands[::-1])
    return Value(y, x.shape, x.reach * 2 + 1)


def activation(net: Net) -> Value | None:
    x = net.pick()
    if x is None:
        return None
    exact = ["Relu", "Clip", "LeakyRelu", "Neg", "Abs"]
    op = net.dice.choose(exact if net.dyadic else [*exact, "Sigmoid", "Tanh", "HardSwish", "Swish", "Exp", "Erf"])
    return apply_activation(net, x, op)


def apply_activation(net: Net, x: Value, op: str) -> Value:
    if op == "Clip":
        low, high = net.dice.choose([(0.0, 6.0), (-1.0, 1.0), (-0.5, None), (None, 2.0), (0.0, 0.3)])
        if net.dyadic and high == 0.3:
            high = 0.25
        bounds = ["" if b is None else net.constant("c", np.float32(b)) for b in (low, high)]
        (y,) = net.op("Clip", [x.name, *bounds])
    elif op == "Swish":
        (gate,) = net.op("Sigmoid", [x.name])
        (y,) = net.op("Mul", [x.name, gate])
    elif op == "LeakyRelu":
        (y,) = net.op("LeakyRelu", [x.name], alpha=0.125)
    else:
        (y,) = net.op(op, [x.name])
    return Value(y, x.shape, float(np.exp(min(x.reach, 3))) if op == "Exp" else x.reach)


def pooling(net: Net) -> Value | None:
    x = net.pick(4)
    if x is None:
        return None
    n, c, h, w = x.shape
    kind = net.dice.choose(["MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "GlobalMaxPool"])
    if kind in ("MaxPool", "AveragePool"):
        if min(h, w) < 2:
            return None
        pad = net.dice.choose([0, 0, 1]) if not net.dyadic or kind == "MaxPool" else 0
        (y,) = net.op(kind, [x.name], kernel_shape=[2, 2], strides=[2, 2], pads=[pad] * 4)
        return Value(
            y, (n, c, *((d + 2 * pad - 2) // 2 + 1 for d in (h, w))), x.reach, x.step if kind == "MaxPool" else None
        )
    if net.dyadic and kind != "GlobalMaxPool" and (h * w) & (h * w - 1):
        return None
    if kind == "ReduceMean" and net.chance(40):  # over the first positions, as in an image of [N, H, W, C]
        keep, size = net.dice.choose([0, 1]), c * h
        if net.dyadic and size & (size - 1):
            return None
        (y,) = net.op("ReduceMean", [x.name], axes=[1, -2], keepdims=keep)
        return Value(y, (n, 1, 1, w) if keep else (n, w), x.reach)
    if kind == "ReduceMean":
        keep = net.dice.choose([0, 1])
        (y,) = net.op("ReduceMean", [x.name], axes=[2, 3], keepdims=keep)
        return Value(y, (n, c, 1, 1) if keep else (n, c), x.reach)
    (y,) = net.op(kind, [x.name])
    return Value(y, (n, c, 1, 1), x.reach, x.step if kind == "GlobalMaxPool" else None)


def concatenation(net: Net) -> Value | None:
    x = net.pick()
    if x is None:
        return None
    fits = [
        v for v in net.values if v.shape[:1] + v.shape[2:] == x.shape[:1] + x.shape[2:] and len(v.shape) == len(x.shape)
    ]
    other = net.dice.choose(fits[::-1])
    parts = [x, other]
    if net.chance(20):
        parts.append(Value(net.constant("k", net.floats(x.shape)), x.shape, 1.0))
    (y,) = net.op("Concat", [p.name for p in parts], axis=1)
    shape = (x.shape[0], sum(p.shape[1] for p in parts), *x.shape[2:])
    return Value(y, shape, max(p.reach for p in parts))


def movement(net: Net) -> Value | None:
    x = net.pick(4, rounded=False)
    if x is None:
        return None
    n, c, h, w = x.shape
    kind = net.dice.choose(["Transpose", "Reshape", "Slice", "Pad", "Resize", "Split", "DepthToSpace", "Gather"])
    ints = lambda *v: net.constant("i", np.asarray(v, np.int64))  # noqa: E731
    match kind:
        case "Transpose":
            (y,), shape = net.op(kind, [x.name], perm=[0, 1, 3, 2]), (n, c, w, h)
        case "Reshape":
            (y,), shape = net.op(kind, [x.name, ints(n, c, h * w)]), (n, c, h * w)
        case "Slice":
            (y,), shape = net.op(kind, [x.name, ints(0), ints(1), ints(2)]), (n, c, 1, w)
        case "Pad":
            value = net.dice.choose([0.0, 0.0, 0.25])
            inputs = [x.name, ints(0, 0, 1, 0, 0, 0, 0, 1), net.constant("p", np.float32(value))]
            (y,), shape = net.op(kind, inputs), (n, c, h + 1, w + 1)
        case "Resize":
            scales = net.constant("r", np.asarray([1, 1, 2, 2], np.float32))
            attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            (y,), shape = net.op(kind, [x.name, "", scales], **attrs), (n, c, 2 * h, 2 * w)
        case "Split":
            if c < 2:
                return None
            y, other = net.op(kind, [x.name, ints(1, c - 1)], 2, axis=1)
            net.values.append(Value(other, (n, c - 1, h, w), x.reach, x.step))
            shape = (n, 1, h, w)
        case "Gather":
            (y,), shape = net.op(kind, [x.name, ints(c - 1, 0)], axis=1), (n, 2, h, w)
        case _:
            if c % 4:
                return None
            (y,), shape = net.op(kind, [x.name], blocksize=2), (n, c // 4, 2 * h, 2 * w)
    return Value(y, shape, x.reach, x.step if kind != "Pad" else None)


def flatten(net: Net) -> Value | None:
    x = net.pick(4)
    if x is None:
        return None
    (y,) = net.op("Flatten", [x.name])
    return Value(y, (x.shape[0], int(np.prod(x.shape[1:]))), x.reach, x.step)


LAYERS: dict[str, tuple[Callable[[Net], Value | None], int]] = {
    "conv": (convolution, 5),
    "deconv": (transposed_convolution, 1),
    "bn": (batch_norm, 1),
    "gemm": (gemm, 2),
    "matmul": (matmul, 2),
    "attention": (attention, 1),
    "conv1d": (convolution_1d, 1),
    "late norm": (late_norm, 1),
    "gemm pair": (gemm_of_activations, 1),
    "pair": (pair, 3),
    "constant": (quantized_constant, 1),
    "scalar": (scalar, 2),
    "activation": (activation, 3),
    "pool": (pooling, 2),
    "concat": (concatenation, 2),
    "move": (movement, 3),
    "flatten": (flatten, 1),
}
_DRAW = [name for name, (_, weight) in LAYERS.items() for _ in range(weight)]


def random_model(dice: Dice, *, dyadic: bool, layers: int = 6) -> onnx.ModelProto:
    """A model of up to `layers` layers; every result is rounded, left as it is, or rounded in two ways."""
    net = Net(dice, np.random.default_rng(dice.integer(0, 2**32 - 1)), dyadic)
    shape = dice.choose([(1, 2, 4, 4), (2, 3, 4, 4), (1, 4, 3, 5), (2, 6), (1, 4, 6)])
    net.inputs.append(Value("x", shape, 2.0))
    net.values.append(net.fake_quantize(net.inputs[0]))
    for _ in range(dice.integer(1, layers)):
        made = LAYERS[dice.choose(_DRAW)][0](net)
        if made is None:
            continue
        if net.chance(30):
            made = apply_activation(net, made, dice.choose(["Relu", "Clip"]))
        net.values.append(made)
        if net.chance(80):
            net.values.append(net.fake_quantize(made))
            if net.chance(10):  # the same tensor again: equal parameters, or others
                net.values.append(net.fake_quantize(made))
    return net.finish()


@st.composite
def models(draw: Callable[..., object], *, dyadic: bool, layers: int = 6) -> onnx.ModelProto:
    """`random_model` as a strategy."""
    return random_model(Drawn(draw), dyadic=dyadic, layers=layers)


def random_input(model: onnx.ModelProto, seed: int = 0, *, dyadic: bool) -> dict[str, np.ndarray]:
    """Values for the model's inputs; multiples of 1/256 for dyadic models."""
    rng, feeds = np.random.default_rng(seed), {}
    for port in model.graph.input:
        shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
        value = rng.normal(0, 1.2, shape)
        feeds[port.name] = (np.rint(value * 256) / 256 if dyadic else value).astype(np.float32)
    return feeds
