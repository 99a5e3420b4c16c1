"""Ranges and encodings beside a float model: every format, names, axes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.compiler.diagnostics import CompileError, Severity
from qatc.compiler.frontend import FrontendOptions
from qatc.compiler.graph import FAKE_QUANT, QuantGraph
from qatc.compiler.passes.strip import strip
from qatc.compiler.quant import QuantParams
from qatc.frontends import aimet, ranges
from qatc.frontends.common import external
from tests.frontends import networks as nets
from tests.frontends.networks import Builder, Network

Grids = dict[str, QuantParams]
quick = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def float_model(network: Network) -> tuple[onnx.ModelProto, Grids]:
    """The network without fake quantization, and the grids by the names of the tensors."""
    found: Grids = {}

    def spell(b: Builder, x: str, params: QuantParams, rank: int, name: str) -> str:
        found[x] = params
        return x

    return nets.write(network, spell), found


def offsets(params: QuantParams) -> tuple[bool, list[int]]:
    """Whether AIMET calls the grid symmetric, and where its integers begin."""
    return params.is_signed, [params.qmin - z for z in params.zero_point]


def bits_of(params: QuantParams) -> int:
    return int(params.qmax - params.qmin + 1).bit_length() - ((params.qmax - params.qmin + 1).bit_count() == 1)


def write_0_6_1(grids: Grids) -> Any:
    def encodings(p: QuantParams) -> list[dict[str, Any]]:
        symmetric, start = offsets(p)
        return [
            {"bitwidth": bits_of(p), "dtype": "int", "is_symmetric": str(symmetric), "scale": s, "offset": o,
             "min": s * o, "max": s * (o + p.qmax - p.qmin)}
            for s, o in zip(p.scale, start, strict=True)
        ]  # fmt: skip

    return {
        "version": "0.6.1",
        "activation_encodings": {n: encodings(p) for n, p in grids.items()},
        "param_encodings": {},
    }


def write_1_0_0(grids: Grids) -> Any:
    return {
        "version": "1.0.0",
        "activation_encodings": [],
        "param_encodings": [
            {"name": n, "bw": bits_of(p), "dtype": "INT", "is_sym": offsets(p)[0], "scale": list(p.scale),
             "offset": offsets(p)[1], "enc_type": "PER_CHANNEL" if p.is_per_channel else "PER_TENSOR"}
            for n, p in grids.items()
        ],
    }  # fmt: skip


def write_2_0_0(grids: Grids) -> Any:
    def encoding(n: str, p: QuantParams) -> dict[str, Any]:
        e: dict[str, Any] = {
            "name": n,
            "output_dtype": p.dtype,
            "y_scale": list(p.scale) if p.is_per_channel else p.scale[0],
        }
        if any(p.zero_point):
            e["y_zero_point"] = list(p.zero_point) if p.is_per_channel else p.zero_point[0]
        return e if p.axis is None else {**e, "axis": p.axis}

    return {"version": "2.0.0", "encodings": [encoding(n, p) for n, p in grids.items()]}


def write_ppq(grids: Grids) -> Any:
    configs: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for i, (n, p) in enumerate(grids.items()):
        configs[n] = {"bit_width": 8, "state": "ACTIVATED", "quant_min": p.qmin, "quant_max": p.qmax, "hash": i}
        values[str(i)] = {"scale": p.scale[0], "zero_point": float(p.zero_point[0])}
        if p.is_per_channel:
            values[str(i)] = {"scale": list(p.scale), "zero_point": [float(z) for z in p.zero_point]}
    return {"configs": {"op": configs}, "values": values}


def write_ppl_cuda(grids: Grids) -> Any:
    def config(p: QuantParams) -> dict[str, Any]:
        lists = {"scale": list(p.scale), "zero_point": list(p.zero_point)}
        return {"quant_flag": True, "q_min": p.qmin, "q_max": p.qmax, **lists}

    return {"quant_info": {n: config(p) for n, p in grids.items()}}


def write_plain(grids: Grids) -> Any:
    def stated(p: QuantParams) -> dict[str, Any]:
        lists = {"scale": list(p.scale), "zero_point": list(p.zero_point)}
        return {"qmin": p.qmin, "qmax": p.qmax, "axis": p.axis, **lists}

    return {n: stated(p) for n, p in grids.items()}


WRITERS: list[Callable[[Grids], Any]] = [write_0_6_1, write_1_0_0, write_2_0_0, write_ppq, write_ppl_cuda, write_plain]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda w: w.__name__.removeprefix("write_"))
@given(network=nets.networks(everywhere=True, weight_low=-128))
@quick
def test_json_round_trip(writer: Callable[[Grids], Any], network: Network, tmp_path: Path) -> None:
    model, grids = float_model(network)
    got = read_back(model, json.dumps(writer(grids)), tmp_path)
    assert nets.fingerprint(got) == nets.fingerprint(nets.expected(network))


def read_back(model: onnx.ModelProto, text: str, folder: Path, name: str = "ranges.json") -> QuantGraph:
    path = folder / name
    path.write_text(text)
    graph = nets.graph_of(model)
    ranges.FRONTEND.normalize(graph, FrontendOptions(external=ranges.read(path, graph)))
    graph.diagnostics.check()
    strip(graph)
    graph.verify()
    return graph


@given(network=nets.networks(nets.symmetric_grids(), everywhere=True, weight_low=-128))
@quick
def test_tensorrt_cache_holds_activations(network: Network, tmp_path: Path) -> None:
    """Weights are then quantized from their extremes, with a warning."""
    model, grids = float_model(network)
    activations = {n: p for n, p in grids.items() if not n.endswith(".weight")}
    lines = ["TRT-8600-EntropyCalibration2"]
    lines += [f"{n}: {struct.pack('>f', p.scale[0]).hex()}" for n, p in activations.items()]
    got = read_back(model, "\n".join(lines), tmp_path, "calibration.cache")
    steps = [
        p.scale[0]
        for n, p in got.params.items()
        if got.quant is not None and not p.is_per_channel and "weight" not in n
    ]
    assert set(steps) <= {p.scale[0] for p in activations.values()}
    weights = [layer for layer in network.layers if layer.weight is not None]
    warned = [d for d in got.diagnostics if d.code == "QAT206"]
    assert bool(warned) == bool(weights)
    assert all(d.severity is Severity.WARNING for d in warned)
    for name, params in got.params.items():
        if "weight" in name:
            largest = next(t.values for t in got.tensors() if t.name == name)  # type: ignore[union-attr]
            assert np.abs(largest.astype(int)).max() == 127
            assert params.is_per_channel


def cache(grids: Grids) -> str:
    """TensorRT: float32 scales in hexadecimal."""
    lines = [f"{n}: {struct.pack('>f', p.scale[0]).hex()}" for n, p in grids.items()]
    return "\n".join(["TRT-8600-EntropyCalibration2", *lines])


def magnitudes(grids: Grids) -> str:
    """MQBench: the largest magnitude, 127 steps."""
    return "".join(f"{n}: {p.scale[0] * 127!r}\n" for n, p in grids.items())


def thresholds(grids: Grids) -> str:
    """tpu-mlir: what calibration found, the threshold of a symmetric grid."""
    lines = [f"{n} {p.scale[0] * 127!r} -9 9" for n, p in grids.items()]
    return "\n".join(["# generated time: now", "# op_name    threshold    min    max", *lines])


def tengine(grids: Grids) -> str:
    """Tengine: scale and zero point of uint8."""
    return "".join(f"{n} {p.scale[0]!r} {p.zero_point[0]}\n" for n, p in grids.items())


def trained_table(grids: Grids) -> str:
    """sophgo-mq: the trained range, asymmetric where it is."""
    ends = {n: [p.scale[0] * (e - p.zero_point[0]) for e in (p.qmin, p.qmax)] for n, p in grids.items()}
    lines = [f"{n} {max(map(abs, pair))!r} {pair[0]!r} {pair[1]!r}" for n, pair in ends.items()]
    return "\n".join(
        ["# work_mode:QAT_all_int8 #", "# op_name    threshold    min    max", *lines, "#int4_th", "#weight_scale"]
    )


def without_weights(network: Network) -> Network:
    return dataclasses.replace(network, layers=tuple(layer for layer in network.layers if layer.weight is None))


bytes_only = nets.activation_grids().filter(lambda p: p.dtype == "uint8")
full_range = nets.symmetric_grids().map(lambda p: QuantParams.per_tensor(p.scale[0], 0, "int8"))


@pytest.mark.parametrize(
    ("writer", "grids"),
    [(cache, full_range), (magnitudes, full_range), (thresholds, full_range), (tengine, bytes_only),
     (trained_table, full_range)],
    ids=lambda v: v.__name__ if callable(v) else "",
)  # fmt: skip
@given(data=st.data())
@quick
def test_text_round_trip(
    writer: Callable[[Grids], str], grids: st.SearchStrategy[QuantParams], data: st.DataObject, tmp_path: Path
) -> None:
    network = data.draw(nets.networks(grids, everywhere=True).map(without_weights).filter(lambda n: n.layers))
    model, found = float_model(network)
    got = read_back(model, writer(found), tmp_path, "table.txt")
    assert nets.fingerprint(got) == nets.fingerprint(nets.expected(network))


# -- formats, one tensor each -------------------------------------------------------------------------------------


def grid_of(text: str, folder: Path, name: str = "f.json") -> str:
    """The grid that a file gives the tensor `x` of Relu(input) = x, output = Relu(x)."""
    b = Builder()
    b.node("Relu", ["input"], "x")
    b.node("Relu", ["x"], "output")
    path = folder / name
    path.write_text(text)
    return str(ranges.read(path, nets.graph_of(nets.model_of(b, [1, 3])))["x"])


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ('{"x": [-1.0, 3.08]}', "uint8 scale 0.0160000008 zero 62"),
        ('{"x": {"min": -1.27, "max": 1.27}}', "int8[-127,127] scale 0.00999999978 zero 0"),
        ('{"x": {"tensor_min": 0, "tensor_max": 2.55}}', "uint8 scale 0.00999999978 zero 0"),
        ('{"act_quant_info": {"x": 1.27}}', "int8 scale 0.00999999978 zero 0"),
        ('{"int8_tensor_scales": {"x": 0.25}}', "int8 scale 0.25 zero 0"),
        ('{"tensorrt": {"blob_range": {"x": 1.27}}}', "int8[-127,127] scale 0.00999999978 zero 0"),
        ('{"ppl": {"x": {"step": 0.5, "zero_point": 12, "min": -6.49, "max": 1, "bit": 16, "type": "biased"}}}',
         "uint16 scale 0.5 zero 13"),
        ('{"vitis": {"x": {"scale": 0.125}}}', "int8 scale 0.125 zero 0"),
        ('{"param": {}, "output": {"x": [[8, 5]]}, "input": {}}', "int8 scale 0.03125 zero 0"),
        ('{"sophgo_tpu": {"x_8": {"bit": 8, "min": -1.28, "max": 1.27, "threshold": 1.28}}}',
         "int8 scale 0.00999999978 zero 0"),
        ('{"sophgo_tpu": {"x": {"bit": 7, "step": [0.5]}}}', "int8[-127,127] scale 0.5 zero 0"),
        ('{"activation_encodings": {"x": [{"bitwidth": 8, "min": 0.0, "max": 2.55}]}, "param_encodings": {}}',
         "uint8 scale 0.00999999978 zero 0"),
        ('{"activation_encodings": {"x": [{"bitwidth": 4, "dtype": "int", "is_symmetric": "True", "scale": 0.5,'
         ' "offset": -7, "min": -3.5, "max": 3.5}]}}', "int8[-7,7] scale 0.5 zero 0"),
        ('[{"name": "x", "output_dtype": "uint16", "y_scale": 0.5, "y_zero_point": 7}]', "uint16 scale 0.5 zero 7"),
        ("# generated time: now\n# op_name    threshold    min    max\nx_Relu 1.27 -9 9\n",
         "int8 scale 0.00999999978 zero 0"),
        ("# op_name    threshold    min    max\nx_Relu 2.55 0 9\n", "uint8 scale 0.00999999978 zero 0"),
        ("# work_mode:QAT_all_int8 #\n# op_name threshold min max\nx_Relu 1.28 -1.28 1.27\n#int4_th\n#weight_scale\n",
         "int8 scale 0.00999999978 zero 0"),
        ("# work_mode:int4_and_int8_mix #\n#int4_th\nx_Relu 0.8 -0.8 0.7\n#weight_scale\n",
         "int8[-8,7] scale 0.100000001 zero 0"),
        ("TRT-7000-MinMaxCalibration\nother: 3c010a14\nx: 3f000000\n", "int8 scale 0.5 zero 0"),
        ("input: 3.5\nx: 1.27\n", "int8 scale 0.00999999978 zero 0"),
        ("x 0.5 3\n", "uint8 scale 0.5 zero 3"),
    ],
)  # fmt: skip
def test_format(text: str, grid: str, tmp_path: Path) -> None:
    assert grid_of(text, tmp_path) == grid


def test_weights_of_a_calibration_table(tmp_path: Path) -> None:
    """Weights are named after the output of their operator, or of the Relu fused into it; biases are rounded then."""
    b = Builder()
    w = b.constant("w", np.ones((2, 3, 1, 1), np.float32))
    b.node("Conv", ["input", w, b.constant("bias", np.float32([0.1, 0.2]))], "c")
    b.node("Relu", ["c"], "output")
    model = nets.model_of(b, [1, 3, 2, 2])
    text = "# work_mode:QAT_all_int8 #\ninput 1.28 -1.28 1.27\n#int4_th\n"
    text += "#weight_scale\noutput_Relu_weight 2 0.5 0.25 2 0 0\n"
    got = read_back(model, text, tmp_path, "m_cali_table")
    shown = sorted(str(p) for p in got.params.values())
    assert shown == [
        "int32 scale 0.00249999994..0.00499999989 zero 0 axis 0 x2",
        "int8 scale 0.00999999978 zero 0",
        "int8 scale 0.25..0.5 zero 0 axis 0 x2",
    ]


def test_initializers_of_extremes(tmp_path: Path) -> None:
    """PPQ's NXP exporter: <tensor>_min and <tensor>_max in the model itself, graph inputs among others."""
    b = Builder()
    b.node("Relu", ["input"], "x")
    b.node("Relu", ["x"], "output")
    b.constant("x_min", np.float32(-1.28))
    b.constant("x_max", np.float32(1.27))
    model = nets.model_of(b, [1, 3])
    model.graph.input.append(onnx.helper.make_tensor_value_info("x_min", 1, []))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert str(ranges.read(path, nets.graph_of(model))["x"]) == "int8 scale 0.00999999978 zero 0"


