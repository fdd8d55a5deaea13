"""The Mimi codec: audio to codes and back, offline, as a stream, or in ragged batches."""

import hashlib
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput

from . import quantization as quantization  # registers 8-bit weights with transformers
from .codec.causal_conv import CausalConv1d, CausalConvTranspose1d, ConvState
from .codec.outputs import MimiDecoderOutput, MimiEncoderOutput, MimiOutput, MimiTrainingOutput
from .codec.quantizer import Codebook, SplitResidualVectorQuantizer
from .codec.ragged import Ragged, check_mask, frame_mask, sample_mask
from .codec.seanet import SEANetDecoder, SEANetEncoder
from .codec.state import join_rows, map_state
from .codec.streaming import DecoderStream, EncoderStream, find_stream, refuse_padding
from .codec.transformer import LayerScale, Transformer, TransformerState
from .configuration_mimi import MimiConfig


class EncoderState(NamedTuple):
    """What the encoder remembers between tiles."""

    seanet: tuple
    transformer: TransformerState
    downsample: ConvState | None


class DecoderState(NamedTuple):
    """What the decoder remembers between tiles."""

    upsample: ConvState | None
    transformer: TransformerState
    seanet: tuple


# Frames that a SEANet takes at once on a CPU, and from how many on a row of a batch is best by itself.
_PIECE_FRAMES, _ROW_FRAMES = 32, 8


