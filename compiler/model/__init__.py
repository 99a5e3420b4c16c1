"""An untrusted ONNX model below the graph: its protobuf, nodes, names, tensors and shapes."""
