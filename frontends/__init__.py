"""Frontends: recognize an exporter's dialect and normalize it to canonical fake quantization."""
