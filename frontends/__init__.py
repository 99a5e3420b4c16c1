"""The dialects of the exporters, one file or folder each, and in `common` what several of them share.

See `compiler/frontend.py` for what a frontend is. `tf` converts TensorFlow's own files; `torch_qat` and `tf_qat` train.
"""

from typing import Final

# name -> where its `Frontend` value is; imported when it is asked for
BUILTIN: Final[dict[str, str]] = {
    "pytorch": "qatc.frontends.pytorch:FRONTEND",
    "tensorflow": "qatc.frontends.tensorflow:FRONTEND",
    "qonnx": "qatc.frontends.qonnx:FRONTEND",
    "mqbench": "qatc.frontends.mqbench:FRONTEND",
    "sophgo": "qatc.frontends.sophgo:FRONTEND",
    "mct": "qatc.frontends.mct:FRONTEND",
    "horizon": "qatc.frontends.horizon:FRONTEND",
    "ascend": "qatc.frontends.ascend:FRONTEND",
    "openvino": "qatc.frontends.openvino:FRONTEND",
    "modelopt": "qatc.frontends.modelopt:FRONTEND",
    "quark": "qatc.frontends.quark:FRONTEND",
    "qoperator": "qatc.frontends.qoperator:FRONTEND",
    "aimet": "qatc.frontends.aimet:FRONTEND",
    "ranges": "qatc.frontends.ranges:FRONTEND",
}
