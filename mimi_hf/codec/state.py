"""What a stream remembers: nested tuples of tensors, batch first, of shapes that do not grow with its age.

All zeros is a stream that has not begun. So a fresh state needs no code of its own, and a row is restarted by zeroing
it. `None` stands where a layer remembers nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def map_state(function: Callable[[Tensor], Tensor], state):
    """`state` with `function` applied to each of its tensors.

    Example:

        >>> import torch
        >>> map_state(lambda tensor: tensor + 1, (torch.zeros(1), None))
        (tensor([1.]), None)
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    parts = [map_state(function, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def select_rows(rows: Tensor, state, other):
    """`state` in some rows, `other`, of the same structure, in the rest.

    Args:
        rows: Tensor, shape = (B,), bool, True for each row of `state`.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, other)
    parts = [select_rows(rows, *pair) for pair in zip(state, other, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def join_rows(states: list):
    """The state of a batch from the states of its rows."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(states)
    parts = [join_rows(list(part)) for part in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def copy_state(state):
    """A state that shares no memory with `state`: the fork of a stream."""
    return map_state(Tensor.clone, state)


def reset_rows(state, rows: Tensor):
    """`state` with the streams of some rows not begun again, the others untouched.

    Args:
        rows: Tensor, shape = (B,), bool, True for each row to restart.
    """
    return map_state(lambda tensor: tensor.masked_fill(rows.view(-1, *[1] * (tensor.dim() - 1)), 0), state)