def test_per_channel_axis_of_transposed_convolutions(tmp_path: Path) -> None:
    b = Builder()
    b.node("ConvTranspose", ["input", b.constant("w", np.ones((3, 3, 2, 2), np.float32))], "output")
    path = tmp_path / "e.json"
    encodings = [{"bitwidth": 8, "is_symmetric": "True", "scale": s, "offset": -128} for s in (1.0, 2.0, 3.0)]
    path.write_text(json.dumps({"param_encodings": {"w": encodings}}))
    assert ranges.read(path, nets.graph_of(nets.model_of(b, [1, 3, 2, 2])))["w"].axis == 1


@pytest.mark.parametrize(
    ("shape", "scales", "axis"),
    [
        ([1, 3, 4, 4], 4, None),  # either of two axes: none is guessed
        ([1, 3, 4, 5], 4, 2),
        (["N", "C"], 2, 1),  # a size that has a name may be any
        ([2, "C"], 2, 1),
    ],
)
def test_scales_of_an_activation_that_state_no_axis(
    tmp_path: Path, shape: list[int | str], scales: int, axis: int | None
) -> None:
    b = Builder()
    b.node("Relu", ["input"], "output")
    encodings = [{"bitwidth": 8, "is_symmetric": "True", "scale": 1.0 + s, "offset": -128} for s in range(scales)]
    path, graph = tmp_path / "e.json", nets.graph_of(nets.model_of(b, shape))
    path.write_text(json.dumps({"activation_encodings": {"input": encodings}}))
    found = ranges.read(path, graph)
    assert (found["input"].axis if found else None) == axis
    assert [d.code for d in graph.diagnostics.errors] == ([] if found else ["QAT204"])


