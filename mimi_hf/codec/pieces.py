"""Running a SEANet so that its activations stay in the cache of a CPU.

At 24 kHz the activations of a second of audio take megabytes. A few dozen frames at a time stay in the cache; one row
at a time, as blocks of a single row are views and those of several rows must be copied (see `causal_conv`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .graphs import is_captured
from .state import State, join_rows, map_state

# Frames that a SEANet takes at once on a CPU, and the number from which each row of a batch goes alone.
PIECE_FRAMES, ROW_FRAMES = 32, 8
_MOST_FRAMES = 1024  # of a batch at once, elsewhere

Layer = Callable[[Tensor, State], tuple[Tensor, State]]


def even_parts(length: int, most: int) -> list[tuple[int, int]]:
    """Start and stop of each part of `length`: as few parts as possible, of much the same size, none above `most`.

    Example:
        >>> even_parts(10, 4)
        [(0, 3), (3, 6), (6, 10)]
    """
    count = -(-length // most)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def run_in_pieces(layer: Layer, x: Tensor, state: State, frame: int, training: bool) -> tuple[Tensor, State]:
    """`layer(x, state)`, some frames at a time.

    Args:
        x: Tensor, shape = (B, F * frame, C).
        frame: steps of x in a frame.
        training: the activations are kept for the gradients anyway, so that small pieces gain nothing.
    """
    if is_captured():
        return layer(x, state)
    in_cache = x.device.type == "cpu" and not training
    if in_cache and len(x) > 1 and x.shape[1] // frame >= ROW_FRAMES:
        outputs, states = [], []
        for row in range(len(x)):
            part = map_state(lambda tensor, row=row: tensor[row : row + 1], state)
            y, part = _run(layer, x[row : row + 1], part, frame, PIECE_FRAMES)
            outputs.append(y)
            states.append(part)
        return torch.cat(outputs), join_rows(states)
    return _run(layer, x, state, frame, max(1, (PIECE_FRAMES if in_cache else _MOST_FRAMES) // len(x)))


def _run(layer: Layer, x: Tensor, state: State, frame: int, most: int) -> tuple[Tensor, State]:
    """`layer(x, state)` for at most `most` frames at a time."""
    pieces = []
    for start, stop in even_parts(x.shape[1] // frame, most):
        y, state = layer(x[:, start * frame : stop * frame], state)
        pieces.append(y)
    return (torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]), state
