"""A start from which a new model learns at once.

The usual initialisation knows no data: a new Mimi's audio is tens of times too loud, and it takes thousands of steps to
come down. Here every layer is scaled to unit variance on real audio, one after the other (Mishkin and Matas 2015,
arXiv:1511.06422).
"""

import torch
from torch import Tensor, nn

from mimi_hf.codec.causal_conv import CausalConv1d, CausalConvTranspose1d
from mimi_hf.codec.quantizer import QuantizerTraining
from mimi_hf.codec.seanet import ResidualBlock
from mimi_hf.codec.transformer import LayerScale

BRANCH_SCALE = 0.3  # of a residual branch beside its stream
LAYER_SCALE = 0.1


@torch.no_grad()
def initialize(model, audio: Tensor):
    """Scale each layer of a new model so that its outputs have unit variance.

    Args:
        model: a new [`MimiModel`].
        audio: Tensor, shape = (B, 1, N), speech of about unit variance.
    """
    _initialize_projections(model)
    targets = {}
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


def _rescale(target: float):
    """A hook that scales a layer, and what it has just given, to a standard deviation. Its bias starts at 0."""

    def hook(module, _inputs, outputs):
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


def _initialize_projections(model):
    """Latents pass both projections of a quantizer as their part in a subspace, unchanged there."""
    for half, _ in model.quantizer.halves():
        if half.input_proj is not None:
            nn.init.orthogonal_(half.input_proj.weight)
            half.output_proj.weight.copy_(half.input_proj.weight.transpose(0, 1))


@torch.no_grad()
def fold_scale(model, scale: float):
    """Take a factor that audio was multiplied by before the model, and divided by after it, into its weights."""
    model.encoder.layers[0].conv.weight.mul_(scale)
    last = model.decoder.layers[-1].conv
    last.weight.div_(scale)
    if last.bias is not None:
        last.bias.div_(scale)
