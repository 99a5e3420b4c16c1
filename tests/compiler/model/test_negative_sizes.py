"""Sizes below zero in front of a Slice end no process."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import onnx.shape_inference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc import CompileError, compile_model
from qatc.compiler.model.negative_sizes import up_to_negative_slice
from tests.graphs import net

_CUT = "int64[1] start = {1}, int64[1] end = {-1}, int64[1] axis = {3}"
_BELOW = (
    "int64[8] cuts = {0, 0, 0, 0, 0, 0, 0, -9}, float[4] less = {1.0, 1.0, 1.0, -1.0}, int64[4] below = {-5, 1, 1, 1}"
)
_WEIGHT = f"float[2,1,5,5] w = {{{', '.join(['0.5'] * 50)}}}"


def _model(body: str, shape: str = "1,1,3,3") -> onnx.ModelProto:
    constants = f"{_CUT}, {_BELOW}, {_WEIGHT}"
    return onnx.parser.parse_model(net(f"(float[{shape}] x) => (float[a,b,c,d] y)", body, constants))


@pytest.mark.parametrize(
    "shrinking",
    [
        "Pad(x, cuts)",
        "Conv(x, w)",
        "MaxPool<kernel_shape = [1, 6]>(x)",
        "AveragePool<kernel_shape = [1, 2], dilations = [1, 9]>(x)",
        "LpPool<kernel_shape = [1, 6], pads = [0, 1, 0, 0]>(x)",
        "ConvTranspose<pads = [0, 9, 0, 9]>(x, w)",
        "Resize(x, , less)",
        "Expand(x, below)",
    ],
)
@pytest.mark.parametrize("between", ["", "r = Relu(r)", "r = Slice(r, start, start, start)"])
def test_nodes_from_such_a_slice_on_are_left_out(shrinking: str, between: str) -> None:
    body = f"r = {shrinking}\n{between.replace('r =', 's =') or 's = Identity(r)'}\ny = Slice(s, start, end, axis)"
    model = _model(body)
    whole = [n.op_type for n in model.graph.node]
    kept = [n.op_type for n in up_to_negative_slice(model, data_prop=False, trial=True).graph.node]
    assert kept == whole[: whole.index("Slice")]


@pytest.mark.parametrize("body", ["y = Slice(x, start, end, axis)", "r = Conv(x, w)\ny = Slice(r, start, end, axis)"])
def test_a_model_of_sizes_that_fit_is_left_alone(body: str) -> None:
    model = _model(body, "1,1,9,9")
    assert up_to_negative_slice(model, data_prop=True) is model


_SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=2)


@settings(max_examples=300)
@given(
    op=st.sampled_from(["MaxPool", "AveragePool", "LpPool"]),
    size=st.integers(1, 5),
    auto_pad=st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    kernel=_SIZES,
    others=st.fixed_dictionaries(
        {"strides": _SIZES},
        optional={"dilations": _SIZES, "pads": st.lists(st.integers(0, 3), min_size=4, max_size=4)},
    ),
)
def test_windows_that_are_held_to_fit_leave_no_size_below_zero(
    op: str, size: int, auto_pad: str, kernel: list[int], others: dict[str, list[int]]
) -> None:
    """The Slice stays where inference alone finds nothing wrong in front of it, and goes where it does."""
    attrs = ", ".join(f"{name} = {value}" for name, value in {"kernel_shape": kernel, **others}.items())
    window = f'{op}<auto_pad = "{auto_pad}", {attrs}>(x)'
    model = _model(f"r = {window}\ny = Slice(r, start, end, axis)", f"1,1,{size},{size}")
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.node[1:]
    del alone.graph.output[:]
    alone.graph.output.add(name="r")
    found = onnx.shape_inference.infer_shapes(alone).graph.output[0].type.tensor_type.shape.dim
    below = any(d.dim_value < 0 for d in found)
    assert (len(up_to_negative_slice(model, data_prop=False, trial=True).graph.node) == 1) == below


def test_dynamic_sizes_that_one_is_too_little_for(tmp_path: Path) -> None:
    """The sizes that samples have are found by trying: 1 comes first."""
    body = "a = A(x)\nk = D(w)\nc = Conv(a, k)\nd = A(c)\ny = Slice(d, start, end, axis)"
    onnx.save(_model(body, "N,1,H,W"), tmp_path / "m.onnx")
    result = compile_model(tmp_path / "m.onnx", qat=True, output=tmp_path / "out")
    assert result.coverage.share == 1


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    body = "a = A(x)\nr = Pad(a, cuts)\ns = Slice(r, start, end, axis)\ny = A(s)"
    onnx.save(_model(body), tmp_path / "m.onnx")
    with pytest.raises(CompileError, match="a size before it is below zero") as caught:
        compile_model(tmp_path / "m.onnx", qat=True, output=tmp_path / "out")
    (found,) = caught.value.diagnostics
    assert (found.code, found.node) == ("QAT004", "Slice -> s")


@pytest.mark.parametrize("op", ["Expand(x, text)", "Tile(x, text)", "Pad(x, text)", "Resize(x, , text)"])
def test_a_text_for_sizes_is_inferences_to_refuse(op: str) -> None:
    """It was compared with 0, which ended in an exception of Python's."""
    text = onnx.TensorProto(name="text", data_type=onnx.TensorProto.STRING, dims=[1], string_data=[b"wide"])
    model = _model(f"r = {op}\ny = Slice(r, start, end, axis)")
    model.graph.initializer.append(text)
    assert up_to_negative_slice(model, data_prop=False) is model
