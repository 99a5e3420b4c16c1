"""Golden tensors: what the files hold, that their names are safe, and that C reads the header."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from jsonschema import Draft202012Validator

from qatc import CompileError, compile_model, verify_package
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.compare.package import open_package
from qatc.compiler.golden.header import HeaderTensor, c_string, header_chunks
from qatc.compiler.golden.tensors import (
    INDEX,
    Proof,
    _readable,  # pyright: ignore[reportPrivateUsage]
    feature_maps,
    golden_tensors,
    write_proof,
)
from qatc.compiler.integer import Conv, Elementwise, IntegerGraph, Quantize, Rescale, integer_tensor
from qatc.compiler.integer import Tensor as GraphTensor
from qatc.compiler.package import schema
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.runtime.sessions import OrtEvaluator

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
ROOT = CORPUS.parent.parent
GCC = shutil.which("gcc")
HOSTILE = [
    "/",
    "..",
    "a/../../etc/passwd",
    "CON",
    "nul",
    "a" * 100_000,
    "A",
    "a",
    "\x00\x1b[31m",
    "\ud800",
    "ß" * 300,
    "name.npy",
    " ",
    "",
    '"; } /* ??/',
    "\\",
    "%n%s",
    "*/ int main(void) { return 1; }",
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "mlp.qatc"
    compile_model(
        CORPUS / "eager-u8pc__eager" / "model.onnx",
        qat=True,
        output=path,
        samples=2,
        verify=False,
        golden=True,
        golden_header=True,
    )
    return path


def index_of(package: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((package / INDEX).read_text())
    Draft202012Validator(schema("golden")).validate(document)
    return document


def test_the_index_says_what_the_files_hold(package: Path) -> None:
    opened = open_package(package)
    document = index_of(package)
    graph = opened.graph
    runs = [execute(graph, feeds, opened.profile, evaluate=OrtEvaluator()) for feeds in opened.samples]
    quantized = [n for n, t in graph.tensors.items() if t.params is not None and n in runs[0]]
    assert {t["name"] for t in document["tensors"]} == set(quantized)
    assert [t["index"] for t in document["tensors"]] == list(range(len(quantized)))
    listed = json.loads((package / "manifest.json").read_text())["files"]
    for tensor in document["tensors"]:
        assert [f["sample"] for f in tensor["files"]] == [0, 1]
        for file in tensor["files"]:
            want = runs[file["sample"]][tensor["name"]]
            value = np.load(package / file["npy"]["file"])
            np.testing.assert_array_equal(value, want)
            assert value.dtype.name == tensor["dtype"] == want.dtype.name
            assert list(value.shape) == file["shape"]
            raw = (package / file["bin"]["file"]).read_bytes()
            np.testing.assert_array_equal(np.frombuffer(raw, tensor["dtype"]).reshape(file["shape"]), want)
            for kind in ("npy", "bin"):
                digest = hashlib.sha256((package / file[kind]["file"]).read_bytes()).hexdigest()
                assert digest == file[kind]["sha256"] == listed[file[kind]["file"]]["sha256"]
    assert verify_package(package).passed


def test_without_golden_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.qatc"
    compile_model(CORPUS / "eager-u8pc__eager" / "model.onnx", qat=True, output=path, verify=False)
    assert not (path / "golden").exists()
    assert (path / "integer.json").is_file()


def test_a_header_takes_one_sample_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def computed(*given: Any, **named: Any) -> Any:
        events.append("computed")
        return execute(*given, **named)

    def chunks(tensors: Iterable[HeaderTensor]) -> Iterator[str]:
        for tensor in tensors:
            events.append(f"sample {tensor.sample}")
            yield ""

    monkeypatch.setattr("qatc.compiler.golden.tensors.execute", computed)
    monkeypatch.setattr("qatc.compiler.golden.tensors.header_chunks", chunks)
    model = CORPUS / "eager-u8pc__eager" / "model.onnx"
    compile_model(model, qat=True, output=tmp_path / "p", samples=2, verify=False, golden_header=True)
    told = [event for event, _ in itertools.groupby(events)]
    assert told == ["computed", "sample 0", "computed", "sample 1"]


@pytest.mark.parametrize("option", ["golden", "golden_header"])
def test_a_network_without_integers_has_none(tmp_path: Path, option: Any) -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (float[2,2] y)'
        " <float[2,2] w = {1, 2, 3, 4}, float s = {0.1}, int8 z = {0}>"
        " { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d) }"
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(CompileError, match="no tensor of this network is made of integers") as caught:
        compile_model(path, qat=True, output=tmp_path / "p", **{option: True})
    assert (caught.value.exit_code, caught.value.diagnostics[-1].code) == (2, "QAT007")


def test_equal_compiles_give_equal_bytes(package: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.qatc"
    compile_model(
        CORPUS / "eager-u8pc__eager" / "model.onnx",
        qat=True,
        output=again,
        samples=2,
        verify=False,
        golden=True,
        golden_header=True,
    )
    for path in sorted(p for p in package.rglob("*") if p.is_file()):
        assert (again / path.relative_to(package)).read_bytes() == path.read_bytes(), path.name


# -- names ----------------------------------------------------------------------------------------------------------
def chain(names: list[str]) -> IntegerGraph:
    """A Quantize and Rescales, one for each name."""
    params = QuantParams.per_tensor(0.5, 3)
    tensors = {"x": GraphTensor("x", "float32", (2, 2))}
    ops: list[Any] = []
    before = "x"
    for index, name in enumerate(names):
        tensors[name] = integer_tensor(name, params, (2, 2))
        kind = Rescale if index else Quantize
        ops.append(kind(f"op{index}", (before,), (name,), lo=0, hi=255))
        before = name
    return IntegerGraph("chain", ["x"], [before], ops, tensors, {}, 17)


def test_stems_are_unique_and_harmless() -> None:
    names = [n for n in HOSTILE if n]
    graph = chain(names)
    graph.verify()
    found = golden_tensors(graph, {}, dict.fromkeys(graph.tensors, 2), "channels_first")
    stems = [tensor.stem for tensor in found]
    assert len({stem.casefold() for stem in stems}) == len(names)
    assert all(re.fullmatch(r"[0-9]{4}[0-9a-z_]{0,41}", stem) for stem in stems)


def test_readable_rests() -> None:
    assert _readable("/layer1/Conv_output_0") == "_layer1_conv_output_0"
    assert _readable("..") == ""
    assert _readable("x" * 1000) == "_" + "x" * 40
    assert _readable("/pool/GlobalAveragePool_output_0_quantized") == "_globalaveragepool_output_0_quantized"
    assert _readable("layers.0/pool/GlobalAverage_output_0_quantized") == "_0_pool_globalaverage_output_0_quantized"


def test_hostile_names_reach_the_files(tmp_path: Path) -> None:
    """The whole way: package, index, header; the index has the names as they are."""
    from onnx import GraphProto, ModelProto

    from qatc.compiler.backend import Emission
    from qatc.compiler.package import PackageWriter

    names = [n for n in HOSTILE if n]
    graph = chain(names)
    emission = Emission(ModelProto(graph=GraphProto(name="none")), {})
    with PackageWriter(tmp_path / "p.qatc") as writer:
        proof = Proof(graph, get_profile("onnx"), golden=True, header=True)
        feeds = [{"x": np.arange(4, dtype=np.float32).reshape(2, 2)}]
        write_proof(writer, proof, emission, feeds, OrtEvaluator())
        document = json.loads((writer.folder / INDEX).read_text())
        Draft202012Validator(schema("golden")).validate(document)
        assert [t["name"] for t in document["tensors"]] == names
        Draft202012Validator(schema("integer")).validate(json.loads((writer.folder / "integer.json").read_text()))
        header = (writer.folder / "golden" / "golden.h").read_text("ascii")
    assert "??/" not in header
    assert header.count("*/") == header.count("/*")


# -- layout ---------------------------------------------------------------------------------------------------------
def image_graph() -> IntegerGraph:
    grid = QuantParams.per_tensor(0.1, 0)
    weight = QuantParams.per_channel([0.1, 0.2], 0, 0, "int8")
    tensors = {
        "x": integer_tensor("x", grid, (1, 3, 4, 5)),
        "w": integer_tensor("w", weight, (2, 3, 1, 1)),
        "y": integer_tensor("y", grid, (1, 2, 4, 5)),
        "z": integer_tensor("z", grid, (1, 2, 4, 5)),
        "flat": integer_tensor("flat", grid, (3, 4)),
    }
    ops = [
        Conv(
            "conv",
            ("x", "w"),
            ("y",),
            lo=0,
            hi=255,
            strides=(1, 1),
            pads=(0,) * 4,
            dilations=(1, 1),
            groups=1,
            acc_scale=(0.01, 0.02),
        ),
        Elementwise("add", ("y", "y"), ("z",), lo=0, hi=255, op="Add"),
    ]
    constants = {"w": np.ones((2, 3, 1, 1), np.int8)}
    return IntegerGraph("image", ["x", "flat"], ["z"], ops, tensors, constants, 17)


def test_channels_last() -> None:
    graph = image_graph()
    ranks = {"x": 4, "y": 4, "z": 4, "flat": 2}
    assert feature_maps(graph, ranks) == {"x", "y", "z"}
    found = {t.name: t for t in golden_tensors(graph, {}, ranks, "channels_last")}
    assert found["z"].axes == (0, 2, 3, 1)
    assert found["z"].layout == "NHWC"
    assert found["flat"].axes == (0, 1)
    assert found["flat"].layout is None
    first = {t.name: t for t in golden_tensors(graph, {}, ranks, "channels_first")}
    assert first["z"].axes == (0, 1, 2, 3)
    assert first["z"].layout == "NCHW"


def test_a_target_with_channels_last(tmp_path: Path) -> None:
    from qatc import compare_package

    text = (ROOT / "backends" / "targets" / "onnx.toml").read_text()
    target = tmp_path / "last.toml"
    target.write_text(text.replace('name = "onnx"', 'name = "last"') + '\nlayout = "channels_last"\n')
    path = tmp_path / "last.qatc"
    compile_model(
        CORPUS / "eager-u8pc__eager" / "model.onnx",
        qat=True,
        output=path,
        target=str(target),
        verify=False,
        golden=True,
    )
    document = index_of(path)
    maps = [t for t in document["tensors"] if t["layout"] == "NHWC"]
    assert maps
    opened = open_package(path)
    run = execute(opened.graph, opened.samples[0], opened.profile, evaluate=OrtEvaluator())
    for tensor in maps:
        value = np.load(path / tensor["files"][0]["npy"]["file"])
        np.testing.assert_array_equal(value, run[tensor["name"]].transpose(0, 2, 3, 1))
    assert compare_package(path, path / "golden").passed


# -- C --------------------------------------------------------------------------------------------------------------
PROGRAM = r"""
#include <stdio.h>
#include "golden.h"