def test_scales_of_blocks_that_no_marker_tells(tmp_path: Path) -> None:
    """AIMET 0.6.1 lists the blocks of a weight as if they were channels."""
    b = Builder()
    b.node("Gemm", ["input", b.constant("w", np.ones((4, 2), np.float32))], "output")
    path = tmp_path / "e.json"
    path.write_text(json.dumps({"param_encodings": {"w": [{"bitwidth": 4, "scale": 1.0, "offset": -8}] * 8}}))
    graph = nets.graph_of(nets.model_of(b, [1, 4]))
    ranges.read(path, graph)
    (found,) = graph.diagnostics.errors
    assert found.code == "QAT204"
    assert "blocks of weights" in str(found.hint)


def test_what_steers_an_operator_is_never_rounded(tmp_path: Path) -> None:
    b = Builder()
    scales = b.constant("scales", np.float32([1, 1, 2, 2]))
    b.node("Resize", ["input", "", scales], "output", mode="nearest")
    model = nets.model_of(b, [1, 1, 2, 2])
    got = read_back(model, '{"input": [0, 2.55], "scales": [0, 2]}', tmp_path)
    assert list(got.params) == ["input"]


def test_what_holds_no_real_numbers_is_left_alone(tmp_path: Path) -> None:
    """TensorRT's cache names every tensor, integers among them."""
    b = Builder()
    b.node("ArgMax", ["input"], "places", axis=1)
    b.node("Gather", [b.constant("table", np.float32(np.eye(4))), "places"], "rows")
    b.node("Relu", ["rows"], "output")
    got = read_back(nets.model_of(b, [1, 3]), '{"places": [0, 4], "rows": [0, 2.55]}', tmp_path)
    assert list(got.params) == ["rows"]
    (note,) = got.diagnostics
    assert (note.code, note.tensor) == ("QAT208", "places")


