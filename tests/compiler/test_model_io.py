"""Reading hostile and malformed files: a coded error, quickly, in bounded memory; and writing graphs back."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Constant, QuantGraph
from qatc.compiler.model_io import Source, load
from qatc.compiler.runtime.sessions import RunnableModel
from qatc.compiler.shapes import infer_shapes
from tests.graphs import to_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def parsed(body: str, *, opset: int = 17, functions: str = "") -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "f" : 1]>\n'
    return onnx.parser.parse_model(header + body + functions)


def simple() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 3), ("y", 4))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def read(path: Path, model: onnx.ModelProto | bytes) -> tuple[QuantGraph, Source]:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return load(path)


def refused(path: Path, model: onnx.ModelProto | bytes | None = None) -> list[str]:
    """The codes of what is wrong with a file; refusing it takes little time and memory."""
    if model is not None:
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CompileError) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 60  # seconds on a busy machine; what is quadratic takes minutes
    assert peak < (64 << 20)
    assert caught.value.exit_code == 1
    assert len(caught.value.diagnostics) <= 25
    assert all(str(d).isprintable() or "\n" in str(d) for d in caught.value.diagnostics)
    return sorted({d.code for d in caught.value.diagnostics})


# -- files that are no models -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x00" * 4096,
        b"\xff" * 4096,
        b"PK\x03\x04" + b"\x00" * 64,
        b"<html><body>404: not found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 97781\n",
        simple().SerializeToString()[:-7],
        simple().SerializeToString()[:40],
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
    ids=["empty", "text", "zeros", "ones", "zip", "html", "lfs", "cut", "cut early", "no graph"],
)  # fmt: skip
def test_what_is_not_onnx(path: Path, content: bytes) -> None:
    assert refused(path, content) == ["QAT001"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"PK\x03\x04" + b"\x00" * 64, "a zip archive, as PyTorch's checkpoints are"),
        (b"\x80\x02\x8a\nl\xfc", "a Python pickle"),
        (b"\x1c\x00\x00\x00TFL3\x00\x00", "a TFLite file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 97781\n", "a pointer of Git LFS"),
        (b"<html><body>404: not found</body></html>", "a web page"),
    ],
)
def test_files_of_another_format_are_called_by_it(path: Path, content: bytes, found: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CompileError) as caught:
        load(path)
    assert f"{path} is {found}" in caught.value.diagnostics[0].message
    assert caught.value.diagnostics[0].hint


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.onnx") == ["QAT002"]
    assert refused(tmp_path) == ["QAT002"]
    os.mkfifo(tmp_path / "pipe.onnx")
    assert refused(tmp_path / "pipe.onnx") == ["QAT002"]


def test_files_beyond_protobuf(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)
    assert refused(path) == ["QAT001"]


@pytest.mark.parametrize(("opset", "code"), [(6, "QAT006"), (99, "QAT006"), (-1, "QAT006")])
def test_opsets_out_of_range(path: Path, opset: int, code: str) -> None:
    model = simple()
    model.opset_import[0].version = opset
    assert refused(path, model) == [code]


def test_the_newest_of_repeated_opsets_counts(path: Path) -> None:
    model = simple()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    graph, source = read(path, model)
    assert (graph.opset, graph.domains, source.opsets) == (17, {"com.microsoft": 1}, {"": 17, "com.microsoft": 1})


# -- structure --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        "g (float[2] x) => (float[2] y) { y = Add(x, ghost) }",
        "g (float[2] x) => (float[2] y) <float[2] ghost> { y = Add(x, ghost) }",
        "g (float[2] x) => (float[2] ghost) { y = Relu(x) }",
        "g (float[2] x) => (float[2] y) { y = Relu(x) \n y = Neg(x) }",
        "g (float[2] x) => (float[2] y) { x = Neg(x) \n y = Relu(x) }",
        "g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { w = Neg(x) \n y = Relu(w) }",
        "g (float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }",
        "g (float[2] x) => (float[2] y, float[2] y) { y = Relu(x) }",
        "g (float[2] x) => (float[2] y) { a = Add(x, b) \n b = Neg(a) \n y = Relu(b) }",
        "g (float[2] x) => (float[2] y) { y = Add(x, y) }",
        "g (bool c) => (float y) { y = If(c) <then_branch = a () => (float t) { t = Neg(ghost) }, "
        "else_branch = b () => (float e) { e = Constant<value = float {1.0}>() }> }",
    ],
    ids=["undefined", "only in value_info", "output never made", "made twice", "overwrites an input",
         "overwrites a constant", "inputs alike", "outputs alike", "cycle", "self cycle", "undefined in a body"],
)  # fmt: skip
def test_graphs_that_are_none(path: Path, body: str) -> None:
    assert refused(path, parsed(body)) == ["QAT004"]


def test_all_findings_come_at_once(path: Path) -> None:
    path.write_bytes(parsed("g (float[2] x) => (float[2] z) { a = Add(x, p) \n y = Add(a, q) }").SerializeToString())
    with pytest.raises(CompileError) as caught:
        load(path)
    assert [d.tensor for d in caught.value.diagnostics] == ["p", "q"]


def test_a_flood_of_findings_is_cut(path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", f"ghost{i}"], [f"y{i}"]) for i in range(50_000)]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y1", TensorProto.FLOAT, [1])
    assert refused(
        path,
        helper.make_model(helper.make_graph(nodes, "g", [port], [out]), opset_imports=[helper.make_opsetid("", 17)]),
    ) == ["QAT004"]


def test_sequences_are_not_tensors(path: Path) -> None:
    assert refused(path, parsed("g (seq(float[2]) x) => (float[2] y) { y = ConcatFromSequence<axis = 0>(x) }")) == [
        "QAT302"
    ]


def test_sparse_weights(path: Path) -> None:
    model = simple()
    model.graph.sparse_initializer.add().dims.extend([3, 4])
    assert refused(path, model) == ["QAT302"]


def test_attributes_without_a_value(path: Path) -> None:
    model = simple()
    model.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="outer")
    assert refused(path, model) == ["QAT004"]


@pytest.mark.parametrize(("opset", "told"), [(11, True), (13, False)])
def test_a_dequantizer_without_a_scale_in_an_old_opset(path: Path, opset: int, told: bool) -> None:
    """tf2onnx --tflite writes such where it would need a scale for each channel, which opset 13 brought."""
    node = helper.make_node("DequantizeLinear", ["w"], ["y"])
    weight = helper.make_tensor("w", TensorProto.INT8, [1], [3])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [], [output], [weight]))
    model.opset_import[0].version = opset
    onnx.save(model, path)
    with pytest.raises(CompileError, match=r"QAT004.*takes 2 to 3 inputs, not 1") as caught:
        load(path)
    assert ("opset 13" in (caught.value.diagnostics[0].hint or "")) == told


@pytest.mark.parametrize(("dims", "want"), [([-1, 3], [None, 3]), ([0, 3], [0, 3]), (["N", 3], ["N", 3])])
def test_free_dimensions(path: Path, dims: list[int | str], want: list[int | str | None]) -> None:
    model = simple()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))
    assert read(path, model)[0].inputs[0].shape == want


def test_negative_dimensions(path: Path) -> None:
    model = simple()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -5
    assert refused(path, model) == ["QAT004"]


# -- tensors ----------------------------------------------------------------------------------------------------------
def weight(**fields: object) -> onnx.ModelProto:
    model = simple()
    model.graph.initializer[0].CopyFrom(TensorProto(name="w", **fields))
    return model


FLOAT, STRING, INT4 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT4
HUGE = [2**31, 2**31, 2**31]


@pytest.mark.parametrize(
    "fields",
    [
        {"data_type": FLOAT, "dims": [-3, -4], "raw_data": b"\0" * 48},
        {"data_type": FLOAT, "dims": [3, 4], "raw_data": b"\0" * 47},
        {"data_type": FLOAT, "dims": [3, 4], "raw_data": b"\0" * 52},
        {"data_type": FLOAT, "dims": HUGE},
        {"data_type": FLOAT, "dims": HUGE, "raw_data": b"\0" * 48},
        {"data_type": FLOAT, "dims": HUGE, "float_data": [1.0]},
        {"data_type": FLOAT, "dims": [3, 4], "float_data": [1.0] * 11},
        {"data_type": FLOAT, "dims": [1] * 40, "raw_data": b"\0" * 4},
        {"data_type": FLOAT, "dims": [1] * 100_000, "raw_data": b"\0" * 4},
        {"data_type": 0, "dims": [1], "raw_data": b"\0" * 4},
        {"data_type": 77, "dims": [1], "raw_data": b"\0" * 4},
        {"data_type": STRING, "dims": HUGE, "string_data": [b"a"]},
        {"data_type": INT4, "dims": HUGE, "raw_data": b"\0"},
        {"data_type": INT4, "dims": [64], "raw_data": b"\0"},
    ],
)
def test_tensors_that_are_none(path: Path, fields: dict[str, object]) -> None:
    assert refused(path, weight(**fields)) == ["QAT004"]


def test_a_broken_tensor_in_an_attribute(path: Path) -> None:
    model = simple()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=TensorProto(data_type=FLOAT, dims=HUGE)))
    assert refused(path, model) == ["QAT004"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 4)])
def test_values_of_every_type(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    value = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    model = simple()
    model.graph.initializer.append(numpy_helper.from_array(value, "k"))
    model.graph.node.append(helper.make_node("Identity", ["k"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", helper.np_dtype_to_tensor_dtype(value.dtype), shape))
    node = next(n for n in read(path, model)[0].nodes if n.op == "Identity")
    found = node.inputs[0]
    assert isinstance(found, Constant)
    assert found.values.dtype == value.dtype
    np.testing.assert_array_equal(found.values, value)


# -- external data ----------------------------------------------------------------------------------------------------
def external(path: Path, location: str, **entries: str) -> onnx.ModelProto:
    """The simple model with its weight in a file, which is written beside it where the location allows."""
    (path.parent / "w.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    model = weight(data_type=FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return model


def test_external_data_are_mapped(path: Path) -> None:
    graph, source = read(path, external(path, "w.bin", offset="0", length="48"))
    values = graph.nodes[0].inputs[1].values  # type: ignore[union-attr]
    assert isinstance(values.base, np.memmap)
    assert values.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert source.size == path.stat().st_size + 48


@pytest.mark.parametrize(
    ("location", "entries"),
    [
        ("missing.bin", {}),
        ("", {}),
        ("../w.bin", {}),
        ("sub/../../w.bin", {}),
        ("/etc/passwd", {}),
        ("C:\\w.bin", {}),
        ("C:/w.bin", {}),
        ("sub\\w.bin", {}),
        ("w.bin\0", {}),
        (".", {}),
        ("w.bin/", {"length": "47"}),
        ("w.bin", {"offset": "1"}),
        ("w.bin", {"offset": "-48"}),
        ("w.bin", {"offset": str(2**70)}),
        ("w.bin", {"length": "47"}),
        ("w.bin", {"length": str(2**63)}),
        ("w.bin", {"offset": "zero"}),
        ("w.bin", {"offset": "9" * 5000}),
        ("w.bin", {"length": "-1"}),
        ("empty.bin", {}),
        ("linked.bin", {}),
        ("folder/w.bin", {}),
        ("hard.bin", {}),
        ("pipe.bin", {}),
        ("n" * 5000, {}),
    ],
)
def test_external_data_that_are_not_ours(path: Path, location: str, entries: dict[str, str]) -> None:
    folder = path.parent
    outside = folder.parent / f"{folder.name}_outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(48))
    (folder / "sub").mkdir()
    (folder / "empty.bin").touch()
    (folder / "linked.bin").symlink_to(outside / "w.bin")
    (folder / "folder").symlink_to(outside)
    (folder / "hard.bin").hardlink_to(outside / "w.bin")
    os.mkfifo(folder / "pipe.bin")
    assert refused(path, external(path, location, **entries)) == ["QAT003"]


# -- functions --------------------------------------------------------------------------------------------------------
def calling(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """A model that calls `f.a`; each function chains calls of the operators of its list ("Neg" or another function)."""
    functions = []
    for name, calls in bodies.items():
        nodes = [
            helper.make_node(op, ["x" if i == 0 else f"t{i - 1}"], ["y" if i == len(calls) - 1 else f"t{i}"],
                             domain="f" if op in bodies else "")
            for i, op in enumerate(calls)
        ]  # fmt: skip
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        functions.append(helper.make_function("f", name, ["x"], ["y"], nodes, imports))
    ports = [helper.make_tensor_value_info(n, FLOAT, [2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("a", ["x"], ["y"], domain="f")], "g", ports[:1], ports[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


def test_functions_are_replaced_by_their_bodies(path: Path) -> None:
    graph, _ = read(path, calling({"a": ["b", "Neg", "b"], "b": ["Abs", "Neg"]}))
    assert [n.op for n in graph.nodes] == ["Abs", "Neg", "Neg", "Abs", "Neg"]


@pytest.mark.parametrize("bodies", [{"a": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["Neg", "a"]}])
def test_recursive_functions(path: Path, bodies: dict[str, list[str]]) -> None:
    assert refused(path, calling(bodies)) == ["QAT004"]


def test_functions_that_explode(path: Path) -> None:
    """30 lines that would become a thousand million operators."""
    names = ["a", *(f"b{i}" for i in range(30))]
    bodies = {name: [after, after] for name, after in pairwise(names)}
    assert refused(path, calling({**bodies, names[-1]: ["Neg"]})) == ["QAT005"]


def test_functions_nested_too_deeply(path: Path) -> None:
    names = ["a", *(f"b{i}" for i in range(5000))]
    bodies = {name: [after] for name, after in pairwise(names)}
    assert refused(path, calling({**bodies, names[-1]: ["Neg"]})) == ["QAT004"]


# -- size and order ---------------------------------------------------------------------------------------------------
def chain(count: int, *, backwards: bool = False) -> onnx.ModelProto:
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    ports = [helper.make_tensor_value_info(n, FLOAT, [2]) for n in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes[::-1] if backwards else nodes, "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_deep_chain(path: Path, backwards: bool) -> None:
    start = time.process_time()
    graph, _ = read(path, chain(20_000, backwards=backwards))
    assert [n.outputs[0].name for n in graph.nodes] == [f"t{i + 1}" for i in range(20_000)]
    graph.verify()
    graph.clean()
    graph.sort()
    assert len(to_model(graph).graph.node) == 20_000
    assert time.process_time() - start < 60


def test_unsorted_nodes_keep_their_order_otherwise(path: Path) -> None:
    graph, _ = read(
        path, parsed("g (float[2] x) => (float[2] y) { y = Add(b, c) \n c = Neg(a) \n b = Abs(a) \n a = Relu(x) }")
    )
    assert [n.op for n in graph.nodes] == ["Relu", "Neg", "Abs", "Add"]


# -- what is read -----------------------------------------------------------------------------------------------------
def test_initializers_that_are_also_inputs_are_constants(path: Path) -> None:
    model = simple()
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [3, 4]))
    graph, _ = read(path, model)
    assert [t.name for t in graph.inputs] == ["x"]
    assert isinstance(graph.nodes[0].inputs[1], Constant)


def test_an_output_that_is_an_input_and_one_that_is_a_constant(path: Path) -> None:
    body = "g (float[2] x) => (float[2] x, float[2] y, float[2] w) <float[2] w = {1.0, 2.0}> { y = Relu(x) }"
    graph, _ = read(path, parsed(body))
    assert [t.name for t in graph.outputs] == ["x", "y", "w"]
    graph.verify()
    result = RunnableModel(to_model(graph)).run({"x": np.float32([-1, 1])})
    assert [result[n].tolist() for n in "xyw"] == [[-1, 1], [0, 1], [1, 2]]


def test_what_source_tells(path: Path) -> None:
    model = simple()
    model.producer_name, model.producer_version = "pytorch", "2.9"
    source = read(path, model)[1]
    assert (source.producer, dict(source.ops), dict(source.opsets)) == ("pytorch 2.9", {"MatMul": 1}, {"": 17})


# -- round trips ------------------------------------------------------------------------------------------------------
BODIES = """g (float[2] x, bool c) => (float[2] y, float[2] m) <float[2] w = {{3.0, -4.0}}> {{
    m = Mul(x, w)
    n = Neg({outer})
    y = If(c) <
        then_branch = one () => (float[2] t) {{ t = Add(m, n) }},
        else_branch = two () => (float[2] e) {{
            k = Add(n, w)
            e = If(c) <
                then_branch = three () => (float[2] u) {{ u = Relu(m) }},
                else_branch = four () => (float[2] v) {{ v = Sub(k, n) }}
            >
        }}
    >
}}"""


@pytest.mark.parametrize("condition", [True, False])
def test_names_that_bodies_capture(path: Path, condition: bool) -> None:
    """Captured tensors are inputs of the node; renaming them renames what the bodies read."""
    model = parsed(BODIES.format(outer="m"))
    feeds = {"x": np.float32([1, -2]), "c": np.asarray(condition)}
    want = RunnableModel(model).run(feeds)
    graph, _ = read(path, model)
    node = graph.nodes[-1]
    assert [t.name for t in node.inputs] == ["c", "m", "n", "w", "c"]
    for tensor in node.inputs[1:4]:
        if tensor.name != "m":
            graph.rename(tensor, f"{tensor.name}_renamed")
    got = RunnableModel(to_model(graph)).run(feeds)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_inputs_that_are_left_out_at_the_end_are_gone(path: Path) -> None:
    """A LayerNormalization with a bias of no name ends the process of ONNX Runtime 1.32, when it is optimized."""
    body = """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        n = LayerNormalization(x, w, "")
        y = If(c) <then_branch = one () => (float[2] t) { t = LayerNormalization(n, w, "") },
                   else_branch = two () => (float[2] e) { e = Clip(n, "", w) }>
    }"""
    graph, _ = read(path, parsed(body))
    assert [t.name for t in graph.nodes[0].inputs] == ["x", "w"]
    inside = {key: list(graph.nodes[1].attrs[key].node[0].input) for key in ("then_branch", "else_branch")}
    assert inside == {"then_branch": ["n", "w"], "else_branch": ["n", "", "w"]}


def test_a_body_that_returns_a_captured_tensor(path: Path) -> None:
    body = """g (float[2] x, bool c) => (float[2] y) {
        n = Neg(x)
        y = If(c) <then_branch = one () => (float[2] n) { }, else_branch = two () => (float[2] e) { e = Abs(n) }>
    }"""
    model = parsed(body)
    graph, _ = read(path, model)
    graph.rename(graph.nodes[0].outputs[0], "other")
    result = RunnableModel(to_model(graph)).run({"x": np.float32([1, -2]), "c": np.asarray(True)})
    assert result["y"].tolist() == [-1, 2]


def test_attributes_of_every_kind_come_back(path: Path) -> None:
    values: dict[str, object] = {
        "f": 0.5, "i": 3, "s": "text", "fs": [0.5, 1.5], "is": [1, 2], "ss": ["a", "b"],
        "t": numpy_helper.from_array(np.arange(4, dtype=np.int8), "t"),
    }  # fmt: skip
    node = helper.make_node("Custom", ["x", "", "x"], ["y", "", "z"], "n", domain="com.example", **values)
    ports = [helper.make_tensor_value_info(n, FLOAT, [2]) for n in "xyz"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 3)]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), opset_imports=imports)
    graph, _ = read(path, model)
    back = to_model(graph)
    assert list(back.graph.node[0].input) == ["x", "", "x"]
    assert list(back.graph.node[0].output) == ["y", "", "z"]
    found = {a.name: helper.get_attribute_value(a) for a in back.graph.node[0].attribute}
    assert numpy_helper.to_array(found.pop("t")).tolist() == [0, 1, 2, 3]  # type: ignore[arg-type]
    assert found == {"f": 0.5, "i": 3, "s": b"text", "fs": [0.5, 1.5], "is": [1, 2], "ss": [b"a", b"b"]}
    assert {i.domain: i.version for i in back.opset_import} == {"": 17, "com.example": 3}


# -- anything at all --------------------------------------------------------------------------------------------------
def corpus() -> Iterator[bytes]:
    yield simple().SerializeToString()
    yield parsed(BODIES.format(outer="m")).SerializeToString()
    yield calling({"a": ["b", "Neg", "b"], "b": ["Abs", "Neg"]}).SerializeToString()


FILES = list(corpus())


@settings(max_examples=300, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=4)), max_size=4), st.data()
)
def test_damaged_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, edits: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """Whatever is in the file, reading it and inferring shapes ends in a graph that is sound or in a CompileError."""
    damaged = bytearray(content)
    for position, replacement in edits:
        at = position % len(damaged)
        damaged[at : at + data.draw(st.sampled_from([0, len(replacement)]))] = replacement
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged)
    try:
        graph, _ = load(path)
    except CompileError as error:
        unforeseen = {d.code for d in error.diagnostics} - {"QAT001", "QAT003", "QAT004", "QAT005", "QAT006", "QAT302"}
        if unforeseen:
            raise
        return
    graph.verify(stripped=False)
    infer_shapes(graph)
    graph.dump()
    to_model(graph)
