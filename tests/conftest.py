"""Profiles of hypothesis: `--hypothesis-profile=long` looks for an hour at what CI looks at for seconds."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from qatc import __version__ as __version__  # before any test loads ONNX Runtime: it then reports nothing

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `qatc` does: before any test loads NumPy

settings.register_profile("long", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile(
    "qatc-short", max_examples=12, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
