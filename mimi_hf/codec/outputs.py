"""What the methods of [`MimiModel`] return: named, and indexed as tuples."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from .streaming import DecoderStream, EncoderStream

# The default of fields that are always set: `ModelOutput` wants one.
_SET: Any = None


@dataclass
class MimiEncoderOutput(ModelOutput):
    """What [`MimiModel.encode`] returns.

    audio_codes: Tensor, shape = (B, K, F), int64.
    encoder_past_key_values, padding_cache: the [`EncoderStream`] to pass to the next call, when streaming.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames. Codes elsewhere are 0.
    """

    audio_codes: Tensor = _SET
    encoder_past_key_values: EncoderStream | None = None
    padding_cache: EncoderStream | None = None
    audio_codes_mask: Tensor | None = None


@dataclass
class MimiDecoderOutput(ModelOutput):
    """What [`MimiModel.decode`] returns.

    audio_values: Tensor, shape = (B, audio_channels, N).
    decoder_past_key_values: the [`DecoderStream`] to pass to the next call, when streaming.
    """

    audio_values: Tensor = _SET
    decoder_past_key_values: DecoderStream | None = None


@dataclass
class MimiOutput(ModelOutput):
    """What a call of [`MimiModel`] returns.

    audio_codes: Tensor, shape = (B, K, F), int64.
    audio_values: Tensor, shape = (B, audio_channels, N), N as in the input.
    encoder_past_key_values, decoder_past_key_values: the streams to pass to the next call, when streaming.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames.
    loss: Tensor, shape = (), the reconstruction loss, where it was asked for.
    """

    audio_codes: Tensor = _SET
    audio_values: Tensor = _SET
    encoder_past_key_values: EncoderStream | None = None
    decoder_past_key_values: DecoderStream | None = None
    audio_codes_mask: Tensor | None = None
    loss: Tensor | None = None


@dataclass
class MimiTrainingOutput(ModelOutput):
    """What a call of [`MimiModel`] returns in training mode.

    loss: Tensor, shape = (), the sum of the parts, the commitment weighed by 0.25; None where none was asked for.
    reconstruction_loss: Tensor, shape = (), of the audio; see [`mimi_hf.codec.losses.reconstruction_loss`].
    commitment_loss: Tensor, shape = (), of the latents to the entries of the codebooks.
    audio_values: Tensor, shape = (B, audio_channels, N), N as in the input.
    audio_codes: Tensor, shape = (B, K, F), int64; zeros while the quantizer is off.
    latents: Tensor, shape = (B, F, D), before the quantizer.
    semantic_latents: Tensor, shape = (B, F, D), the latents that the semantic codebooks alone give, for distillation.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames. Frames are those of rows that begin at 0.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    commitment_loss: Tensor = _SET
    audio_values: Tensor = _SET
    audio_codes: Tensor = _SET
    latents: Tensor = _SET
    semantic_latents: Tensor = _SET
    audio_codes_mask: Tensor = _SET
