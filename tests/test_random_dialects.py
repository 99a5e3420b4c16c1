"""Random quantized networks, each as several exporters would write it, through the whole compile.

The compile compares the simulation (the file itself in ONNX Runtime), the reference and the package, so it is its own
judge: a network that compiles to something else ends with exit code 3. A long run: --hypothesis-profile=long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import helper, numpy_helper

from qatc import CompileError, compile_model
from tests.random_models import models

Writer = Callable[[onnx.ModelProto], None]


def standard(model: onnx.ModelProto) -> None:
    """QuantizeLinear, Clip, DequantizeLinear of ONNX: as it is."""


def microsoft(model: onnx.ModelProto) -> None:
    """The same operators in the domain of ONNX Runtime's quantizer."""
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def observed(model: onnx.ModelProto) -> None:
    """Scales and zero points behind what PyTorch's exporter leaves of their computation."""
    made: list[onnx.NodeProto] = []
    seen: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = node.input[1]
            if scale not in seen:
                seen[scale] = f"{scale}_checked"
                made.append(helper.make_node("Abs", [scale], [f"{scale}_abs"], f"{scale}_abs"))
                made.append(helper.make_node("Identity", [f"{scale}_abs"], [seen[scale]], f"{scale}_id"))
            node.input[1] = seen[scale]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def arithmetic(model: onnx.ModelProto) -> None:
    """Activations rounded by Div, Round, Clip and Mul, as quantizers written by hand are exported."""
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        q = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        scale = constants.get(node.input[1]) if q is not None else None
        zero = constants.get(node.input[2]) if q is not None and len(node.input) > 2 else None
        plain = q is not None and q.op_type == "QuantizeLinear" and q.input[0] not in constants
        if q is None or not plain or scale is None or zero is None or scale.size != 1:
            nodes.append(node)
            continue
        info = np.iinfo(zero.dtype)
        name = node.output[0]
        ends = {"low": int(info.min) - int(zero), "high": int(info.max) - int(zero)}
        for end, value in ends.items():
            constant = numpy_helper.from_array(np.asarray(value, np.float32), f"{name}_{end}")
            model.graph.initializer.append(constant)
        nodes += [
            helper.make_node("Div", [q.input[0], q.input[1]], [f"{name}_d"], f"{name}_div"),
            helper.make_node("Round", [f"{name}_d"], [f"{name}_r"], f"{name}_round"),
            helper.make_node("Clip", [f"{name}_r", f"{name}_low", f"{name}_high"], [f"{name}_c"], f"{name}_clip"),
            helper.make_node("Mul", [f"{name}_c", q.input[1]], [name], f"{name}_mul"),
        ]
    read = {n for node in nodes for n in node.input} | {o.name for o in model.graph.output}
    kept = [n for n in nodes if n.op_type != "QuantizeLinear" or n.output[0] in read]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def wide(model: onnx.ModelProto) -> None:
    """Every other activation in 16 bits of either sign, and weights of 4 bits, in the domain that knows them."""
    microsoft(model)
    constants = {i.name: i for i in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounding = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    for index, q in enumerate(rounding):
        pair = [q, *readers[q.output[0]]]
        scale, zero = (numpy_helper.to_array(constants[n]) for n in q.input[1:3])
        if index % 2 or scale.size > 1 or any(n.op_type != "DequantizeLinear" for n in pair[1:]):
            continue
        kind, middle = ((np.int16, 0), (np.uint16, 1 << 15), (np.int16, 1234))[index // 2 % 3]
        name = q.output[0]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(scale / 256), f"{name}_fine"))
        model.graph.initializer.append(numpy_helper.from_array(np.full(zero.shape, middle, kind), f"{name}_middle"))
        for node in pair:
            node.input[1], node.input[2] = f"{name}_fine", f"{name}_middle"
    for node in model.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.data_type == onnx.TensorProto.INT8:
            coarse = np.clip(np.rint(numpy_helper.to_array(stored) / 16), -8, 7).astype(np.int8)
            stored.CopyFrom(numpy_helper.from_array(coarse, stored.name))


WRITERS: dict[str, Writer] = {
    "standard": standard,
    "microsoft": microsoft,
    "observed": observed,
    "arithmetic": arithmetic,
    "wide": wide,
}


#: How a random network may be refused: nothing in it is quantized, or its parameters are none that can be compiled.
ALLOWED = {"QAT101", "QAT103", "QAT302", "QAT303"}
LONG = 1000  # examples


def refusal(model: onnx.ModelProto) -> CompileError | None:
    """Why a model does not compile, None where it does."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, path)
        try:
            compile_model(path, output=Path(scratch) / "out")
        except CompileError as error:
            return error
    return None


@pytest.mark.parametrize("writer", WRITERS)
def test_random_networks_compile_to_what_they_are(writer: str) -> None:
    long = settings().max_examples > LONG
    profile = settings() if long else settings.get_profile("qatc-short")
    refused: list[bool] = []

    @settings(profile, suppress_health_check=list(HealthCheck), deadline=None, derandomize=not long)
    @given(models(dyadic=False, layers=6))
    def check(model: onnx.ModelProto) -> None:
        WRITERS[writer](model)
        error = refusal(model)
        refused.append(error is not None)
        assert error is None or error.exit_code != 3, str(error)
        assert error is None or {d.code for d in error.diagnostics} & ALLOWED, str(error)

    check()
    assert sum(refused) < len(refused) / 2
