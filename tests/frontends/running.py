"""Running a canonical graph: each FakeQuant written back as Q, Clip, DQ, quantized constants as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.graph import FAKE_QUANT, Constant, Node, QuantGraph
from qatc.compiler.model_io import node_proto, value_info
from qatc.compiler.quant import QuantParams

_STORED = {"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"}


class Writer:
    def __init__(self, graph: QuantGraph) -> None:
        self.graph = graph
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def model(self) -> onnx.ModelProto:
        for tensor in self.graph.tensors():
            if isinstance(tensor, Constant):
                value = self.graph.real(tensor)
                assert value is not None
                self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), tensor.name))
        for index, node in enumerate(self.graph.nodes):
            if node.op == FAKE_QUANT:
                self.fake_quant(node, f"_{index}")
            else:
                self.nodes.append(node_proto(node))
        body = helper.make_graph(
            self.nodes,
            "canonical",
            [value_info(t) for t in self.graph.inputs],
            [value_info(t) for t in self.graph.outputs],
            self.constants,
        )
        wide = any("16" in n.attrs["params"].dtype for n in self.graph.nodes if n.op == FAKE_QUANT)
        opset = max(self.graph.opset, 21) if wide else self.graph.opset
        imports = [helper.make_opsetid(d, v) for d, v in {**self.graph.domains, "": opset}.items()]
        return helper.make_model(body, opset_imports=imports, ir_version=10)

    def fake_quant(self, node: Node, suffix: str) -> None:
        params: QuantParams = node.attrs["params"]
        dtype = np.dtype(_STORED.get(params.dtype, params.dtype))
        many = params.is_per_channel
        scale = self.constant("s" + suffix, np.asarray(params.scale if many else params.scale[0], np.float32))
        zero = self.constant("z" + suffix, np.asarray(params.zero_point if many else params.zero_point[0], dtype))
        axis = {"axis": params.axis} if many else {}
        q, c = "q" + suffix, "c" + suffix
        self.nodes.append(helper.make_node("QuantizeLinear", [node.inputs[0].name, scale, zero], [q], **axis))
        low = self.constant("lo" + suffix, np.asarray(params.qmin, dtype))
        high = self.constant("hi" + suffix, np.asarray(params.qmax, dtype))
        narrow = (params.qmin, params.qmax) != (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if narrow:
            self.nodes.append(helper.make_node("Clip", [q, low, high], [c]))
        read = [c if narrow else q, scale, zero]
        self.nodes.append(helper.make_node("DequantizeLinear", read, [node.outputs[0].name], **axis))

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime without optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs for inputs given by position."""
    opened = session(model)
    names = [i.name for i in opened.get_inputs()]
    return [np.asarray(v) for v in opened.run(None, dict(zip(names, inputs, strict=True)))]


def run_canonical(graph: QuantGraph, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a canonical graph."""
    return run(Writer(graph).model(), *inputs)


def values(graph: QuantGraph, x: np.ndarray) -> np.ndarray:
    """The graph's result, FakeQuant nodes computed as QuantParams defines them and constants dequantized."""
    results: dict[str, np.ndarray] = {graph.inputs[0].name: x}
    reals = {t.name: graph.real(t) for t in graph.tensors()}
    for node in graph.nodes:
        feeds = [results.get(t.name, reals.get(t.name)) for t in node.inputs]
        if node.op == FAKE_QUANT:
            results[node.outputs[0].name] = node.attrs["params"].fake_quantize(feeds[0])
            continue
        kinds = [helper.make_tensor_value_info(f"i{i}", TensorProto.FLOAT, None) for i in range(len(feeds))]
        step = helper.make_node(node.op, [k.name for k in kinds], ["o"], **node.attrs)
        body = helper.make_graph([step], "g", kinds, [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)])
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)])
        run = onnx.reference.ReferenceEvaluator(model).run(None, {f"i{i}": f for i, f in enumerate(feeds)})
        results[node.outputs[0].name] = run[0]
    return results[graph.outputs[0].name]
