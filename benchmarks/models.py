"""The networks that are measured: random weights, ranges calibrated by one run, quantized as exporters write it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Style = Literal["float", "torch", "symmetric"]
Range = tuple[float, float]
_OPSET: Final = 17
_DEFAULT: Final[Range] = (-3.0, 3.0)


class Network:
    """A graph under construction, its activations quantized in one style.

    "torch": uint8 activations, float weights behind Q and DQ (FX, fbgemm). "symmetric": int8 with zero point 0,
    integer weights behind a DQ (NPU and TensorRT toolchains). "float": nothing; every point becomes an output, so that
    one run finds its range.
    """

    def __init__(self, style: Style, ranges: Sequence[Range] = ()) -> None:
        self.style, self.ranges = style, ranges
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.points: list[str] = []
        self.dice = np.random.default_rng(0)

    def const(self, value: NDArray[Any] | np.generic) -> str:
        """A constant's name."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node's only output."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{op}_{len(self.nodes)}", **attributes))
        return out

    def point(self, x: str) -> str:
        """Where training quantizes: `x` behind Q and DQ."""
        index = len(self.points)
        self.points.append(x)
        if self.style == "float":
            return x
        low, high = self.ranges[index] if index < len(self.ranges) else _DEFAULT
        if self.style == "torch":
            low, high = min(low, 0.0), max(high, 0.0)
            scale = max((high - low) / 255, 1e-6)
            zero = np.array([np.clip(np.rint(-low / scale), 0, 255)], np.uint8)
            return self._around(x, self.const(np.array([scale], np.float32)), self.const(zero))
        scale = max(abs(low), abs(high)) / 127 or 1e-6
        return self._around(x, self.const(np.float32(scale)), self.const(np.int8(0)))

    def _around(self, x: str, scale: str, zero: str, **attributes: int) -> str:
        q = self.node("QuantizeLinear", [x, scale, zero], **attributes)
        return self.node("DequantizeLinear", [q, scale, zero], **attributes)

    def weight(self, values: NDArray[np.float32], axis: int = 0) -> str:
        """A weight, quantized per channel along `axis`."""
        if self.style == "float":
            return self.const(values)
        others = tuple(i for i in range(values.ndim) if i != axis)
        size = np.asarray(np.maximum(np.abs(values).max(others, keepdims=True) / 127, 1e-8), np.float32)
        scale, zero = self.const(size.reshape(-1)), self.const(np.zeros(size.size, np.int8))
        if self.style == "torch":
            return self._around(self.const(values), scale, zero, axis=axis)
        q = self.const(np.clip(np.rint(values / size), -127, 127).astype(np.int8))
        return self.node("DequantizeLinear", [q, scale, zero], axis=axis)

    def normal(self, *shape: int, gain: float = 1.0) -> NDArray[np.float32]:
        """Random values."""
        return (self.dice.standard_normal(shape) * gain).astype(np.float32)

    def conv(
        self, x: str, channels: int, filters: int, kernel: int, stride: int = 1, *, relu: bool = True, gain: float = 1.0
    ) -> str:
        """Conv with bias, and its Relu."""
        values = self.normal(filters, channels, kernel, kernel, gain=gain * float(np.sqrt(2 / (channels * kernel**2))))
        inputs = [x, self.weight(values), self.const(self.normal(filters, gain=0.1))]
        pads, size = [kernel // 2] * 4, [kernel] * 2
        made = self.node("Conv", inputs, kernel_shape=size, pads=pads, strides=[stride] * 2)
        return self.node("Relu", [made]) if relu else made

    def model(self, shape: Sequence[int], output: str) -> onnx.ModelProto:
        """The model from "input" to `output`; of a float one every point is an output, too."""
        outputs = dict.fromkeys([output, *(p for p in self.points if self.style == "float" and p != "input")])
        ports = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))]
        graph = helper.make_graph(self.nodes, "network", inputs, ports, self.initializers)
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="pytorch")


# -- networks ---------------------------------------------------------------------------------------------------------
IMAGE: Final = (1, 3, 224, 224)


def _resnet50(net: Network) -> str:
    x = net.point(net.conv(net.point("input"), 3, 64, 7, 2))
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            stride = first if index == 0 else 1
            y = net.point(net.conv(x, channels, width, 1))
            y = net.point(net.conv(y, width, width, 3, stride))
            y = net.point(net.conv(y, width, width * 4, 1, relu=False, gain=0.3))
            if index == 0:
                x = net.point(net.conv(x, channels, width * 4, 1, stride, relu=False))
            channels = width * 4
            x = net.point(net.node("Relu", [net.node("Add", [y, x])]))
    x = net.node("Flatten", [net.point(net.node("GlobalAveragePool", [x]))], axis=1)
    weight, bias = net.weight(net.normal(1000, 2048, gain=0.02)), net.const(np.zeros(1000, np.float32))
    return net.point(net.node("Gemm", [x, weight, bias], transB=1))


