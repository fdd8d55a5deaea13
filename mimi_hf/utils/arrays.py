"""Arrays from whatever libraries hold them, without importing these."""

from typing import Any

import numpy as np


def to_numpy(array: Any) -> np.ndarray:
    """The numpy array of a list, an array, or a torch tensor on any device.

    A tensor may need gradients; bfloat16, which numpy lacks, becomes float32, as every floating-point type.
    """
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    return np.asarray(array)
