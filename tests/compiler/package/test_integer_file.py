"""integer.json: any graph comes back as it was, from a package alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from jsonschema import Draft202012Validator
from onnx import TensorProto

from qatc import compile_model, verify_package
from qatc.compiler.compare.package import open_package
from qatc.compiler.integer import Conv, Float, IntegerGraph, Move, Quantize, Rescale, integer_tensor
from qatc.compiler.integer import Tensor as GraphTensor
from qatc.compiler.package import dump_json, integer_file, schema
from qatc.compiler.package.integer_file import TRANSFORMS, integer_document, read_integer_graph, transformed
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import OrtEvaluator
from tests.graphs import net

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
MODELS = ["fx-u8pc__vit", "tfmot-op13__acts_mix", "drpai__resnet8", "ort-qdq__shared", "tfmot-op13__w4_perchannel"]


def through_json(graph: IntegerGraph, initializers: dict[str, Any] | None = None) -> IntegerGraph:
    document, stored = integer_document(graph, {}, initializers or {}, "channels_first")
    size = max((start + value.nbytes for start, value in stored), default=0)
    data = np.zeros(size, np.uint8)
    for start, value in stored:
        data[start : start + value.nbytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    parsed = json.loads(dump_json(document))
    Draft202012Validator(schema("integer")).validate(parsed)
    return read_integer_graph(parsed, initializers or {}, data).graph


def same(first: IntegerGraph, second: IntegerGraph) -> None:
    assert first.dump() == second.dump()
    assert first.constants.keys() == second.constants.keys()
    for name, value in first.constants.items():
        other = second.constants[name]
        assert (value.dtype, value.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(value, other)
    for one, two in zip(first.ops, second.ops, strict=True):
        assert type(one) is type(two)
        for key, value in vars(one).items():
            if key == "attrs":
                assert set(value) == set(two.attrs)  # type: ignore[attr-defined]
            else:
                assert value == getattr(two, key), key


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_of_a_package_computes_what_the_compile_meant(model: str, tmp_path: Path) -> None:
    path = tmp_path / "p.qatc"
    compile_model(CORPUS / model / "model.onnx", qat=True, output=path, verify=False, golden=True)
    opened = open_package(path)
    same(opened.graph, through_json(opened.graph))
    run = execute(opened.graph, opened.samples[0], opened.profile, evaluate=OrtEvaluator())
    index = json.loads((path / "golden" / "index.json").read_text())
    assert index["tensors"]
    for tensor in index["tensors"]:
        np.testing.assert_array_equal(np.load(path / tensor["files"][0]["npy"]["file"]), run[tensor["name"]])
    stored = (path / "integer.bin").stat().st_size if (path / "integer.bin").exists() else 0
    assert stored <= (path / "model.onnx").stat().st_size


def every_kind_of_attribute() -> IntegerGraph:
    grid = QuantParams.per_tensor(0.1, 3, "uint8", 3, 200)
    wide = QuantParams.per_channel([0.1, 1e-30, 3.0], 1, [0, 1, -1], "int8")
    body = onnx.helper.make_graph([], "body", [], [])
    attrs: dict[str, Any] = {
        "number": 3,
        "real": 0.1,
        "text": "nearest",
        "bytes": b"\xff\x00",
        "ints": [1, 2, 3],
        "reals": [0.5, 1e-45],
        "texts": ["a", "b"],
        "none": None,
        "empty": [],
        "tensor": np.arange(6, dtype=np.int64).reshape(2, 3),
        "graph": body,
        "numpy": np.int64(7),
        "inf": float("inf"),
    }
    tensors = {
        "x": GraphTensor("x", "float32", ("N", None, 3)),
        "q": integer_tensor("q", grid, ("N", None, 3), "from the source"),
        "p": integer_tensor("p", wide),
        "f": GraphTensor("f", "float32"),
        "\ud800\x00": integer_tensor("\ud800\x00", grid),
    }
    ops = [
        Quantize("quantize", ("x",), ("q",), lo=3, hi=200, source="node"),
        Move("move", ("q", ""), ("p",), op_type="Odd", attrs={k: attrs[k] for k in ("ints", "tensor", "none")}),
        Float("float", ("x", "c"), ("f",), op_type="If", attrs=attrs, reason="a reason", domain="com.example"),
        Rescale("rescale", ("q",), ("\ud800\x00",), lo=3, hi=200),
    ]
    constants: dict[str, np.ndarray] = {
        "c": np.array(["text", "more"], object),
        "scalar": np.float32(0.5).reshape(()),
        "bool": np.array([True, False]),
        "half": np.array([1.5], np.float16),
        "none": np.zeros((0, 3), np.int8),
        "long": np.array([2**62], np.int64),
    }
    return IntegerGraph("odd", ["x"], ["f"], ops, tensors, constants, 17, {"com.example": 2})


def test_every_kind_of_attribute_and_constant() -> None:
    graph = every_kind_of_attribute()
    graph.verify()
    again = through_json(graph)
    same_but_attributes = [
        (one, two) for one, two in zip(graph.ops, again.ops, strict=True) if isinstance(one, (Move, Float))
    ]
    for one, two in same_but_attributes:
        for key, value in one.attrs.items():
            if value is None:
                assert key not in two.attrs
                continue
            other = two.attrs[key]
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, other)
            elif key == "reals":
                np.testing.assert_array_equal(np.float32(value), np.float32(other))
            elif key != "empty":
                assert value == other, key
            else:
                assert list(other) == []
    assert (again.opset, again.domains, again.inputs, again.outputs) == (17, {"com.example": 2}, ["x"], ["f"])
    assert again.tensors == graph.tensors
    for name, value in graph.constants.items():
        np.testing.assert_array_equal(value, again.constants[name])
        assert value.dtype == again.constants[name].dtype


def weight_graph(weight: np.ndarray) -> IntegerGraph:
    grid = QuantParams.per_tensor(0.1, 0)
    tensors = {
        "x": integer_tensor("x", grid, (1, 3, 4, 4)),
        "w": integer_tensor("w", QuantParams.per_tensor(0.1, 0, weight.dtype.name), weight.shape),
        "y": integer_tensor("y", grid, (1, weight.shape[0], 4, 4)),
    }
    op = Conv(
        "conv",
        ("x", "w"),
        ("y",),
        lo=0,
        hi=255,
        strides=(1, 1),
        pads=(0,) * 4,
        dilations=(1, 1),
        groups=1,
        acc_scale=(0.01,),
    )
    return IntegerGraph("conv", ["x"], ["y"], [op], tensors, {"w": weight}, 17)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_constants_that_the_model_holds_in_another_form(transform: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (8, 3, 1, 1)).astype(np.int8)
    held = weight
    if transform.endswith("flip"):
        held = (held.view(np.uint8) ^ np.uint8(0x80)).view(np.uint8)
    if transform.startswith("transpose"):
        held = np.ascontiguousarray(held.reshape(8, 3).T)
    others = {f"other{i}": (lambda i=i: rng.integers(-128, 128, (8, 3)).astype(np.int8)) for i in range(3)}
    initializers = {**others, "held": lambda: held}
    document, stored = integer_document(weight_graph(weight), {}, initializers, "channels_first")
    (constant,) = document["constants"]
    assert (constant["initializer"], constant["transform"]) == ("held", transform)
    assert not stored
    made = transformed(held, transform, weight.dtype, weight.shape)
    assert made is not None
    np.testing.assert_array_equal(made, weight)


def test_constants_that_the_model_lacks_are_stored() -> None:
    weight = np.arange(24, dtype=np.int8).reshape(8, 3, 1, 1)
    document, stored = integer_document(weight_graph(weight), {}, {"w": lambda: weight + 1}, "channels_first")
    assert document["constants"][0]["offset"] == 0
    assert stored[0][1] is weight


TABLE = {"kind": "Lookup", "name": "table", "source": "", "outputs": ["y"], "lo": 0, "hi": 255, "function": "Relu"}
BROKEN = {
    "kind": lambda d: d["operators"][0].update(groups="x", extra=1),
    "field": lambda d: d["operators"][0].pop("groups"),
    "order": lambda d: d["inputs"].clear(),
    "tensor": lambda d: d["tensors"].pop(),
    "offset": lambda d: d["constants"][0].update(offset=1 << 40),
    "scale": lambda d: d["tensors"][0]["params"].update(scale=[1e-60]),
    "clamp": lambda d: d["operators"][0].update(hi=999),
    "dtype": lambda d: d["constants"][0].update(dtype="object"),
    "output": lambda d: d["constants"].append({**d["constants"][0], "name": d["outputs"].append("c") or "c"}),
    "operands": lambda d: d["operators"].__setitem__(0, {**TABLE, "inputs": ["x"]}),
    "table": lambda d: d["operators"].__setitem__(0, {**TABLE, "inputs": ["x", "w"]}),
    "unknown dtype": lambda d: d["constants"][0].update(dtype="int7"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_contradict_themselves(how: str) -> None:
    graph = weight_graph(np.arange(24, dtype=np.int8).reshape(8, 3, 1, 1))
    document, _ = integer_document(graph, {}, {}, "channels_first")
    parsed = json.loads(dump_json(document))
    BROKEN[how](parsed)
    with pytest.raises(ValueError, match=r"."):
        read_integer_graph(parsed, {}, np.zeros(24, np.uint8))


@pytest.mark.parametrize("harm", ["outside", "without data"])
def test_a_tensor_in_the_file_holds_its_data(harm: str) -> None:
    """A package from a stranger does not make us read a file of the working directory."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1 << 40])
    if harm == "outside":
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret.bin")
    stored = base64.b64encode(tensor.SerializeToString()).decode()
    attribute = base64.b64encode(onnx.helper.make_attribute("k", tensor).SerializeToString()).decode()
    entry = {"name": "t", "dtype": "float32", "shape": [4], "tensor": stored}
    with pytest.raises(ValueError, match=r"in another file|bytes of data|elements but"):
        integer_file._constant(entry, {}, np.zeros(0, np.uint8))  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ValueError, match=r"in another file|bytes of data|elements but"):
        integer_file._value({"onnx": attribute})  # pyright: ignore[reportPrivateUsage]


def test_a_network_of_random_numbers_is_a_package(tmp_path: Path) -> None:
    """An operator without inputs was an IndexError of the compile, or a package that is none."""
    body = """
        r = RandomNormal<shape = [4, 8], seed = 1.0>()
        a = A(r)
        b = A(x)
        y = Add(a, b)
        z = RandomUniform<shape = [2], seed = 1.0>()
    """
    model = onnx.parser.parse_model(net("(float[4, 8] x) => (float[4, 8] y, float[2] z)", body))
    onnx.save(model, tmp_path / "net.onnx")
    package = compile_model(tmp_path / "net.onnx", qat=True, output=tmp_path / "p", verify=False).package
    assert package is not None
    found = verify_package(package)
    assert not [d for d in found.diagnostics if d.code == "QAT502"]