def resnet50(folder: Path, style: Style) -> tuple[Path, Path]:
    """ResNet-50 in float32 and quantized: two files. Ranges are those of one random image."""
    import onnxruntime

    probe = Network("float")
    output = _resnet50(probe)
    plain = probe.model(IMAGE, output)
    x = image()
    session = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in plain.graph.output]
    seen = {"input": x, **dict(zip(names, session.run(names, {"input": x}), strict=True))}
    net = Network(style, [(float(seen[p].min()), float(seen[p].max())) for p in probe.points])
    paths = folder / "resnet50-float.onnx", folder / f"resnet50-{style}.onnx"
    del plain.graph.output[1:]
    paths[0].write_bytes(plain.SerializeToString())
    paths[1].write_bytes(net.model(IMAGE, _resnet50(net)).SerializeToString())
    return paths


def image() -> NDArray[np.float32]:
    """A random image."""
    return np.random.default_rng(1).standard_normal(IMAGE).astype(np.float32)


def chain(folder: Path, blocks: int, *, shuffled: bool = False) -> Path:
    """`blocks` residual blocks of nine nodes; `shuffled`: the nodes in random order."""
    net = Network("torch")
    x = net.point("input")
    for _ in range(blocks):
        values = net.normal(8, 8, 1, 1, gain=0.2)
        y = net.node("Relu", [net.node("Conv", [x, net.weight(values)], kernel_shape=[1, 1])])
        x = net.point(net.node("Add", [net.point(y), x]))
    if shuffled:
        random.Random(0).shuffle(net.nodes)
    path = folder / f"chain{blocks}{'-shuffled' if shuffled else ''}.onnx"
    path.write_bytes(net.model((1, 8, 4, 4), x).SerializeToString())
    return path


def transformer(folder: Path, layers: int, width: int = 192, tokens: int = 64) -> Path:
    """Encoder layers: attention by MatMul and Softmax, LayerNormalization, a feed-forward block with Gelu."""
    net = Network("torch")

    def dense(x: str, rows: int, columns: int) -> str:
        values = net.normal(rows, columns, gain=float(1 / np.sqrt(rows)))
        bias = net.const(np.zeros(columns, np.float32))
        return net.node("Add", [net.node("MatMul", [x, net.weight(values, axis=1)]), bias])

    def normalized(x: str) -> str:
        ones, zeros = net.const(np.ones(width, np.float32)), net.const(np.zeros(width, np.float32))
        return net.point(net.node("LayerNormalization", [x, ones, zeros], axis=-1))

    x = net.point("input")
    for _ in range(layers):
        y = normalized(x)
        q, k, v = (net.point(dense(y, width, width)) for _ in range(3))
        scores = net.point(net.node("MatMul", [q, net.node("Transpose", [k], perm=[0, 2, 1])]))
        weights = net.point(net.node("Softmax", [scores], axis=-1))
        y = net.point(dense(net.point(net.node("MatMul", [weights, v])), width, width))
        x = net.point(net.node("Add", [x, y]))
        y = net.point(dense(normalized(x), width, 4 * width))
        half, one = net.const(np.float32(0.5)), net.const(np.float32(1))
        erf = net.node("Erf", [net.node("Mul", [y, net.const(np.float32(np.sqrt(0.5)))])])
        y = net.point(net.node("Mul", [net.node("Mul", [y, half]), net.node("Add", [erf, one])]))
        x = net.point(net.node("Add", [x, net.point(dense(y, 4 * width, width))]))
    path = folder / f"transformer{layers}.onnx"
    path.write_bytes(net.model((1, tokens, width), x).SerializeToString())
    return path


def wide(folder: Path, layers: int, width: int) -> Path:
    """A stack of matrix products, float weights beside the file; one of them in memory at a time."""
    net = Network("torch")
    path = folder / f"wide{layers}x{width}.onnx"
    x, offset = net.point("input"), 0
    with path.with_suffix(".onnx.data").open("wb") as side:
        for _ in range(layers):
            values = net.dice.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
            tensor = TensorProto(name=f"w{offset}", data_type=TensorProto.FLOAT, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.stem}.onnx.data"), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            side.write(values.data)
            offset += values.nbytes
            net.initializers.append(tensor)
            size = np.maximum(np.abs(values).max(0) / 127, 1e-8).astype(np.float32)
            scale, zero = net.const(size), net.const(np.zeros(width, np.int8))
            q = net.node("QuantizeLinear", [tensor.name, scale, zero], axis=1)
            x = net.point(net.node("MatMul", [x, net.node("DequantizeLinear", [q, scale, zero], axis=1)]))
    path.write_bytes(net.model((1, width), x).SerializeToString())
    return path
