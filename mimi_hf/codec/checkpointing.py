"""Gradient checkpointing (arXiv:1604.06174): layers that run again in the backward pass to spare their activations."""

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Checkpointed(Protocol):
    """A module that `PreTrainedModel.gradient_checkpointing_enable` finds by its attribute, and gives its function."""

    gradient_checkpointing: bool
    training: bool


def run_checkpointed(module: Checkpointed, layer: Callable[..., Any], *arguments: Any) -> Any:
    """`layer(*arguments)`, checkpointed where `module` was told to, is in training, and records gradients."""
    if module.gradient_checkpointing and module.training and torch.is_grad_enabled():
        checkpoint = module._gradient_checkpointing_func  # type: ignore[attr-defined]
        return checkpoint(layer, *arguments)
    return layer(*arguments)
