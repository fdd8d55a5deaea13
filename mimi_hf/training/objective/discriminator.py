"""The discriminator, which tells real audio from a codec's: convolutions on spectrograms of several resolutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from mimi_hf.codec.losses import FLOOR, stft
from mimi_hf.configuration_mimi import is_size
from mimi_hf.utils.option_checks import check_option


class MimiDiscriminatorConfig(PreTrainedConfig):
    """The sizes of a [`MimiDiscriminator`]. The defaults are EnCodec's (arXiv:2210.13438, section 3.4) at 24 kHz.

    Args:
        sampling_rate (int): samples per second of the audio. For information: nothing is computed from it.
        audio_channels (int): 1 for mono, 2 for stereo.
        windows (list[int]): samples of the STFT's window at each scale, multiples of 4.
        filters (int): channels of each convolution.
        kernel_size (list[int]): taps of the first convolutions, over time and over frequency; odd.
        dilations (list[int]): over time, of the convolutions after the first.
        stride (int): over frequency, of the convolutions after the first.
        negative_slope (float): of the leaky rectifiers.
        compression (float): exponent of the spectrogram's magnitudes, above 0 to 1; phases stay. 1 is EnCodec's. With
            0.3 (as in Ephrat et al., arXiv:1804.03619) the discriminator sees faint harmonics and noise from the first
            steps on, which short runs need.

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> import torch
        >>> from mimi_hf.training.objective.discriminator import MimiDiscriminator, MimiDiscriminatorConfig
        >>> small = MimiDiscriminator(MimiDiscriminatorConfig(filters=8, windows=[1024, 512, 256]))
        >>> len(small(torch.randn(1, 1, 24_000)).logits)
        3
    """

    model_type = "mimi_discriminator"

    def __init__(
        self,
        sampling_rate: int = 24_000,
        audio_channels: int = 1,
        windows: Sequence[int] | None = None,
        filters: int = 32,
        kernel_size: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        stride: int = 2,
        negative_slope: float = 0.2,
        compression: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.sampling_rate = sampling_rate
        self.audio_channels = audio_channels
        self.windows = _numbers(windows, [2048, 1024, 512, 256, 128])
        self.filters = filters
        self.kernel_size = _numbers(kernel_size, [3, 9])
        self.dilations = _numbers(dilations, [1, 2, 4])
        self.stride = stride
        self.negative_slope = negative_slope
        self.compression = compression
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config, as transformers does, but refuse the config of another model."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"This is the config of a model of type {found!r}, but {cls.model_type!r} is needed. Name the folder of"
                " a discriminator, such as `discriminator` in the output of a training run."
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        """Raise ValueError for values that no discriminator can be built from."""
        for name in ("sampling_rate", "audio_channels", "filters", "stride"):
            check_option(is_size(getattr(self, name)), name, getattr(self, name), "a positive integer")
        for name in ("windows", "kernel_size", "dilations"):
            values = getattr(self, name)
            fits = isinstance(values, list) and all(map(is_size, values)) and values
            check_option(fits, name, values, "a list of positive integers")
        check_option(all(size % 4 == 0 for size in self.windows), "windows", self.windows, "multiples of 4")
        fits = len(self.kernel_size) == 2 and all(size % 2 for size in self.kernel_size)
        check_option(fits, "kernel_size", self.kernel_size, "two odd numbers, of taps over time and frequency")
        fits = isinstance(self.compression, int | float) and 0 < self.compression <= 1
        check_option(fits, "compression", self.compression, "above 0, at most 1")


@dataclass
class MimiDiscriminatorOutput(ModelOutput):
    """The judgement of a [`MimiDiscriminator`].

    logits: for each scale a Tensor, shape = (B, 1, frames, bins): high where the audio seems real.
    features: for each scale the outputs of its layers but the last, Tensors, shape = (B, filters, frames, bins).
    """

    logits: tuple[Tensor, ...] | None = None
    features: tuple[tuple[Tensor, ...], ...] | None = None


class WeightNormConv2d(nn.Module):
    """A 2-d convolution with weight normalization (Salimans and Kingma, arXiv:1602.07868).

    The weight of each output is `gain * direction / |direction|`. The padding keeps the size where there is no stride.
    Direction and gain are plain parameters, which are saved, loaded and made on the meta device like any other; torch's
    parametrization would rename them.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: Sequence[int], stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs, *kernel_size))
        self.gain = nn.Parameter(torch.empty(outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride, self.dilation = (1, stride), (dilation, 1)
        self.padding = (dilation * (kernel_size[0] // 2), kernel_size[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Tensor, shape = (B, inputs, frames, bins) -> Tensor, shape = (B, outputs, frames, bins / stride)."""
        norm = self.direction.flatten(1).norm(dim=1)
        weight = self.direction * (self.gain / norm)[:, None, None, None]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class ScaleDiscriminator(nn.Module):
    """The discriminator of one resolution: a complex STFT as two channels, and convolutions on it."""

    def __init__(self, config: MimiDiscriminatorConfig, window: int) -> None:
        super().__init__()
        width, size = config.filters, config.kernel_size
        self.window, self.negative_slope, self.compression = window, config.negative_slope, config.compression
        self.layers = nn.ModuleList([WeightNormConv2d(2 * config.audio_channels, width, size)])
        for dilation in config.dilations:
            self.layers.append(WeightNormConv2d(width, width, size, config.stride, dilation))
        self.layers.append(WeightNormConv2d(width, width, (3, 3)))
        self.head = WeightNormConv2d(width, 1, (3, 3))

    def forward(self, audio: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Judge audio, Tensor, shape = (B, C, N). Returns logits and features, see [`MimiDiscriminatorOutput`]."""
        parts = torch.view_as_real(stft(audio, self.window))  # (B, C, frames, bins, 2)
        if self.compression != 1:
            power = parts.square().sum(dim=-1, keepdim=True)
            parts = parts * (power + FLOOR**2) ** ((self.compression - 1) / 2)  # the floor bounds the slope at silence
        # (B, 2 * C, frames, bins), channels last in memory
        x = parts.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        x = x.to(self.head.gain.dtype)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), self.negative_slope)
            features.append(x)
        return self.head(x), tuple(features)


class MimiDiscriminator(PreTrainedModel):
    """The multi-scale STFT discriminator of EnCodec (arXiv:2210.13438, section 3.4), which also trained Mimi.

    It is saved and loaded as any model: `save_pretrained`, `from_pretrained`, `push_to_hub`.
    """

    config: MimiDiscriminatorConfig
    config_class = MimiDiscriminatorConfig
    base_model_prefix = "discriminator"
    main_input_name = "audio"
    input_modalities = "audio"

    def __init__(self, config: MimiDiscriminatorConfig) -> None:
        super().__init__(config)
        config.validate_architecture()
        self.scales = nn.ModuleList(ScaleDiscriminator(config, window) for window in config.windows)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WeightNormConv2d):
            # Keeps the variance from input to output, rectifier included.
            init.normal_(module.direction)
            init.constant_(module.gain, nn.init.calculate_gain("leaky_relu", self.config.negative_slope))
            init.zeros_(module.bias)

    def forward(self, audio: Tensor, return_dict: bool | None = None) -> MimiDiscriminatorOutput | tuple:
        """Judge audio.

        Args:
            audio: Tensor, shape = (B, audio_channels, N), at `config.sampling_rate`, about -1 to 1.
            return_dict: where False, return a tuple in place of a [`MimiDiscriminatorOutput`].

        Raises:
            ValueError: for another shape.
        """
        channels = self.config.audio_channels
        if audio.dim() != 3 or audio.shape[1] != channels or 0 in audio.shape:
            raise ValueError(
                f"audio has shape {tuple(audio.shape)}, but this discriminator judges audio of shape (batch,"
                f" {channels}, samples), none of them 0. Reshape or mix it."
            )
        logits, features = zip(*(scale(audio) for scale in self.scales), strict=True)
        output = MimiDiscriminatorOutput(logits, features)
        return output.to_tuple() if return_dict is False else output


def _numbers(values: Any, default: list[int]) -> Any:
    if values is None:
        return default
    return list(values) if isinstance(values, list | tuple) else values
