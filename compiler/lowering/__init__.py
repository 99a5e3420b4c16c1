"""Lowering from the quantized graph to the integer graph."""