def test_names_of_operators_that_vanish(tmp_path: Path) -> None:
    b = Builder()
    b.node("Relu", ["input"], "r")
    b.node("Identity", ["r"], "i")
    b.node("Relu", ["i"], "output")
    got = read_back(nets.model_of(b, [1, 3]), '{"i": [0, 2.55]}', tmp_path)
    assert list(got.params) == ["r"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"z": [0, 1]}', "QAT007"),
        ("{}", "QAT007"),
        ("", "QAT007"),
        ("not a table", "QAT007"),
        ('{"x": [0, NaN]}', "QAT007"),
        ('{"x": [2, 1]}', "QAT007"),
        ('{"x": {"min": -1, "max": -2}}', "QAT007"),
        ('{"param": {}, "output": {"x": [[[], 5]]}, "input": {}}', "QAT007"),
        ('{"x": ["a", 1]}', "QAT007"),
        ('{"nnie": {"gfpq_param_dict": {}}}', "QAT103"),
        ("TRT-8600-EntropyCalibration2\nx= 12\n", "QAT007"),
        ("# work_mode:QAT #\n#weight_scale\nw_weight 3 0.1 0.2\n", "QAT007"),
        ('[{"name": "x", "output_dtype": "float8_e4m3fn", "y_scale": 1}]', "QAT103"),
        ('[{"name": "x", "output_dtype": "int4", "y_scale": [[1, 2], [3, 4]], "axis": 0, "block_size": 2}]', "QAT103"),
        ('{"activation_encodings": [], "param_encodings": [{"name": "x", "bw": 4, "enc_type": "LPBQ", "scale": [1],'
         ' "offset": [-8], "block_size": 2}]}', "QAT103"),
        ('{"activation_encodings": {"x": [3]}}', "QAT007"),
        ('{"activation_encodings": 3}', "QAT007"),
        ('[{"output_dtype": "int8", "y_scale": 1}]', "QAT007"),  # of what?
        ("[1, 2]", "QAT007"),
        ('{"quant_info": {"x": 3}}', "QAT007"),
        ('{"configs": {"layer": 3}}', "QAT007"),
    ],
)  # fmt: skip
def test_refused(text: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        grid_of(text, tmp_path)
    assert [d.code for d in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.json", '{"x": [0, NaN]}', "r.json: range is not a finite number"),
        ("r.json", "[1, 2]", "r.json: the ranges are not a mapping"),
        ("r.txt", "hello", '{"tensor": [min, max]}; docs/dialects.md lists'),
        ("r.toml", 'act = "0..127"', "give it as --quant-range "),
        ("none.json", None, "check the path"),
    ],
)
def test_what_is_wrong_names_the_file_and_what_to_do(name: str, text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CompileError) as caught:
        ranges.parse(tmp_path / name)
    assert told in str(caught.value)


