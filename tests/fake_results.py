"""Results of compiles that never ran, for tests of what is shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from qatc.compiler.diagnostics import Diagnostic, Severity
from qatc.compiler.package import schema
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import (
    CompileResult,
    Coverage,
    Disagreement,
    FilledRange,
    GraphView,
    InspectedOp,
    Inspection,
    Island,
    MissingRange,
    OutputCheck,
    Port,
    SumBounds,
    TensorCheck,
    TensorRecord,
    Verification,
    ViewNode,
    WeightFacts,
)

GRID = QuantParams.per_tensor(0.02, 128, "uint8")
VIT_OPS = ["QLinearMatMul", "Reshape", "Transpose", "DequantizeLinear", "QLinearAdd", "MatMulInteger"]
VIT_OPS += ["LayerNormalization", "Softmax"]
#: Names that break what forgets to escape: HTML, rich markup, control characters, other directions, quotes.
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "[bold red]markup[/bold red]",
    "[/]",
    "\x1b[31mred\x1b[0m\x07",
    "a\nb\r\tc",
    "\u202eevil\u2066",
    "\ud800lone",
    "{{ 7 * 7 }}{% raw %}",
    "</pre></style></svg>&amp;",
    "name-" + "x" * 5000,
]


def check(index: int, name: str, ones: int, *, kind: str = "Conv", elements: int = 8192) -> TensorCheck:
    """A tensor of which `ones` elements are one LSB off."""
    histogram = {0: elements - ones, 1: ones} if ones else {0: elements}
    return TensorCheck(name, kind, "end-to-end", elements, histogram, ones, 60.0 - ones / 40 if ones else math.inf)


def verification(**changes: Any) -> Verification:
    kinds = ["Conv", "Conv", "Add", "Conv", "MaxPool", "MatMul"]
    names = [f"/layer{i // 3 + 1}/{kind.lower()}/output_{i}" for i, kind in enumerate(kinds * 4)]
    pairs = list(zip(names, kinds * 4, strict=True))
    found = Verification(
        samples=1,
        simulation="resnet8_qat.onnx in ONNX Runtime 1.31.0, unoptimized",
        package=tuple(check(i, n, 0, kind=k) for i, (n, k) in enumerate(pairs)),
        local=tuple(check(i, n, 3 if k == "Add" else 0, kind=k) for i, (n, k) in enumerate(pairs)),
        tensors=tuple(check(i, n, 5 * i * i % 900, kind=k) for i, (n, k) in enumerate(pairs)),
        outputs=(OutputCheck("logits", 0.0123, 0.0041, 1.0),),
        passed=True,
    )
    return replace(found, **changes)


def result(**changes: Any) -> CompileResult:
    """A compile that went well."""
    weights = QuantParams.per_channel([0.01, 0.02, 0.005], 0)
    found = CompileResult(
        package=Path("resnet8_qat.qatc"),
        source=Path("samples/models/resnet8_qat.onnx"),
        source_bytes=331_204,
        package_bytes=92_441,
        dialect="pytorch",
        evidence="41 QuantizeLinear and DequantizeLinear, producer pytorch 2.13",
        target="onnx",
        profile="onnx",
        source_ops={"QuantizeLinear": 41, "DequantizeLinear": 41, "Conv": 9, "Relu": 7, "Add": 3, "Gemm": 1},
        package_ops={"QLinearConv": 9, "QLinearAdd": 3, "QGemm": 1, "QuantizeLinear": 1, "DequantizeLinear": 1},
        inputs=(Port("input", "float32", ("batch", 3, 32, 32), GRID),),
        outputs=(Port("logits", "float32", ("batch", 10), GRID),),
        coverage=Coverage(12_501_632, 0, 14, 0, 5),
        islands=(),
        filled=(),
        tensors=(
            TensorRecord("input", "input_q", "input", GRID),
            TensorRecord("conv1.weight", "conv1.weight_q", "weight", weights),
            TensorRecord(None, "conv1.bias_q", "bias", QuantParams.per_channel([1e-4, 2e-4, 3e-4], 0, 0, "int32")),
        ),
        diagnostics=(),
        verification=verification(),
        timings={"load": 0.02, "compile": 0.11, "verify": 0.4},
        options={"qat": True, "dialect": "pytorch", "target": "onnx", "samples": 1},
    )
    return replace(found, **changes)


def busy_result() -> CompileResult:
    """A compile with much to say: islands, filled ranges, notes."""
    softmax = "Softmax has no integer form on this target (-p softmax=integer approximates it)"
    norm = "LayerNormalization has no integer form on this target"
    missing = "its input has no range: give --calibrate representative inputs"
    islands = [Island(f"/blocks.{i}/attn/Softmax", "Softmax", softmax) for i in range(12)]
    islands += [Island(f"/blocks.{i // 2}/norm{i % 2}", "LayerNormalization", norm) for i in range(24)]
    islands.append(Island("/head/MatMul", "MatMul", missing, 768_000))
    diagnostics = [
        Diagnostic("QAT107", "int8 weights use only [-64, 63]", Severity.NOTE, None, f"blocks.{i}.attn.qkv.weight")
        for i in range(12)
    ]
    diagnostics.append(
        Diagnostic(
            "QAT304",
            "the accumulator may reach 2,415,919,104, beyond 32 bits",
            Severity.WARNING,
            "/blocks.3/mlp/fc2/MatMul",
            hint="quantize the weights with 7 bits, or retrain with a smaller layer",
        )
    )
    return result(
        source=Path("vit_base.onnx"),
        package=Path("/home/ana/deploy/vit_base.qatc"),
        source_bytes=346_700_000,
        package_bytes=88_212_345,
        evidence="611 QuantizeLinear and DequantizeLinear, producer pytorch 2.13",
        package_ops=dict(zip(VIT_OPS, (72, 60, 48, 38, 25, 24, 24, 12), strict=True)),
        coverage=Coverage(17_581_000_000, 768_000, 133, 37, 183),
        islands=tuple(islands),
        filled=tuple(FilledRange(f"/blocks.{i}/Add_output_0", GRID, "entropy") for i in range(24)),
        diagnostics=tuple(diagnostics),
        verification=verification(
            samples=4,
            outputs=(OutputCheck("logits", 0.31, 0.0171, 0.9975), OutputCheck("features", 0.052, 0.0098, None)),
        ),
    )


def hostile_result() -> CompileResult:
    """A compile of a model whose author chose every name to do harm."""
    records = tuple(TensorRecord(n, n, "activation", GRID) for n in HOSTILE)
    checks = tuple(check(i, n, i, kind="Conv") for i, n in enumerate(HOSTILE))
    return result(
        source=Path("<b>model</b>.onnx"),
        evidence="producer " + HOSTILE[0],
        source_ops=dict.fromkeys(HOSTILE, 1),
        package_ops=dict.fromkeys(HOSTILE, 1),
        inputs=tuple(Port(n, "float32", (n, 3), GRID) for n in HOSTILE),
        outputs=tuple(Port(n, "float32", None) for n in HOSTILE),
        islands=tuple(Island(n, n, f"because {n}", i) for i, n in enumerate(HOSTILE)),
        filled=tuple(FilledRange(n, GRID, "minmax") for n in HOSTILE),
        tensors=records,
        diagnostics=tuple(Diagnostic("QAT107", f"at {n}", Severity.NOTE, n, n, n) for n in HOSTILE),
        verification=verification(
            package=checks, local=checks, tensors=checks, outputs=tuple(OutputCheck(n, 0.1, 0.1, None) for n in HOSTILE)
        ),
        explanation=tuple(HOSTILE),
        options={"qat": True, "options": {HOSTILE[0]: HOSTILE[1]}, "inputs": {HOSTILE[4]: "$(reboot).npy"}},
    )


def inspection(**changes: Any) -> Inspection:
    """What an inspection of a small network found."""
    ops = [InspectedOp("/input/QuantizeLinear", "QuantizeLinear", "moved")]
    ops += [
        InspectedOp(
            f"/layer{i}/Conv",
            "Conv",
            "integer",
            "",
            2_359_296 * i,
            9_216 * i,
            "uint8 x int8, per channel",
            activation_bytes=16_384,
            weights=WeightFacts(16, 8, 0, i // 8),
            sums=SumBounds(16, 100_000 * i, 0, 9_000 * i, i // 5 * 7, i // 5 * 3),
        )
        for i in range(1, 9)
    ]
    ops += [
        InspectedOp("/layer8/Add", "Add", "float", "its output has no range: give --calibrate representative inputs"),
        InspectedOp("/head/Gemm", "Gemm", "integer", "", 640, 650, "per tensor"),
        InspectedOp("/head/Softmax", "Softmax", "float", "Softmax has no integer form on this target"),
    ]
    found = Inspection(
        source=Path("resnet8_qat.onnx"),
        source_bytes=331_204,
        dialect="pytorch",
        evidence="41 QuantizeLinear and DequantizeLinear, producer pytorch 2.13",
        target="onnx",
        inputs=(Port("input", "float32", ("batch", 3, 32, 32), GRID),),
        outputs=(Port("logits", "float32", ("batch", 10)),),
        operators=tuple(ops),
        coverage=Coverage(84_935_296, 0, 9, 2, 1),
        missing=(MissingRange("/layer8/Add_output_0", "the exporter left it out after a residual sum", "Add"),),
        disagreeing=(
            Disagreement("/pool", "Rescale", "is rounded onto a second grid", (GRID, replace(GRID, scale=(0.5,)))),
        ),
        peak_bytes=49_152,
        advice=("Quantize the results of 1 Add in training, too: /layer8/Add_output_0.",),
        diagnostics=(Diagnostic("QAT208", "a residual sum has no range", Severity.WARNING, "/layer8/Add"),),
        dump="graph resnet8 opset 17\n",
        view=GraphView((ViewNode("input", "input", "input"), ViewNode("/layer1/Conv", "Conv", "integer")), ((0, 1),)),
    )
    return replace(found, **changes)


def validate(document: bytes) -> dict[str, Any]:
    """Parse what --json prints and check it against the published schema."""
    found: dict[str, Any] = json.loads(document)
    schemas = [Resource.from_contents(schema(name)) for name in ("report", "result")]
    registry: Registry[Any] = Registry().with_resources([(s.id() or "", s) for s in schemas])
    Draft202012Validator(schema("result"), registry=registry).validate(found)
    return found
