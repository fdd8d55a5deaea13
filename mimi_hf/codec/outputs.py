"""What the methods of [`MimiModel`] return: named, and indexed as tuples.

Streams stand where transformers has its caches, under its names of today (`encoder_cache`) and those that it had up to
5.23 (`encoder_past_key_values`).
"""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from .streaming import DecoderStream, EncoderStream
from .transformer import TransformerState

# The default of fields that are always set: `ModelOutput` wants one.
_SET: Any = None

_NAMES_TO_5_23 = {
    "encoder_past_key_values": "encoder_cache",
    "decoder_past_key_values": "decoder_cache",
    "past_key_values": "cache",
}


_CACHES = ("encoder_cache", "decoder_cache", "padding_cache")


class _Output(ModelOutput):
    """An output whose caches are found under their former names as well."""

    def __getitem__(self, k: Any) -> Any:
        return super().__getitem__(_NAMES_TO_5_23.get(k, k) if isinstance(k, str) else k)

    def as_plain_tuple(self) -> tuple:
        """What `return_dict=False` gives: caches in their places where there are none, as code up to 5.20 expects.

        The mask of frames, which transformers' own class does not know, stays out.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        values.pop("audio_codes_mask", None)
        return tuple(value for name, value in values.items() if value is not None or name in _CACHES)


@dataclass
class MimiEncoderOutput(_Output):
    """What [`MimiModel.encode`] returns.

    audio_codes: Tensor, shape = (B, K, F), int64.
    encoder_cache, padding_cache: the [`EncoderStream`] to pass to the next call, when streaming.
    hidden_states: Tensors, each of shape (B, T, D): what the encoder's transformer took, and what each of its layers
        gave, where they were asked for.
    attentions: Tensors, each of shape (B, H, T, T), the weights in each layer, where they were asked for.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames. Codes elsewhere are 0.
    """

    audio_codes: Tensor = _SET
    encoder_cache: EncoderStream | None = None
    padding_cache: EncoderStream | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    audio_codes_mask: Tensor | None = None

    @property
    def encoder_past_key_values(self) -> EncoderStream | None:
        """Another name of `encoder_cache`."""
        return self.encoder_cache


@dataclass
class MimiDecoderOutput(_Output):
    """What [`MimiModel.decode`] returns.

    audio_values: Tensor, shape = (B, audio_channels, N).
    decoder_cache: the [`DecoderStream`] to pass to the next call, when streaming.
    hidden_states, attentions: as in [`MimiEncoderOutput`], of the decoder's transformer.
    """

    audio_values: Tensor = _SET
    decoder_cache: DecoderStream | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def decoder_past_key_values(self) -> DecoderStream | None:
        """Another name of `decoder_cache`."""
        return self.decoder_cache


@dataclass
class MimiEncoderModelOutput(_Output):
    """What a call of [`MimiEncoderModel`] returns.

    latents: Tensor, shape = (B, D, F).
    cache, padding_cache: the [`EncoderStream`] to pass to the next call, when streaming.
    hidden_states, attentions: as in [`MimiEncoderOutput`].
    """

    latents: Tensor = _SET
    cache: EncoderStream | None = None
    padding_cache: EncoderStream | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def past_key_values(self) -> EncoderStream | None:
        """Another name of `cache`."""
        return self.cache


@dataclass
class MimiOutput(_Output):
    """What a call of [`MimiModel`] returns.

    audio_codes: Tensor, shape = (B, K, F), int64.
    audio_values: Tensor, shape = (B, audio_channels, N), N as in the input.
    encoder_cache, decoder_cache: the streams to pass to the next call, when streaming.
    audio_codes_mask: Tensor, shape = (B, F), bool, True for real frames.
    loss: Tensor, shape = (), the reconstruction loss, where it was asked for.
    """

    audio_codes: Tensor = _SET
    audio_values: Tensor = _SET
    encoder_cache: EncoderStream | None = None
    decoder_cache: DecoderStream | None = None
    audio_codes_mask: Tensor | None = None
    loss: Tensor | None = None

    @property
    def encoder_past_key_values(self) -> EncoderStream | None:
        """Another name of `encoder_cache`."""
        return self.encoder_cache

    @property
    def decoder_past_key_values(self) -> DecoderStream | None:
        """Another name of `decoder_cache`."""
        return self.decoder_cache


@dataclass
class MimiTransformerOutput(_Output):
    """What a call of `model.encoder_transformer` or `model.decoder_transformer` returns.

    last_hidden_state: Tensor, shape = (B, T, D).
    cache: what to pass to the next call, where that was wanted.
    hidden_states, attentions: as in [`MimiEncoderOutput`].
    """

    last_hidden_state: Tensor = _SET
    cache: TransformerState | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def past_key_values(self) -> TransformerState | None:
        """Another name of `cache`."""
        return self.cache


@dataclass
class MimiTrainingOutput(_Output):
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
