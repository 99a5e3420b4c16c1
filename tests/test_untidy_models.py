"""What tools leave in a file changes nothing: a random network and an untidy one of the same numbers compile alike."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatc import CompileError, CompileResult, compile_model
from tests.random_models import models
from tests.untidy import REWRITES

LONG = 1000  # examples


def compiled(model: onnx.ModelProto) -> tuple[CompileResult | None, list[np.ndarray]]:
    """The compile of a model and the outputs of its sample; none where nothing in it is quantized."""
    with TemporaryDirectory() as scratch:
        onnx.save(model, Path(scratch) / "model.onnx")
        try:
            result = compile_model(Path(scratch) / "model.onnx", output=Path(scratch) / "out")
        except CompileError as error:
            if error.exit_code == 1:
                return None, []
            raise
        return result, [np.load(p) for p in sorted(Path(scratch).glob("out/samples/*/output_*.npy"))]


@pytest.mark.parametrize("name", REWRITES)
def test_an_untidy_network_is_the_tidy_one(name: str) -> None:
    long = settings().max_examples > LONG
    profile = settings() if long else settings.get_profile("qatc-short")
    compared = 0

    @settings(profile, suppress_health_check=list(HealthCheck), deadline=None, derandomize=not long)
    @given(models(dyadic=True, layers=6), st.integers(0, 2**32 - 1))
    def check(model: onnx.ModelProto, seed: int) -> None:
        nonlocal compared
        untidy = copy.deepcopy(model)
        REWRITES[name](untidy, np.random.default_rng(seed))
        tidy, wanted = compiled(model)
        result, found = compiled(untidy)
        assert (result is None) == (tidy is None)
        if result is None or tidy is None:
            return
        compared += 1
        assert result.coverage.float_macs == tidy.coverage.float_macs
        assert result.coverage.float_ops <= tidy.coverage.float_ops
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    check()
    assert compared
