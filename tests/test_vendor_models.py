"""The models that fuzzing starts from are sound: each compiles, or is refused by the name of its format."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qatc import CompileError, compile_model
from tests.vendor_models import vendor_models

MODELS = vendor_models()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tensorrt"])
def test_a_vendor_s_model_compiles_to_integers(tmp_path: Path, name: str) -> None:
    onnx.save(MODELS[name], tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.dialect == {"finn": "qonnx", "microsoft": "quark"}.get(name, name.split()[0])
    assert result.coverage.share in (1.0, None)


def test_another_format_is_refused(tmp_path: Path) -> None:
    onnx.save(MODELS["tensorrt"], tmp_path / "model.onnx")
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert {d.code for d in caught.value.diagnostics} == {"QAT103"}
