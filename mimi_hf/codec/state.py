"""What a stream remembers: nested tuples of tensors, batch first, of shapes that do not grow with its age.

All zeros is a stream that has not begun. So a fresh state needs no code of its own, and a row is restarted by zeroing
it. `None` stands where a layer remembers nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = Any  # None, a tensor, or a (named) tuple of states


def map_state(function: Callable[[Tensor], Any], state: State) -> State:
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
    return _rebuild(state, [map_state(function, part) for part in state])


def select_rows(rows: Tensor, state: State, other: State) -> State:
    """`state` in some rows, `other`, of the same structure, in the rest.

    A part of a state that has a method `select_rows(rows, other)` decides by itself.

    Args:
        rows: Tensor, shape = (B,), bool, True for each row of `state`.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, other)
    if hasattr(state, "select_rows"):
        return state.select_rows(rows, other)
    return _rebuild(state, [select_rows(rows, *pair) for pair in zip(state, other, strict=True)])


def join_rows(states: list[State]) -> State:
    """The state of a batch from the states of its rows."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(states)
    return _rebuild(first, [join_rows(list(part)) for part in zip(*states, strict=True)])


def copy_state(state: State) -> State:
    """A state that shares no memory with `state`: the fork of a stream."""
    return map_state(Tensor.clone, state)


def reset_rows(state: State, rows: Tensor) -> State:
    """`state` with some rows as before their first step, the others untouched.

    Args:
        rows: Tensor, shape = (B,), bool, True for each row to restart.
    """
    return map_state(lambda tensor: tensor.masked_fill(rows.view(-1, *[1] * (tensor.dim() - 1)), 0), state)


def _rebuild(state: State, parts: list) -> State:
    """A tuple of the same type as `state` from new parts."""
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
