"""The halves of Mimi by themselves, between audio and latents, as transformers has them since 5.21."""

from typing import Any, NoReturn

from torch import Tensor

from .codec.native_caches import find_stream, refuse_in_stream
from .codec.outputs import MimiDecoderOutput, MimiEncoderModelOutput
from .codec.recorder import Recorder, outputs_of
from .codec.streaming import LatentDecoderStream, LatentEncoderStream
from .configuration_mimi import MimiConfig, MimiDecoderConfig, MimiEncoderConfig
from .modeling_mimi import MimiModel


class _Half(MimiModel):
    """A [`MimiModel`] without the other half and without the quantizer. Its files are those of a whole model."""

    _quantizes = False

    def check_num_quantizers(self, num_quantizers: int | None) -> NoReturn:
        self._refuse_codes()

    def check_codes(self, codes: Tensor) -> NoReturn:
        self._refuse_codes()

    def _refuse_codes(self) -> NoReturn:
        raise ValueError(f"{type(self).__name__} knows latents alone, and no codes. Load the folder with MimiModel.")


class MimiEncoderModel(_Half):
    """Mimi's encoder: audio to continuous latents. It loads from the folder of a whole model.

    Example:
        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiEncoderModel
        >>> config = MimiConfig(num_hidden_layers=1, num_filters=4)
        >>> encoder = MimiEncoderModel(config.encoder_config).eval()
        >>> encoder(torch.randn(1, 1, 48_000)).latents.shape
        torch.Size([1, 512, 25])
    """

    config_class = MimiEncoderConfig

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.require_half("encoder")

    @property
    def encoder_seanet(self) -> Any:
        """The convolutions, under the name that transformers gives them here."""
        return self.encoder

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        cache: LatentEncoderStream | None = None,
        padding_cache: LatentEncoderStream | None = None,
        use_streaming: bool | None = None,
        past_key_values: LatentEncoderStream | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> MimiEncoderModelOutput:
        """The latents of audio.

        Args:
            input_values, padding_mask: as for [`MimiModel.encode`].
            cache, padding_cache: the stream that the last call returned, to continue it; `past_key_values` is its name
                up to transformers 5.23.
            use_streaming: begin a stream. A call then returns the latents of the frames that are whole.
            output_hidden_states, output_attentions, return_dict: as for [`MimiModel.encode`].

        Raises:
            TypeError, ValueError: as [`MimiModel.encode`].
        """
        self.check_audio(input_values)
        recorder = Recorder.wanted(self, output_hidden_states, output_attentions)
        stream = find_stream(
            self,
            LatentEncoderStream,
            (cache, past_key_values, padding_cache),
            self.config.use_streaming if use_streaming is None else use_streaming,
            lambda: self.latent_encoder_stream(len(input_values)),
        )
        if stream is not None:
            refuse_in_stream(recorder, padding_mask)
            return self._output(MimiEncoderModelOutput(stream.push(input_values), stream, stream), return_dict)
        latents = self.encode_latents(input_values, padding_mask, recorder)
        return self._output(MimiEncoderModelOutput(latents, None, None, *outputs_of(recorder)), return_dict)


class MimiDecoderModel(_Half):
    """Mimi's decoder: continuous latents to audio. It loads from the folder of a whole model.

    Example:
        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiDecoderModel
        >>> config = MimiConfig(num_hidden_layers=1, num_filters=4)
        >>> decoder = MimiDecoderModel(config.decoder_config).eval()
        >>> with torch.no_grad():
        ...     decoder(torch.randn(1, 512, 25)).audio_values.shape
        torch.Size([1, 1, 48000])
    """

    config_class = MimiDecoderConfig
    main_input_name = "latents"

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.require_half("decoder")

    @property
    def decoder_seanet(self) -> Any:
        """The convolutions, under the name that transformers gives them here."""
        return self.decoder

    def forward(
        self,
        latents: Tensor,
        padding_mask: Tensor | None = None,
        cache: LatentDecoderStream | None = None,
        use_cache: bool | None = None,
        past_key_values: LatentDecoderStream | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> MimiDecoderOutput:
        """The audio of latents.

        Args:
            latents: Tensor, shape = (B, D, F), quantized or not.
            padding_mask: as for [`MimiModel.decode`].
            cache: the stream that the last call returned, to continue it; `past_key_values` is its name up to
                transformers 5.23.
            use_cache: begin a stream.
            output_hidden_states, output_attentions, return_dict: as for [`MimiModel.decode`].

        Raises:
            TypeError, ValueError: for latents of another type or shape, or a mask that does not fit.
        """
        recorder = Recorder.wanted(self, output_hidden_states, output_attentions)
        stream = find_stream(
            self,
            LatentDecoderStream,
            (cache, past_key_values),
            self.config.use_cache if use_cache is None else use_cache,
            lambda: self.latent_decoder_stream(len(latents)),
        )
        if stream is not None:
            refuse_in_stream(recorder, padding_mask)
            audio = stream.push(latents)
            audio = audio if padding_mask is None else audio[..., : padding_mask.shape[-1]]
            return self._output(MimiDecoderOutput(audio, stream), return_dict)
        audio = self.decode_latents(latents, padding_mask, recorder)
        return self._output(MimiDecoderOutput(audio, None, *outputs_of(recorder)), return_dict)


__all__ = ["MimiDecoderModel", "MimiEncoderModel"]
