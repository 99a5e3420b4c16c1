"""TensorFlow's own files as ONNX: `importer` starts a process, and what that runs is the rest."""
