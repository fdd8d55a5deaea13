"""Gradient checkpointing (arXiv:1604.06174): layers that run again in the backward pass to spare their activations."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Checkpointed(Protocol):
    """A module that `PreTrainedModel.gradient_checkpointing_enable` finds by its attribute, and gives its function."""

    gradient_checkpointing: bool
    training: bool


def run_checkpointed(module: Checkpointed, layer: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
    """`layer(x, *arguments)`, checkpointed where `module` was told to, and is in training.

    A layer whose input has no gradient, such as the first, keeps its activations: checkpointing that is reentrant would
    give its weights none.
    """
    if module.gradient_checkpointing and module.training and torch.is_grad_enabled() and x.requires_grad:
        return module._gradient_checkpointing_func(layer, x, *arguments)  # type: ignore[attr-defined]
    return layer(x, *arguments)
