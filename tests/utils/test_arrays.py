"""Arrays from whatever holds them."""

import numpy as np
import pytest
import torch

from mimi_hf.utils.arrays import to_numpy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_floating_point_tensors_become_float32(dtype):
    array = to_numpy(torch.tensor([0.5, -1.0], dtype=dtype, requires_grad=True))
    assert array.dtype == np.float32 and array.tolist() == [0.5, -1.0]


def test_all_else_keeps_its_type():
    array = np.arange(3)
    assert to_numpy(array) is array
    assert to_numpy([1, 2]).tolist() == [1, 2]
    assert to_numpy(torch.tensor([1, 2], dtype=torch.int16)).dtype == np.int16