def test_ranges_of_channels() -> None:
    ends = [{"bitwidth": 8, "min": -1.0, "max": 1.55}, {"bitwidth": 8, "min": -0.5, "max": 4.6}]
    (entry,) = aimet.entries({"param_encodings": {"w": ends}})
    assert entry.scale == pytest.approx((0.01, 0.02))
    assert (entry.zero_point, entry.qmin, entry.qmax) == ((100, 25), 0, 255)
    with pytest.raises(CompileError, match="some are symmetric"):
        list(aimet.entries({"param_encodings": {"w": [*ends, {"bitwidth": 8, "min": -1.27, "max": 1.27}]}}))


def test_float_encodings_are_not_quantized() -> None:
    data = {"activation_encodings": {"x": [{"bitwidth": 16, "dtype": "float"}]}, "param_encodings": {}}
    assert list(aimet.entries(data)) == []
    assert list(aimet.entries([{"name": "x", "output_dtype": "float16", "y_scale": 1.0}])) == []


def test_illegal_entries_and_unknown_names_are_findings(tmp_path: Path) -> None:
    b = Builder()
    b.node("Relu", ["input"], "output")
    path = tmp_path / "f.json"
    path.write_text('{"input": {"scale": 0.5}, "output": {"scale": -1}, "outputs": {"scale": 1}}')
    graph = nets.graph_of(nets.model_of(b, [1, 3]))
    assert list(ranges.read(path, graph)) == ["input"]
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT201", "error"), ("QAT208", "warning")]
    assert "the tensor closest to outputs is output" in str(list(graph.diagnostics)[1])


