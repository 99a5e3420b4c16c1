"""What the options of a compile are checked for."""

from __future__ import annotations

from pathlib import Path

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
