"""What the codec does differently while a graph of it is made: by `torch.compile`, `torch.export` or `torch.jit.trace`.

Such a graph serves other values and other lengths than those it is made with. So nothing in it may depend on a value
(checks of values stay out), and its form may not depend on a length.
"""

import torch


def is_captured() -> bool:
    """Is a graph being made of what runs now?"""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_few(most: int, steps: int, batch: int = 1) -> bool:
    """Is `batch * steps <= most`? It chooses between two forms of a computation, the one for many is right for few too.

    A graph for any number of steps takes the form for many, as a test would bind it to numbers on one side.
    """
    if is_captured():
        if torch.jit.is_tracing():
            return False
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes tenths of a second

        if not statically_known_true(steps <= most):
            return False
        # Compiled streams take single frames of any number of rows. What is exported may be bound to none.
        if torch.compiler.is_exporting():
            return statically_known_true(batch * steps <= most)
    return batch * steps <= most
