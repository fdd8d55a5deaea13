"""SEANet, the convolutional encoder and decoder of SoundStream, EnCodec and Mimi (arXiv:2107.03312, section III).

Each convolution activates its own input. `layers` holds an identity where the published checkpoints count an activation
of its own, so that parameter names agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .causal_conv import CausalConv1d, CausalConvTranspose1d
from .checkpointing import run_checkpointed
from .pieces import run_in_pieces
from .state import State

if TYPE_CHECKING:
    from mimi_hf.configuration_mimi import MimiConfig


class ResidualBlock(nn.Module):
    """x + conv(elu(conv(elu(x)))), the inner convolution narrower by the factor `compress`."""

    def __init__(
        self, channels: int, kernel_size: int, dilation: int, compress: int, pad_mode: str, conv_shortcut: bool
    ) -> None:
        super().__init__()
        hidden = channels // compress
        self.block = nn.ModuleList(
            [
                nn.Identity(),
                CausalConv1d(channels, hidden, kernel_size, dilation=dilation, pad_mode=pad_mode, elu=True),
                nn.Identity(),
                CausalConv1d(hidden, channels, 1, elu=True),
            ]
        )
        self.shortcut = CausalConv1d(channels, channels, 1) if conv_shortcut else None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: Tensor, shape = (B, T, C) -> Tensor, shape = (B, T, C)."""
        _, narrow, _, widen = self.block
        y, state = narrow(x, state)
        y, _ = widen(y, None)
        if self.shortcut is not None:
            x, _ = self.shortcut(x, None)
        return y.add_(x), state


class SEANet(nn.Module):
    """A chain of layers, of which the convolutions and residual blocks have a state.

    frame: steps of the input in a frame of codes.
    gradient_checkpointing: run each layer again in the backward pass instead of keeping its activations.
    """

    layers: nn.ModuleList
    frame: int
    gradient_checkpointing = False

    def forward(self, x: Tensor, state: tuple | None) -> tuple[Tensor, tuple]:
        """x: Tensor, shape = (B, F * frame, C), and the state before, None at the beginning."""
        return run_in_pieces(self._run, x, state, self.frame, self.training)

    def _run(self, x: Tensor, states: tuple | None) -> tuple[Tensor, tuple]:
        layers = [layer for layer in self.layers if not isinstance(layer, nn.Identity)]
        new_states = []
        for layer, state in zip(layers, states or [None] * len(layers), strict=True):
            x, state = run_checkpointed(self, layer, x, state)
            new_states.append(state)
        return x, tuple(new_states)


class SEANetEncoder(SEANet):
    """Tensor, shape = (B, N, audio_channels) -> Tensor, shape = (B, N / prod(ratios), hidden_size)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.frame = config.frame_size
        channels = config.num_filters
        layers = [CausalConv1d(config.audio_channels, channels, config.kernel_size, pad_mode=config.pad_mode)]
        for ratio in reversed(config.upsampling_ratios):
            layers += residual_blocks(config, channels)
            layers += [
                nn.Identity(),
                CausalConv1d(channels, 2 * channels, 2 * ratio, stride=ratio, pad_mode=config.pad_mode, elu=True),
            ]
            channels *= 2
        layers += [
            nn.Identity(),
            CausalConv1d(channels, config.hidden_size, config.last_kernel_size, pad_mode=config.pad_mode, elu=True),
        ]
        self.layers = nn.ModuleList(layers)


class SEANetDecoder(SEANet):
    """Tensor, shape = (B, T, hidden_size) -> Tensor, shape = (B, T * prod(ratios), audio_channels)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.frame = config.latent_stride
        channels = config.num_filters * 2 ** len(config.upsampling_ratios)
        layers = [CausalConv1d(config.hidden_size, channels, config.kernel_size, pad_mode=config.pad_mode)]
        for ratio in config.upsampling_ratios:
            layers += [
                nn.Identity(),
                CausalConvTranspose1d(channels, channels // 2, 2 * ratio, stride=ratio, elu=True),
            ]
            channels //= 2
            layers += residual_blocks(config, channels)
        layers += [
            nn.Identity(),
            CausalConv1d(channels, config.audio_channels, config.last_kernel_size, pad_mode=config.pad_mode, elu=True),
        ]
        self.layers = nn.ModuleList(layers)


def residual_blocks(config: MimiConfig, channels: int) -> list[ResidualBlock]:
    """The residual blocks of one level, their dilations growing."""
    return [
        ResidualBlock(
            channels,
            config.residual_kernel_size,
            config.dilation_growth_rate**depth,
            config.compress,
            config.pad_mode,
            config.use_conv_shortcut,
        )
        for depth in range(config.num_residual_layers)
    ]
