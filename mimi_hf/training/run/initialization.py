"""Initialisation of a new model from data, so that it learns from the first step on.

The usual initialisation knows no data: the output of a new Mimi is tens of times too loud, and takes thousands of steps
to come down. Here every layer is scaled to unit variance on real audio, one after the other (Mishkin and Matas 2015,
arXiv:1511.06422).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mimi_hf.codec.causal_conv import CausalConv1d, CausalConvTranspose1d
from mimi_hf.codec.codebook_learning import QuantizerTraining
from mimi_hf.codec.seanet import ResidualBlock
from mimi_hf.codec.transformer import LayerScale
from mimi_hf.modeling_mimi import MimiModel

BRANCH_SCALE = 0.3  # of a residual branch beside its stream
LAYER_SCALE = 0.1


@torch.no_grad()
def initialize(model: MimiModel, audio: Tensor) -> None:
    """Scale each layer of a new model so that its outputs have unit variance.

    Args:
        model: a new model.
        audio: Tensor, shape = (B, 1, N), speech of about unit variance.
    """
    # The two projections of a quantizer are inverse to each other, within a subspace.
    for half, _ in model.quantizer.halves():
        if half.input_proj is not None and half.output_proj is not None:
            nn.init.orthogonal_(half.input_proj.weight)
            half.output_proj.weight.copy_(half.input_proj.weight.transpose(0, 1))
    targets: dict[nn.Module, float] = {}
    for module in model.modules():  # a residual block comes before its layers
        if isinstance(module, LayerScale):
            module.scale.fill_(LAYER_SCALE)
        elif isinstance(module, ResidualBlock):
            targets[module.block[3]] = BRANCH_SCALE
        elif isinstance(module, CausalConv1d | CausalConvTranspose1d | nn.Linear):
            targets.setdefault(module, 1.0)
    targets[model.decoder.layers[-1]] = float(audio.std())
    handles = [module.register_forward_hook(_rescale(target)) for module, target in targets.items()]
    training, options = model.training, model.quantizer.training_options
    try:
        model.train()
        model.quantizer.training_options = QuantizerTraining(enabled=False)
        model(audio, return_loss=False)
    finally:
        for handle in handles:
            handle.remove()
        model.quantizer.training_options = options
        model.train(training)


def _rescale(target: float) -> Callable[[nn.Module, Any, Any], Any]:
    """Make a hook that scales a layer, and its output, to a standard deviation, and sets its bias to 0."""

    def hook(module: Any, _inputs: Any, outputs: Any) -> Any:
        y = outputs[0] if isinstance(outputs, tuple) else outputs
        layer = module if isinstance(module, nn.Linear) else module.conv
        if layer.bias is not None:
            y = y - layer.bias
            layer.bias.zero_()
        factor = target / y.float().std().clamp(min=1e-6)
        layer.weight.mul_(factor)
        y = y * factor
        return (y, *outputs[1:]) if isinstance(outputs, tuple) else y

    return hook


@torch.no_grad()
def fold_scale(model: MimiModel, scale: float) -> None:
    """Fold a factor of the audio into the weights: multiply the input by `scale`, and divide the output by it."""
    first: Any = model.encoder.layers[0]
    first.conv.weight.mul_(scale)
    output: Any = model.decoder.layers[-1]
    last = output.conv
    last.weight.div_(scale)
    if last.bias is not None:
        last.bias.div_(scale)
