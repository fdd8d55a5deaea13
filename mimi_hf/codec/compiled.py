"""Compiled steps for streams: one frame for every row, as fast as the machine runs it.

The steps are the model's own. This module compiles them and, on CUDA, records their kernels into a graph that is
launched at once.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from .state import State, copy_state, map_state
from .steps import Step


def compile_step(step: Step) -> Step:
    """`step(x, state) -> (y, state)`, compiled for one size of batch at first, then for any."""
    arguments: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        # Checking hundreds of weights before each frame takes as long as some layers. Without the checks, what is
        # compiled for one model must not be found by another.
        skip = torch.compiler.skip_guard_on_all_nn_modules_unsafe
        arguments = {"isolate_recompiles": True, "options": {"guard_filter_fn": skip}}
    return torch.compile(step, fullgraph=True, **arguments)


class CompiledStep:
    """One stream's use of a compiled step.

    Args:
        compiled: what [`compile_step`] made.
        plain: the same step, not compiled, where there is nothing compiled for a size of batch.
    """

    def __init__(self, compiled: Step, plain: Step) -> None:
        self.compiled = compiled
        self.plain = plain
        self.graph: _Graph | None = None

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A frame of a stream that has begun: y, and the next state, which may be the memory of this one."""
        with torch.inference_mode(False), torch.no_grad():
            # What was made in inference mode cannot be written to outside, nor compiled with other tensors.
            x, state = map_state(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, (x, state))
            if x.device.type != "cuda":
                return self._take(x, state)
            if self.graph is None or not self.graph.fits(x, state):
                self.graph = _Graph(self._take, x, state)
            return self.graph(x, state)

    def _take(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        from torch._dynamo.exc import FailOnRecompileLimitHit  # takes seconds, unless something was compiled

        try:
            return self.compiled(x, state)
        except FailOnRecompileLimitHit:
            return self.plain(x, state)


class _Graph:
    """A step recorded as a CUDA graph, with its input and state in memory of its own."""

    def __init__(self, step: Step, x: Tensor, state: State) -> None:
        self.x, self.state = x.clone(), copy_state(state)
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):  # what is compiled, tuned or allocated at first use must be there before
                step(self.x, copy_state(self.state))
        here.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.y, new = step(self.x, self.state)
            _write(self.state, new)

    def fits(self, x: Tensor, state: State) -> bool:
        """Was it recorded for such inputs?"""
        return _form((self.x, self.state)) == _form((x, state))

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.x.copy_(x)
        _write(self.state, state)
        self.graph.replay()
        return self.y.clone(), self.state


def _form(tree: State) -> list[tuple]:
    """Shapes, dtypes and devices of the tensors of a tree, in order."""
    form: list[tuple] = []
    map_state(lambda tensor: form.append((tensor.shape, tensor.dtype, tensor.device)), tree)
    return form


def _write(state: State, new: State) -> None:
    """Copy the tensors of `new` into those of `state`, where they are not these already."""
    tensors: list[Tensor] = []
    map_state(tensors.append, state)
    targets = iter(tensors)

    def write(tensor: Tensor) -> None:
        target = next(targets)
        if target.data_ptr() != tensor.data_ptr():
            target.copy_(tensor)

    map_state(write, new)
