"""Profiles of hypothesis: `--hypothesis-profile=long` looks for an hour at what CI looks at for seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

import qatc  # noqa: F401 - before any test loads ONNX Runtime, which it keeps from reporting what it loads

settings.register_profile("long", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile(
    "qatc-short", max_examples=12, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
