"""What the methods of [`MimiModel`] return: named, and indexed as tuples."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .streaming import DecoderStream, EncoderStream


@dataclass
class MimiEncoderOutput(ModelOutput):
    """
    audio_codes: Tensor, shape = (B, K, F), int64.
    encoder_past_key_values, padding_cache: the [`EncoderStream`] to pass to the next call, when streaming.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames. Codes elsewhere are 0.
    """

    audio_codes: Tensor | None = None
    encoder_past_key_values: EncoderStream | None = None
    padding_cache: EncoderStream | None = None
    audio_codes_mask: Tensor | None = None


@dataclass
class MimiDecoderOutput(ModelOutput):
    """
    audio_values: Tensor, shape = (B, audio_channels, N).
    decoder_past_key_values: the [`DecoderStream`] to pass to the next call, when streaming.
    """

    audio_values: Tensor | None = None
    decoder_past_key_values: DecoderStream | None = None


@dataclass
class MimiOutput(ModelOutput):
    """
    audio_codes: Tensor, shape = (B, K, F), int64.
    audio_values: Tensor, shape = (B, audio_channels, N), N as in the input.
    encoder_past_key_values, decoder_past_key_values: the streams to pass to the next call, when streaming.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames.
    """

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None
    encoder_past_key_values: EncoderStream | None = None
    decoder_past_key_values: DecoderStream | None = None
    audio_codes_mask: Tensor | None = None
