"""ONNX Runtime as qatc uses it, and how models choose by processor."""