def test_nothing_given_is_said() -> None:
    b = Builder()
    b.node("Relu", ["input"], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 3]))
    assert ranges.FRONTEND.recognize(graph, "") is None
    external.normalize(graph, FrontendOptions())
    assert [d.code for d in graph.diagnostics.errors] == ["QAT101"]
    assert not any(n.op == FAKE_QUANT for n in graph.nodes)


def test_aimet_reads_encodings_alone(tmp_path: Path) -> None:
    b = Builder()
    b.node("Relu", ["input"], "output")
    graph = nets.graph_of(nets.model_of(b, [1, 3]))
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"activation_encodings": {"input": [{"bitwidth": 8, "scale": 0.5, "offset": -3}]}}))
    assert str(aimet.read(path, graph)["input"]) == "uint8 scale 0.5 zero 3"
    path.write_text('{"input": [0, 1]}')
    with pytest.raises(CompileError, match="not an AIMET encodings file"):
        aimet.read(path, graph)


@pytest.mark.parametrize(
    "text",
    [
        '{"x": [[0, 1], [2, 3]]}',
        '{"ppl": {"x": {"step": 0, "zero_point": 0, "min": -1, "bit": 8}}}',
        '{"param": {}, "output": {"x": [[8, -1e9]]}, "input": {}}',
        '{"ppl": {"x": {"step": 1, "zero_point": 0, "bit": 1e12}}}',
        '{"activation_encodings": {"x": [{"bitwidth": 1e9, "scale": 1, "offset": 0}]}}',
        '{"x": [0, 1e308]}',
    ],
)
def test_absurd_numbers_are_findings(text: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError):
        grid_of(text, tmp_path)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"scale": [0.5, 0.25, 1.0], "zero_point": [0, 1]}, "QAT204"),  # no scale is wrong
        ({"scale": [0.5, 0.0, 1.0], "zero_point": [0]}, "QAT201"),
        ({"scale": [0.5], "zero_point": [0], "qmin": 7, "qmax": -8}, "QAT204"),
        ({"scale": [0.5], "zero_point": [2**40]}, "QAT202"),
    ],
)
def test_the_code_of_an_illegal_entry_says_what_is_illegal(entry: dict[str, Any], code: str, tmp_path: Path) -> None:
    b = Builder()
    b.node("Relu", ["input"], "output")
    graph, path = nets.graph_of(nets.model_of(b, [1, 3])), tmp_path / "ranges.json"
    path.write_text(json.dumps({"input": entry}))
    assert ranges.read(path, graph) == {}
    assert [d.code for d in graph.diagnostics.errors] == [code]


