"""The backend `drpai`: what a user of DRP-AI TVM (RZ/V2H, RZ/V2N) expects, as far as it needs no closed tool.

    model.onnx                                the INT8 model, as the target onnx writes it
    drpai/stripped_fp32.onnx                  the float model without fake quantization, opset 13
    drpai/quantized_qdq.onnx                  the same model, quantized, as QDQ, opset 13
    drpai/parameters.json                     scale, zero point and range of every tensor
    drpai/preprocess.json                     how a camera image becomes the input
    input_<i>.bin                             raw little-endian float32, C order
    interpreter_out/input_<i>.bin             the same
    interpreter_out/ref_result_<i>_fp32.bin   what the integer reference makes of it

Where a folder of the vendor's tools is given, they are run on these files (`backends/drpai/vendor.py`).
"""

from __future__ import annotations

from typing import Final

from qatc.backends.drpai.arguments import translate
from qatc.backends.drpai.files import write_files
from qatc.backends.drpai.vendor import check_tools
from qatc.backends.onnx import BACKEND as ONNX
from qatc.compiler.backend import Backend, BackendOption

__all__ = ["BACKEND"]

_OPTIONS: Final = (
    BackendOption(
        "cpu_data_type",
        "float32 or float16: the element type of interpreter_out/ref_result_<i>_<type>.bin",
        ("float32", "float16"),
        "float32",
    ),
    BackendOption("quantizer_dir", "the folder of DRP-AI Quantizer: it is run on drpai/stripped_fp32.onnx"),
    BackendOption("drp_compiler_dir", "the folder of DRP-AI Translator: the vendor's compile script is run with it"),
    BackendOption("toolchain_dir", "the cross toolchain for that script"),
    BackendOption("images", "a folder of calibration images for that script"),
    BackendOption("quantization_option", "text for the vendor's quantizer, such as az True"),
)

BACKEND: Final = Backend(
    name="drpai",
    description="the files of a DRP-AI TVM deployment beside the INT8 model",
    level="integer",
    emit=ONNX.emit,
    options={**ONNX.options, **{option.name: option for option in _OPTIONS}},
    check=check_tools,
    companions=write_files,
    translate=translate,
)
