"""What the options of a compile are checked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from qatc import CompileError, inspect_model
from qatc.compiler.driver.keywords import COMPILE, EVALUATE, check_options

MODEL = Path(__file__).resolve().parents[3] / "samples" / "models" / "resnet8_qat.onnx"


@pytest.mark.parametrize("size", [2**63, 10**30])
def test_a_dimension_that_no_model_can_state(size: int) -> None:
    """It was a ValueError of protobuf."""
    with pytest.raises(CompileError, match=r"QAT007.*does not fit the declared") as caught:
        inspect_model(MODEL, shapes={"input": (size, 1, 16, 16)})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("wrong", [10**400, -(10**400), float("nan"), True, "1"])
def test_a_limit_is_a_number_that_a_float_holds(wrong: object) -> None:
    """Beyond it was an OverflowError."""
    for option, rules in (("tolerance", COMPILE), ("require", EVALUATE)):
        with pytest.raises(CompileError, match=f"the option {option}"):
            check_options({option: {"max_lsb": wrong}}, rules)


def test_a_symbol_that_is_pinned_is_so_in_every_input(tmp_path: Path) -> None:
    """Two inputs of N rows: one pinned to 2 rows and one of any number was no network that the file describes."""
    quantized = "\n".join(f"{i}q = QuantizeLinear({i}, s, z)\n{i}d = DequantizeLinear({i}q, s, z)" for i in "ab")
    text = (
        '<ir_version: 10, opset_import: ["" : 17]>\nnet (float[N,3] a, float[N,M] b) => (float[N,3] y)\n'
        f"<float s = {{0.1}}, uint8 z = {{128}}>\n{{\n{quantized}\ny = Add(ad, bd)\n}}"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    found = inspect_model(tmp_path / "model.onnx", shapes={"a": (2, 3)})
    assert [port.shape for port in found.inputs] == [(2, 3), (2, "M")]
    apart = inspect_model(tmp_path / "model.onnx", shapes={"a": (2, 3), "b": (1, 3)})
    assert [port.shape for port in apart.inputs] == [(2, 3), (1, 3)]
