"""Calibration: the ranges that an exporter left out, from representative inputs."""
