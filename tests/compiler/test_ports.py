"""The list of quantized tensors: what it says of the source is in the source."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qatc import compile_model
from qatc.compiler.ports import in_source

CORPUS = Path(__file__).resolve().parent.parent / "corpus"


@pytest.mark.parametrize(
    "case", ["fx-fbgemm-nofold__resnet8", "fx-u8pc__vit", "tfqdq-perchannel-op13__rescnn", "drpai__resnet8"]
)
def test_sources_are_names_that_a_viewer_shows(case: str, tmp_path: Path) -> None:
    path = CORPUS / case / "model.onnx"
    found = compile_model(path, qat=True, output=tmp_path / "out", verify=False).tensors
    graph = onnx.load(path).graph
    shown = {name for node in graph.node for name in (*node.input, *node.output)}
    assert {record.source for record in found} - {None} <= shown
    weights = [record.source for record in found if record.role == "weight"]
    assert len([source for source in weights if source]) > 0
    assert len({source for source in weights if source}) == len([source for source in weights if source])


@pytest.mark.parametrize(
    ("name", "source"),
    [("w", "w"), ("w_int8", "w"), ("w_int8_scaled", "w"), ("w_uint8_2", "w"), ("v_int8", None), ("bn_weight", None)],
)
def test_a_constant_made_of_another_is_called_after_it(name: str, source: str | None) -> None:
    assert in_source(name, {"w", "bn"}) == source
