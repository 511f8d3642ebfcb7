"""Foreign arrays on their way into a layer, and what other libraries get: the parts that all converters share."""

from __future__ import annotations

import numpy as np
import pytest

from crnn.interop._weights import as_array, sum_biases


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "<f8"])
def test_arrays_of_either_byte_order_become_native_ones(dtype):
    given = np.array([[1.5, -2.25, 0.0], [3.0, 1e-3, -7.0]]).astype(dtype)
    array = as_array("weight", given)
    assert array.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(array, given)


def test_one_bias_is_the_sum_of_two_and_the_first_itself_where_the_second_is_zero():
    first = np.array([1.5, -0.0, -3.0], np.float32)
    zero, second = np.zeros(3, np.float32), np.array([0.25, 2.0, -1.0], np.float32)
    assert sum_biases({"bias_ih_l0": first, "bias_hh_l0": zero}, "_l0").tobytes() == first.tobytes()
    assert sum_biases({"bias_ih_l1": first, "bias_hh_l1": second}, "_l1").tolist() == [1.75, 2.0, -4.0]