def _cuts(length: int, most: int):
    """Start and stop of each piece of `length`: as few as have at most `most`, and of much the same size."""
    count = -(-length // most)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def _in_pieces(layer: nn.Module, x: Tensor, state, frame: int, most: int):
    """`layer(x, state)` for x: Tensor, shape = (B, F * frame, C), at most `most` frames at a time."""
    pieces = []
    for start, stop in _cuts(x.shape[1] // frame, most):
        y, state = layer(x[:, start * frame : stop * frame], state)
        pieces.append(y)
    return (torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]), state


def _row_by_row(layer: nn.Module, x: Tensor, state, frame: int, most: int):
    """[`_in_pieces`] for each row by itself: blocks of a single row are views, those of several must be copied."""
    outputs, states = [], []
    for row in range(len(x)):
        part = map_state(lambda tensor, row=row: tensor[row : row + 1], state)
        y, part = _in_pieces(layer, x[row : row + 1], part, frame, most)
        outputs.append(y)
        states.append(part)
    return torch.cat(outputs), join_rows(states)


class MimiModel(PreTrainedAudioTokenizerBase):
    """Kyutai's Mimi codec (arXiv:2410.00037, section 3.3).

    Audio is encoded, and codes are decoded, as a stream that is pushed through in tiles of a second or two: what comes
    out does not depend on how the input is cut, and memory does not grow with its length. The model keeps no stream
    state; one model serves many streams.

    Example:

        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> audio = torch.randn(1, 1, 48_000)
        >>> codes = model.encode(audio, num_quantizers=8).audio_codes
        >>> codes.shape
        torch.Size([1, 8, 25])
        >>> with torch.no_grad():
        ...     model.decode(codes).audio_values.shape
        torch.Size([1, 1, 48000])
    """

    config: MimiConfig
    config_class = MimiConfig
    base_model_prefix = "mimi"
    main_input_name = "input_values"
    input_modalities = "audio"
    _no_split_modules: ClassVar = ["SEANetEncoder", "SEANetDecoder", "Transformer", "SplitResidualVectorQuantizer"]
    # Models that embed Mimi inherit it: it must match none of their own names.
    _keep_in_fp32_modules_strict: ClassVar = ["vector_quantizer.layers"]
    _supports_sdpa = True

    def __init__(self, config: MimiConfig):
        super().__init__(config)
        config.validate_architecture()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={config.hidden_act!r} is none of {', '.join(ACT2FN)}.")
        width, stride = config.hidden_size, config.latent_stride
        self.encoder = self.encoder_transformer = self.downsample = None
        self.decoder = self.decoder_transformer = self.upsample = None
        if config.encoder_config is not None:
            self.encoder = SEANetEncoder(config)
            self.encoder_transformer = Transformer(config)
            if stride > 1:
                self.downsample = CausalConv1d(width, width, 2 * stride, stride, pad_mode="replicate", bias=False)
            self._add_native_names()
        self.quantizer = SplitResidualVectorQuantizer(config)
        if config.decoder_config is not None:
            if stride > 1:
                groups = config.upsample_groups
                self.upsample = CausalConvTranspose1d(width, width, 2 * stride, stride, groups=groups, bias=False)
            self.decoder_transformer = Transformer(config)
            self.decoder = SEANetDecoder(config)
        self._compiled_steps: dict | None = None
        self.bits_per_codebook = config.codebook_size.bit_length() - 1
        self.post_init()
        # A full checkpoint holds the half that was dropped, too.
        for half, names in (("encoder", "downsample"), ("decoder", "upsample")):
            if getattr(self, half) is None:
                unused = {rf"^{half}\.", rf"^{half}_transformer\.", rf"^{names}\."}
                self._keys_to_ignore_on_load_unexpected = unused.union(self._keys_to_ignore_on_load_unexpected or ())

    def __getstate__(self):
        # Compiled steps belong to this very model, where it is now.
        return {**self.__dict__, "_compiled_steps": None if self._compiled_steps is None else {}}

    def _apply(self, fn, recurse=True):
        self._compiled_steps = self.__getstate__()["_compiled_steps"]
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                init.uniform_(module.bias, a=-bound, b=bound)
        elif isinstance(module, LayerScale):
            init.constant_(module.scale, self.config.layer_scale_initial_scale)
        elif isinstance(module, Codebook):
            init.ones_(module.initialized)
            init.ones_(module.cluster_usage)
            init.normal_(module.embed_sum)

    @property
    def codebook_digest(self) -> str:
        """The hex SHA-256 of the codebooks: what a code means. Models of one digest read each other's codes, whatever
        their precision and however else they were trained. Reads all entries: takes tenths of a second at full size."""
        digest = hashlib.sha256()
        for module in self.modules():
            if isinstance(module, Codebook):
                digest.update(module.embed.detach().cpu().contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    # Lengths and masks

    def get_encoded_length(self, input_length: int | Tensor) -> Tensor:
        """Frames that `input_length` samples encode to, the last one padded: Tensor of the same shape, int64."""
        return -(-torch.as_tensor(input_length) // self.config.frame_size)

    def get_audio_codes_mask(self, padding_mask: Tensor, padding_side: str = "right") -> Tensor:
        """Which frames of a padded batch are real.

        Args:
            padding_mask: Tensor, shape = (B, N) or (B, C, N), nonzero for real samples.
            padding_side: where the padding is, "right" or "left".

        Returns:
            Tensor, shape = (B, F), bool, F the frames of the longest row.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={padding_side!r} must be 'left' or 'right'.")
        check_mask(padding_mask, "padding_mask")
        mask = sample_mask(padding_mask, max(1, len(padding_mask)), padding_mask.shape[-1])
        frames = self.get_encoded_length(mask.sum(dim=1))
        return frame_mask(frames, int(frames.max()), left=padding_side == "left")

    # Audio to codes

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        encoder_past_key_values: EncoderStream | None = None,
        padding_cache: EncoderStream | None = None,
        use_streaming: bool | None = None,
        return_dict: bool | None = None,
    ) -> MimiEncoderOutput | tuple:
        """Encode audio into codes.

        Args:
            input_values: Tensor, shape = (B, audio_channels, N), at `config.sampling_rate`, about -1 to 1.
            padding_mask: Tensor, shape = (B, N) or (B, audio_channels, N), nonzero for real samples, which are one run
                per row. Every row gets the frames that it gets alone; they stand on the side where its samples do.
            num_quantizers: how many codebooks to use, from the semantic ones alone to all (the default).
            encoder_past_key_values, padding_cache: the stream that the last call returned, to continue it; one is
                enough. An empty cache of transformers begins a stream.
            use_streaming: begin a stream. A call then returns the frames that are whole, and keeps the rest.
            return_dict: a tuple instead of a [`MimiEncoderOutput`] where False, without `audio_codes_mask`.

        Raises:
            TypeError, ValueError: for input of another shape, type or range, or that is not finite.
        """
        self._need("encoder")
        num_quantizers = self.quantizer.check_num_quantizers(num_quantizers)
        self._check_audio(input_values)
        stream = find_stream(
            self,
            EncoderStream,
            (encoder_past_key_values, padding_cache),
            self.config.use_streaming if use_streaming is None else use_streaming,
            lambda: self.encoder_stream(len(input_values), num_quantizers),
        )
        if stream is not None:
            refuse_padding(padding_mask)
            with torch.no_grad():
                codes = stream._push(input_values, num_quantizers)
            mask = torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool, device=codes.device)
            return self._output(MimiEncoderOutput(codes, stream, stream, mask), return_dict)

        rows = Ragged.of_audio(input_values, padding_mask, self.config.frame_size)
        codes = input_values.new_zeros(len(input_values), num_quantizers, rows.frames, dtype=torch.int64)
        with torch.no_grad():
            for start, stop, latents in self._encode_tiles(input_values, rows):
                codes[..., start:stop] = self.quantizer.search(latents, num_quantizers)
        output = MimiEncoderOutput(rows.place_frames(codes), audio_codes_mask=rows.frame_mask(codes.device))
        return self._output(output, return_dict)

    def encode_latents(self, input_values: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The latents that `encode` quantizes. Gradients flow through.

        Args:
            input_values, padding_mask: as for [`encode`].

        Returns:
            Tensor, shape = (B, D, F); zero where a row has no frame.
        """
        self._need("encoder")
        self._check_audio(input_values)
        rows = Ragged.of_audio(input_values, padding_mask, self.config.frame_size)
        latents = torch.cat([tile for *_, tile in self._encode_tiles(input_values, rows)], dim=1)
        return rows.place_frames(latents.transpose(1, 2))

    def _encode_tiles(self, input_values: Tensor, rows: Ragged):
        """First frame, last frame + 1 and latents of each tile of a batch, shape = (B, F of the tile, D)."""
        self._arrange_weights()
        state = None
        for start, stop in self._tiles(rows.frames, len(input_values)):
            audio = rows.cut_audio(input_values, start * rows.frame_size, stop * rows.frame_size)
            if not torch.isfinite(audio).all():
                raise ValueError(
                    "input_values holds NaN or infinity among its real samples. Encode finite audio, about -1 to 1."
                )
            latents, state = self.encode_tile(audio.transpose(1, 2).to(self.dtype), state)
            if not torch.isfinite(latents).all():
                raise ValueError(
                    f"The latents overflow {self.dtype}. Scale the audio to about -1 to 1 (its peak here is"
                    f" {float(audio.abs().max()):g}), or load the model with dtype=torch.float32."
                )
            yield start, stop, latents

    def encode_tile(self, audio: Tensor, state: EncoderState | None) -> tuple[Tensor, EncoderState]:
        """One step of the encoder: whole frames in, their latents out. `state=None` begins.

        Args:
            audio: Tensor, shape = (B, F * frame_size, audio_channels), of the model's dtype.
            state: of the tile before. Where no gradient is recorded, its memory is used again: keep a `copy_state` of
                it to go on from there more than once.

        Returns:
            Tensor, shape = (B, F, D), and the state for the next tile.
        """
        seanet, transformer, downsample = (None, None, None) if state is None else state
        x, seanet = self._through(self.encoder, audio, seanet, self.config.frame_size)
        x, transformer = self.encoder_transformer(x, transformer)
        if self.downsample is not None:
            x, downsample = self.downsample(x, downsample)
        return x, EncoderState(seanet, transformer, downsample)

    # Codes to audio

    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        decoder_past_key_values: DecoderStream | None = None,
        use_streaming: bool | None = None,
        use_cache: bool | None = None,
        audio_codes_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MimiDecoderOutput | tuple:
        """Decode codes into audio.

        Args:
            audio_codes: Tensor, shape = (B, K, F), integers, K from the semantic quantizers alone to all.
            padding_mask: Tensor, shape = (B, N) or (B, audio_channels, N), the mask of the audio that was encoded: the
                output is as long as it, holds each row's real samples in their place, and zeros elsewhere.
            decoder_past_key_values: the stream that the last call returned, to continue it.
            use_streaming, use_cache: begin a stream (either name will do).
            audio_codes_mask: Tensor, shape = (B, F), nonzero for real frames, where there is no mask of samples.
            return_dict: a tuple instead of a [`MimiDecoderOutput`] where False.

        Raises:
            TypeError, ValueError: for codes of another shape, type or range, or a mask that does not fit.
        """
        self._need("decoder")
        audio_codes = self.quantizer.check_codes(audio_codes)
        stream = find_stream(
            self,
            DecoderStream,
            (decoder_past_key_values,),
            next((choice for choice in (use_streaming, use_cache) if choice is not None), self.config.use_cache),
            lambda: self.decoder_stream(len(audio_codes)),
        )
        if stream is not None:
            refuse_padding(padding_mask, audio_codes_mask)
            return self._output(MimiDecoderOutput(stream.push(audio_codes), stream), return_dict)
        rows = Ragged.of_codes(audio_codes, padding_mask, audio_codes_mask, self.config.frame_size)
        audio = self._decode_tiles(rows, audio_codes, self.quantizer.lookup)
        return self._output(MimiDecoderOutput(audio), return_dict)

    def decode_latents(self, latents: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Decode latents, quantized (`model.quantizer.decode(codes)`) or not. Gradients flow through.

        Args:
            latents: Tensor, shape = (B, D, F).
            padding_mask: as for [`decode`].

        Returns:
            Tensor, shape = (B, audio_channels, N).
        """
        self._need("decoder")
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            raise TypeError("latents must be a float tensor of shape (batch, hidden_size, frames).")
        if latents.dim() != 3 or latents.shape[1] != self.config.hidden_size or latents.shape[2] == 0:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} must have shape (batch, {self.config.hidden_size}, frames)."
            )
        rows = Ragged.of_codes(latents, padding_mask, None, self.config.frame_size)
        return self._decode_tiles(rows, latents, lambda tile: tile.transpose(1, 2))

    def _decode_tiles(self, rows: Ragged, source: Tensor, to_latents) -> Tensor:
        """The audio of a batch: Tensor, shape = (B, audio_channels, N)."""
        self._arrange_weights()
        # Autograd wants the pieces; without it they go straight to their place, so that no second copy is ever held.
        pieces, whole = [], None
        if not torch.is_grad_enabled() or rows.frames == 0:
            shape = (len(source), self.config.audio_channels, rows.num_samples)
            whole = torch.zeros(shape, dtype=self.dtype, device=source.device)
        state = None
        for start, stop in self._tiles(rows.frames, len(source)):
            latents = to_latents(rows.cut_frames(source, start, stop))
            audio, state = self.decode_tile(latents.to(self.dtype), state)
            audio = audio.transpose(1, 2).to(self.dtype)  # autocast may give another one
            if whole is None:
                pieces.append(audio)
            else:
                rows.write_audio(whole, audio, start * rows.frame_size)
        return rows.place_audio(torch.cat(pieces, dim=2)) if whole is None else whole

    def decode_tile(self, latents: Tensor, state: DecoderState | None) -> tuple[Tensor, DecoderState]:
        """One step of the decoder. `state=None` begins.

        Args:
            latents: Tensor, shape = (B, F, D), of the model's dtype.
            state: as in [`encode_tile`].

        Returns:
            Tensor, shape = (B, F * frame_size, audio_channels), and the state for the next tile.
        """
        upsample, transformer, seanet = (None, None, None) if state is None else state
        x = latents
        if self.upsample is not None:
            x, upsample = self.upsample(x, upsample)
        x, transformer = self.decoder_transformer(x, transformer)
        x, seanet = self._through(self.decoder, x, seanet, self.config.latent_stride)
        return x, DecoderState(upsample, transformer, seanet)

    # Both

    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        audio_codes: Tensor | None = None,
        encoder_past_key_values: EncoderStream | None = None,
        decoder_past_key_values: DecoderStream | None = None,
        padding_cache: EncoderStream | None = None,
        use_streaming: bool | None = None,
        return_dict: bool | None = None,
        return_loss: bool | None = None,
    ) -> MimiOutput | MimiTrainingOutput | tuple:
        """Encode audio and decode the codes again; with `audio_codes`, only decode these (to the length of
        `input_values` or `padding_mask`, where one is given).

        In training mode, audio goes through encoder, quantizer and decoder with gradients, and the codebooks learn as
        `model.quantizer.training_options` say ([`QuantizerTraining`]); the losses are in the output.

        Args:
            return_loss: compute the reconstruction loss, and in training mode its sum with the commitment. The default
                is to do so in training mode alone. A stream has none. (transformers' Trainer has an `eval_loss` where
                its batches hold `"return_loss": True`.)

        The other arguments are those of [`encode`] and [`decode`].
        """
        caches = (encoder_past_key_values, padding_cache, decoder_past_key_values)
        streaming = self.config.use_streaming if use_streaming is None else use_streaming
        streaming = streaming or any(cache is not None for cache in caches)
        if self.training and audio_codes is None and not streaming:
            from .codec.training_pass import training_forward

            self._need("encoder")
            self._need("decoder")
            self._check_audio(input_values)
            self._arrange_weights()
            output = training_forward(self, input_values, padding_mask, num_quantizers, return_loss is not False)
            return self._output(output, return_dict)
        encoded = MimiEncoderOutput(audio_codes)
        if audio_codes is None:
            encoded = self.encode(
                input_values, padding_mask, num_quantizers, *caches[:2], use_streaming=streaming, return_dict=True
            )
        if padding_mask is None and input_values is not None and not streaming:
            padding_mask = torch.ones_like(input_values[:, 0], dtype=torch.bool)
        decoded = self.decode(
            encoded.audio_codes, padding_mask, decoder_past_key_values, use_streaming=streaming, return_dict=True
        )
        output = MimiOutput(
            encoded.audio_codes,
            decoded.audio_values,
            encoded.encoder_past_key_values,
            decoded.decoder_past_key_values,
            encoded.audio_codes_mask,
        )
        if return_loss and input_values is not None and not streaming:
            from .codec.training_pass import padded_reconstruction_loss

            rate = self.config.sampling_rate
            output.loss = padded_reconstruction_loss(input_values, padding_mask, decoded.audio_values, rate)
        return self._output(output, return_dict)

    # Streams

    def encoder_stream(self, batch_size: int = 1, num_quantizers: int | None = None) -> EncoderStream:
        """A stream that turns audio into codes as it comes; see [`EncoderStream`]."""
        self._need("encoder")
        self._arrange_weights()
        return EncoderStream(self, batch_size, self.quantizer.check_num_quantizers(num_quantizers))

    def decoder_stream(self, batch_size: int = 1) -> DecoderStream:
        """A stream that turns codes into audio as they come; see [`DecoderStream`]."""
        self._need("decoder")
        self._arrange_weights()
        return DecoderStream(self, batch_size)

    def compile_for_streaming(self):
        """Compile what a stream does for a frame, which then takes less time for each frame.

        From here on, streams of this model compile the step that they need when it is first needed: a few ten seconds
        for the first size of batch, once more for all others. Longer pushes go the usual way. On CUDA each stream
        also records its step as a graph. Move, convert and load the model first.

        Returns:
            The model.
        """
        self._arrange_weights()
        self._compiled_steps = {}
        return self

    # Helpers

    def _add_native_names(self):
        """Where Kyutai's speech-to-text model in transformers finds the convolutions, to build its padding cache."""
        convolutions = [name for name, layer in self.encoder.named_modules() if isinstance(layer, CausalConv1d)]
        # Past nn.Module's own bookkeeping: no parameter shall have a second name.
        self.encoder.__dict__.update(
            encoder_seanet=self.encoder, downsample=self.downsample, _conv1d_layer_names=convolutions
        )

    def _tiles(self, frames: int, batch: int):
        """First frame and last frame + 1 of each tile of `frames`: enough rows for the products of the transformers."""
        return _cuts(frames, max(1, (192 if self.device.type == "cpu" else 1024) // batch))

    def _through(self, layer: nn.Module, x: Tensor, state, frame: int):
        """A SEANet on x: Tensor, shape = (B, F * frame, C). On a CPU its activations should stay in the cache."""
        # A compiled graph would be one of so and so many pieces, and compiled again for another length.
        # Training keeps them all anyway.
        in_cache = self.device.type == "cpu" and not torch.compiler.is_compiling() and not self.training
        if in_cache and len(x) > 1 and x.shape[1] // frame >= _ROW_FRAMES:
            return _row_by_row(layer, x, state, frame, _PIECE_FRAMES)
        most = max(1, (_PIECE_FRAMES if in_cache else 1024) // len(x))
        return _in_pieces(layer, x, state, frame, most)

    def _arrange_weights(self):
        places = {tensor.device for tensor in (*self.parameters(), *self.buffers())}
        if len(places) > 1 or torch.device("meta") in places:
            raise ValueError(
                f"The weights lie on {', '.join(sorted(map(str, places)))}, but Mimi runs on one device, and is small"
                " enough for any. Load it with device_map={'': device}, without offloading."
            )
        for module in self.modules():
            if isinstance(module, CausalConv1d | CausalConvTranspose1d):
                module.arrange_weight()
        for parameter in self.parameters():
            # A file that is mapped into memory holds them at any address.
            if parameter.dtype == torch.int8 and parameter.data_ptr() % 32:
                parameter.data = parameter.clone()

    def _output(self, output: ModelOutput, return_dict: bool | None):
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        # Tuples are as native's, which knows no such mask.
        return tuple(value for name, value in output.items() if name != "audio_codes_mask")

    def _need(self, half: str):
        if getattr(self, half) is None:
            raise ValueError(
                f"This model was loaded without its {half} (`{half}_config=None`). Load it without that argument."
            )

    def _check_audio(self, audio: Tensor):
        channels = self.config.audio_channels
        expected = f"a float tensor of shape (batch, {channels}, samples)"
        if not isinstance(audio, Tensor) or not audio.is_floating_point():
            found = f"dtype {audio.dtype}" if isinstance(audio, Tensor) else type(audio).__name__
            raise TypeError(f"The audio is of {found}, but Mimi takes {expected}. MimiFeatureExtractor makes one.")
        if audio.dim() != 3 or audio.shape[1] != channels:
            raise ValueError(
                f"The audio has shape {tuple(audio.shape)}, but this model takes {expected}. Add or mix dimensions, or"
                " let MimiFeatureExtractor do it."
            )


__all__ = ["MimiModel"]
