import os

from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.quant_utils import QuantFormat, QuantType

def quantize_static(
    model_input: str | os.PathLike[str],
    model_output: str | os.PathLike[str],
    calibration_data_reader: CalibrationDataReader,
    quant_format: QuantFormat = ...,
    *,
    per_channel: bool = ...,
    weight_type: QuantType = ...,
) -> None: ...