def test_what_is_wrong_with_a_file_is_said_once(tmp_path: Path) -> None:
    """Several dialects read files of ranges, and each has its say; and illegal entries are no missing ones."""
    b = Builder()
    b.node("Relu", ["input"], "output")
    onnx.save(nets.model_of(b, [1, 2]), tmp_path / "model.onnx")
    texts = {
        "{": "QAT007",
        '{"input": {"scale": [0.0], "zero_point": [0], "qmin": 0, "qmax": 255, "axis": null}}': "QAT201",
    }
    for text, code in texts.items():
        (tmp_path / "ranges.json").write_text(text)
        with pytest.raises(CompileError) as caught:
            compile_model(tmp_path / "model.onnx", ranges=tmp_path / "ranges.json", output=tmp_path / "out")
        assert [d.code for d in caught.value.diagnostics] == [code]


def test_ranges_in_a_toml_file(tmp_path: Path) -> None:
    """For all activations, and one of them by name."""
    b = Builder()
    at = [b.constant("s", np.float32(0.5)), b.constant("z", np.uint8(10))]
    for x, y in (("input", "a"), ("r", "output")):
        b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, *at], f"{y}_q"), *at], y)
        if y == "a":
            b.node("Sigmoid", ["a"], "r")
    onnx.save(nets.model_of(b, [1, 2]), tmp_path / "model.onnx")
    (tmp_path / "stated.toml").write_text('act = "0..127"\n[tensors]\noutput = "0..15"\n')
    found = compile_model(
        tmp_path / "model.onnx", qat=True, quant_range=str(tmp_path / "stated.toml"), output=tmp_path / "out"
    )
    assert {(t.params.qmin, t.params.qmax) for t in found.tensors if t.params is not None} == {(0, 127), (0, 15)}
