"""Models that leave the sizes of their inputs open compile: the samples have sizes that the model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from qatc import compile_model
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.result import Port
from qatc.compiler.samples import sizes_to_try
from tests.graphs import net

WEIGHT = "int8[1,1,2,2] wq = {1, -2, 3, 100}, float[1] ws = {0.5}, int8[1] wz = {0}"


def written(folder: Path, body: str, constants: str = WEIGHT) -> Path:
    text = net('(float["N",1,"h","w"] x) => (float[] y)', body, constants)
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_the_first_common_size_that_runs_is_taken(tmp_path: Path) -> None:
    halved = "a = A(x)\nw = DequantizeLinear<axis = 0>(wq, ws, wz)\nc = Conv<strides = [2, 2]>(a, w)\ny = B(c)"
    result = compile_model(written(tmp_path, halved), qat=True, output=tmp_path / "out")
    assert result.islands == ()
    assert [d.message for d in result.diagnostics if d.code == "QAT009"] == [
        "the model leaves sizes of its inputs open; the samples have x [1, 1, 64, 64]"
    ]
    assert result.inputs[0].shape == ("N", 1, "h", "w")
    assert np.load(tmp_path / "out/samples/0/output_0.npy").shape == (1, 1, 32, 32)


def test_sizes_that_do_not_run_are_passed_over(tmp_path: Path) -> None:
    added = "p = Add(x, table)\na = A(p)\nr = Relu(a)\ny = A(r)"
    table = f"float[1,1,16,16] table = {{{', '.join(['0.5'] * 256)}}}"
    result = compile_model(written(tmp_path, added, table), qat=True, output=tmp_path / "out")
    assert any("[1, 1, 16, 16]" in d.message for d in result.diagnostics)


def test_where_none_runs_the_dimensions_to_pin_are_named(tmp_path: Path) -> None:
    table = f"float[1,1,1,11] table = {{{', '.join(['0.5'] * 11)}}}, int64[4] shape = {{-1, 1, 7, 11}}"
    path = written(tmp_path, "r = Reshape(x, shape)\np = Add(r, table)\na = A(p)\nr2 = Relu(a)\ny = A(r2)", table)
    with pytest.raises(CompileError) as caught:
        compile_model(path, qat=True, output=tmp_path / "out")
    assert [d.code for d in caught.value.diagnostics] == ["QAT009"]
    result = compile_model(path, qat=True, output=tmp_path / "out", shapes={"x": [1, 1, 7, 11]})
    assert result.package is not None


def test_what_is_known_is_kept() -> None:
    ports = [Port("x", "float32", (None, 3, "h", "w")), Port("ids", "int64", ("n", 12))]
    first = next(iter(sizes_to_try(ports, {})))
    assert dict(first) == {"x": [1, 3, 64, 64]}
    pinned = {"x": [2, 3, 8, 8]}
    assert [dict(s) for s in sizes_to_try(ports, pinned)] == [pinned]
    assert [dict(s) for s in sizes_to_try([Port("y", "float32", ("n", "n"))], {})] == [{}]
