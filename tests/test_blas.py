"""The seam to SciPy's BLAS: the same numbers as with crnn's own products, and the environment's switches."""

import os
import subprocess
import sys

import numpy as np
import pytest

from crnn import GRU, LSTM, RNN, _kernels


@pytest.fixture
def scipy_blas():
    _kernels.use_blas(True)
    yield
    _kernels.use_blas(False)


def results(layer, x, d_output):
    run = layer.forward(x)
    back = run.backward(d_output)
    return [*(run.output), *(back.input), *back.params.values()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_blas_and_own_products_agree(kind, bidirectional, dtype, scipy_blas):
    rng = np.random.default_rng(7)
    layer = kind(19, 37, 2, bidirectional=bidirectional, dtype=dtype, rng=rng)
    lengths = [9, 1, 7, 9, 4]
    x = [rng.uniform(-0.6, 0.9, (n, 19)).astype(dtype) for n in lengths]
    d = [rng.uniform(-0.6, 0.9, (n, 37 * (1 + bidirectional))).astype(dtype) for n in lengths]
    assert _kernels.blas_info()["used"] == "scipy.linalg.cython_blas"
    blas = results(layer, x, d)
    _kernels.use_blas(False)
    own = results(layer, x, d)
    assert len(blas) == len(own)
    # Two summation orders of sums of at most 74 products of numbers below 1, through 9 steps and 2 layers.
    bound = 200 * np.finfo(dtype).eps
    for a, b in zip(blas, own, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * max(1.0, float(np.abs(b).max())))


def run(**environment):
    code = "from crnn import _kernels as k; print(k.isa(), k.blas_info()['used'])"
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_environment_chooses_blas():
    assert run(CRNN_BLAS="scipy").stdout.split()[1] == "scipy.linalg.cython_blas"
    assert run(CRNN_BLAS="crnn").stdout.split()[1] == "crnn"
    refused = run(CRNN_BLAS="mine")
    assert refused.returncode != 0
    assert "CRNN_BLAS='mine': wanted 'crnn' or 'scipy'" in refused.stderr


def test_environment_chooses_the_instruction_set():
    for isa in _kernels.available_isas():
        assert run(CRNN_ISA=isa).stdout.split()[0] == isa
    refused = run(CRNN_ISA="mmx")
    assert refused.returncode != 0
    assert "CRNN_ISA='mmx'" in refused.stderr
