"""8-bit weights: a quarter of the memory to read per live frame.

Each row of a weight matrix is stored as integers from -127 to 127 and one scale, symmetric around zero; activations
stay floats, so that nothing depends on what else is in a batch. Small convolutions, whose products are not bound by
reading weights, and the codebooks stay as they are.

Scales are rounded to half precision before the weights are divided by them: they are exact in any dtype, and are kept
in the one that torch's kernel reads.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .codec.causal_conv import CausalConv1d, CausalConvTranspose1d

METHOD = "mimi_int8"
logger = logging.get_logger(__name__)


class MimiInt8Config(QuantizationConfigMixin):
    """8-bit weights, for `from_pretrained(…, quantization_config=MimiInt8Config())`.

    What is saved from such a model holds the 8-bit weights, and loads as any other model does.

    Args:
        min_size: weights of fewer entries stay floats.
    """

    def __init__(self, min_size: int = 2**18, quant_method: str = METHOD) -> None:
        if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
            raise ValueError(f"min_size={min_size!r} must be a positive integer, a number of entries of a weight.")
        super().__init__(quant_method=METHOD)  # pyright: ignore[reportArgumentType]  # one of our own
        self.min_size = min_size


class MimiInt8Quantizer(HfQuantizer):
    """Tells transformers how to load 8-bit weights and how to make them."""

    @property
    def min_size(self) -> int:
        """Weights of fewer entries stay floats."""
        return cast(MimiInt8Config, self.quantization_config).min_size

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if getattr(model.config, "model_type", None) != "mimi":
            raise ValueError(
                f"MimiInt8Config is for MimiModel alone, not for {type(model).__name__}. Load that without it, and put"
                " a MimiModel that was loaded with it in the place of its codec."
            )
        if self.pre_quantized:  # what is to be filled has the type and the names of what was saved
            for module, order in quantizable(model, self.min_size):
                _set_weight(module, *quantize(module.weight, order))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model.arrange_weights()
        if not self.pre_quantized:
            found = list(quantizable(model, self.min_size))
            if not found:
                logger.warning(
                    "No weight of this model is large enough to be worth 8 bits: all stay floats. Lower min_size of"
                    " MimiInt8Config to store smaller ones so."
                )
            for module, order in found:
                _set_weight(module, *quantize(module.weight, order))
        return model

    @torch.no_grad()
    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        if not isinstance(dtype, torch.dtype):  # saving a model leaves a name in its config
            dtype = model.dtype
        for module, order in quantizable(model, self.min_size):
            weight = dequantize(module.weight, module.weight_scale, order).to(dtype)
            del module.weight_scale
            module.weight = nn.Parameter(weight)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def quantizable(model: nn.Module, min_size: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The modules to store in integers, each with the dimensions of its weight, those of its scale first."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            holder, order = module, (0, 1)
        elif isinstance(module, CausalConv1d) or (isinstance(module, CausalConvTranspose1d) and module.groups == 1):
            holder, order = module.conv, module.memory_order
        else:
            continue
        if holder.weight.numel() >= min_size:
            yield holder, order


@torch.no_grad()
def quantize(weight: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Integers of the shape and memory format of `weight`, and the scale of each of its rows.

    Args:
        weight: Tensor of floats.
        order: its dimensions in the order of memory. Those that a product sums over, which share a scale, are the last
            one, and where the outputs come first, all but the first.

    Returns:
        Tensor, int8, and Tensor, bfloat16, its shape that of the dimensions which are not summed over.
    """
    rows = weight.permute(order).float()
    summed = _summed(order)
    # Half precision has 8 significant bits; 127 steps must still reach the largest weight.
    scale = (rows.abs().amax(dim=summed, keepdim=True) / 127 * (1 + 2**-8)).bfloat16().float()
    integers = (rows / scale.clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8)
    return integers.permute(_inverse(order)), scale.squeeze(summed).bfloat16()


def dequantize(integers: Tensor, scale: Tensor, order: tuple[int, ...]) -> Tensor:
    """The floats that [`quantize`] made integers of, as near as these come."""
    rows = integers.permute(order).float()
    scale = scale.float().view(*scale.shape, *[1] * len(_summed(order)))
    return (rows * scale).permute(_inverse(order))


def _summed(order: tuple[int, ...]) -> tuple[int, ...]:
    # A transposed convolution has its input channels last and its kernel first: each of its taps has rows of its own.
    return tuple(range(1, len(order))) if order[0] == 0 else (len(order) - 1,)


def _inverse(order: tuple[int, ...]) -> list[int]:
    return [order.index(dimension) for dimension in range(len(order))]


def _set_weight(module: nn.Module, integers: Tensor, scale: Tensor) -> None:
    module.weight = nn.Parameter(integers, requires_grad=False)
    module.register_buffer("weight_scale", scale)


# As calls: decorators would hide the classes from type checkers.
register_quantization_config(METHOD)(MimiInt8Config)
register_quantizer(METHOD)(MimiInt8Quantizer)

__all__ = ["MimiInt8Config"]
