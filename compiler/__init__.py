"""The compiler proper: from a QAT ONNX graph to a verified integer graph."""