int main(void)
{
    for (size_t i = 0; i < QATC_GOLDEN_COUNT; i++) {
        const qatc_golden_tensor *t = &qatc_golden_tensors[i];
        long long sum = 0;
        for (size_t k = 0; k < t->count; k++) {
            switch (t->dtype[0] == 'u' ? (int)(t->size / t->count) : -(int)(t->size / t->count)) {
            case 1: sum += (long long)(k % 97 + 1) * ((const uint8_t *)t->data)[k]; break;
            case -1: sum += (long long)(k % 97 + 1) * ((const int8_t *)t->data)[k]; break;
            case 2: sum += (long long)(k % 97 + 1) * ((const uint16_t *)t->data)[k]; break;
            case -2: sum += (long long)(k % 97 + 1) * ((const int16_t *)t->data)[k]; break;
            default: sum += (long long)(k % 97 + 1) * ((const int32_t *)t->data)[k]; break;
            }
        }
        printf("%d %s %lu %lld %a %d %d", t->sample, t->dtype, (unsigned long)t->rank, sum, (double)t->scale[0],
               (int)t->zero_point[t->channels - 1], t->axis);
        for (size_t k = 0; k < t->rank; k++) printf(" %lu", (unsigned long)t->shape[k]);
        printf("\n");
    }
    return 0;
}
"""


def compiled(folder: Path) -> list[str]:
    """What the C program reads from the header in `folder`."""
    assert GCC is not None
    (folder / "main.c").write_text(PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([GCC, *flags, "main.c", "-o", "main"], cwd=folder, check=True, capture_output=True, text=True)
    return subprocess.run([folder / "main"], check=True, capture_output=True, text=True).stdout.splitlines()


def expected_line(sample: int, value: np.ndarray, params: QuantParams) -> str:
    flat = value.reshape(-1).astype(np.int64)
    total = int(((np.arange(flat.size) % 97 + 1) * flat).sum())
    axis = -1 if params.axis is None else params.axis
    shape = "".join(f" {n}" for n in value.shape)
    scale, zero = params.scale[0].hex(), params.zero_point[-1]
    return f"{sample} {value.dtype.name} {value.ndim} {total} {scale} {zero} {axis}{shape}"


def normal(line: str) -> list[Any]:
    parts: list[Any] = line.split(" ")
    parts[4] = float.fromhex(parts[4])
    return parts


@pytest.mark.skipif(GCC is None, reason="there is no gcc")
def test_c_reads_the_header_of_a_package(package: Path, tmp_path: Path) -> None:
    shutil.copy(package / "golden" / "golden.h", tmp_path)
    lines = compiled(tmp_path)
    opened = open_package(package)
    wanted: list[str] = []
    for sample, feeds in enumerate(opened.samples):
        run = execute(opened.graph, feeds, opened.profile, evaluate=OrtEvaluator())
        for tensor in index_of(package)["tensors"]:
            params = opened.graph.params(tensor["name"])
            wanted.append(expected_line(sample, run[tensor["name"]], params))
    assert [normal(line) for line in lines] == [normal(line) for line in wanted]


@pytest.mark.skipif(GCC is None, reason="there is no gcc")
def test_c_reads_extremes_and_hostile_names(tmp_path: Path) -> None:
    tensors: list[HeaderTensor] = []
    for index, name in enumerate(HOSTILE):
        dtype = ("int8", "uint8", "int16", "uint16", "int32")[index % 5]
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        value = np.array([[low, high, 0, 1]], dtype)
        scales = [1.2e-38, 3.4e38, 0.1]
        params = QuantParams.per_channel(scales, 0, 0, dtype) if index % 2 else QuantParams.per_tensor(0.1, 0, dtype)
        tensors.append(HeaderTensor(index, f"{index:04d}", name, value, params))
    (tmp_path / "golden.h").write_text("".join(header_chunks(tensors)), "ascii")
    lines = compiled(tmp_path)
    wanted = [expected_line(t.sample, t.value, t.params) for t in tensors]
    assert [normal(line) for line in lines] == [normal(line) for line in wanted]


def test_c_strings() -> None:
    assert c_string("/conv1/Relu") == "/conv1/Relu"
    assert c_string('a"\\?\n') == "a\\042\\134\\077\\012"
    assert len(c_string("é" * 100_000)) < 4 * 201
