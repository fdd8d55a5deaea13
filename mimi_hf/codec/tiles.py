"""Two steps become a codec: offline in tiles, in ragged batches, as streams, and in calls of transformers' style.

Audio is encoded, and codes are decoded, as a stream that is pushed through in tiles. So the result does not depend on
how the input is cut, and memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import check_audio, check_codes, check_num_quantizers
from .graphs import is_captured
from .losses import padded_reconstruction_loss
from .native_caches import find_stream, refuse_in_stream
from .outputs import MimiDecoderOutput, MimiEncoderOutput, MimiOutput
from .pieces import even_parts
from .ragged import Ragged, check_mask, frame_mask, sample_mask
from .recorder import Recorder, outputs_of
from .state import State
from .steps import Step, decoder_step, encoder_step
from .streaming import DecoderStream, EncoderStream

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

# Frames of a tile, all rows of a batch together, so that the products of the transformers are large enough: at most
# 15 s of a single row on a CPU, and 82 s on a GPU.
_TILE_FRAMES_CPU, _TILE_FRAMES = 192, 1024


class TiledCodec:
    """A codec on the steps of an engine, which derives from it and has the attributes of [`Steps`].

    The codec keeps no stream state: one codec serves many streams and threads.

    compiled_steps: the compiled forms of steps, for single frames of streams; None where nothing is to be compiled.
    records: whether its steps take a [`Recorder`], which shows hidden states and attentions.
    """

    config: Any
    compiled_steps: dict[tuple, Any] | None = None
    training: bool = False
    records: bool = False

    if TYPE_CHECKING:  # of torch.nn.Module and transformers, or of the engine

        @property
        def device(self) -> torch.device: ...
        @property
        def dtype(self) -> torch.dtype: ...

    # What an engine offers

    def encode_step(self, audio: Tensor, state: State, num_quantizers: int) -> tuple[Tensor, State]:
        """Codes of some whole frames.

        Args:
            audio: Tensor, shape = (B, F * frame_size, audio_channels), of the codec's dtype.
            state: what the step before returned; None begins. Its memory may be used again where no gradient is
                recorded: keep a `copy_state` of it to go on from there more than once.
            num_quantizers: K, codebooks to use.

        Returns:
            Tensor, shape = (B, K, F), int64, and the state for the next step.

        Raises:
            ValueError: the audio is too loud for the precision of the codec.
        """
        raise NotImplementedError

    def decode_step(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """Audio of some frames.

        Args:
            codes: Tensor, shape = (B, K, F), int64.
            state: as for [`encode_step`].

        Returns:
            Tensor, shape = (B, F * frame_size, audio_channels), and the state for the next step.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Bring up to date what steps rely on, before the first of them is taken."""

    def tile_frames(self, batch_size: int) -> int:
        """Frames that a step takes best at once offline, for a batch of that size."""
        return max(1, (_TILE_FRAMES_CPU if self.device.type == "cpu" else _TILE_FRAMES) // batch_size)

    def is_settled(self, state: State) -> bool:
        """Whether the tensors of `state` have the shapes that steps of single frames leave: those that are compiled."""
        return True

    # Lengths, masks and checks

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

        Raises:
            TypeError, ValueError: for a mask of another type or shape, or another side.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={padding_side!r} must be 'left' or 'right'.")
        check_mask(padding_mask, "padding_mask")
        mask = sample_mask(padding_mask, max(1, len(padding_mask)), padding_mask.shape[-1])
        frames = self.get_encoded_length(mask.sum(dim=1))
        return frame_mask(frames, int(frames.max()), left=padding_side == "left")

    @property
    def bits_per_codebook(self) -> int:
        """Bits of a code: log2 V."""
        return self.config.codebook_size.bit_length() - 1

    def check_num_quantizers(self, num_quantizers: int | None) -> int:
        """The number of codebooks to use: all if None.

        Raises:
            TypeError, ValueError: if it is not an integer from `num_semantic_quantizers` to `num_quantizers`.
        """
        return check_num_quantizers(num_quantizers, self.config.num_semantic_quantizers, self.config.num_quantizers)

    def check_codes(self, codes: Tensor) -> Tensor:
        """The codes as int64.

        Raises:
            TypeError, ValueError: if they are not integers of shape (B, K, F), or out of range.
        """
        config = self.config
        return check_codes(codes, config.codebook_size, config.num_semantic_quantizers, config.num_quantizers)

    def check_audio(self, audio: Tensor) -> None:
        """Raise unless `audio` is a float tensor of shape (B, audio_channels, N).

        Raises:
            TypeError, ValueError: with what was found and what is needed.
        """
        check_audio(audio, self.config.audio_channels)

    def require_half(self, half: str) -> None:
        """Refuse to go on where the "encoder" or the "decoder" is missing.

        Raises:
            ValueError: it was left out when the codec was loaded.
        """
        if getattr(self, half, self) is None or not self.config.has_half(half):
            raise ValueError(
                f"This model was loaded without its {half} (`{half}_config=None`), or lost it since. Load it whole."
            )

    # Audio to codes

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        encoder_cache: EncoderStream | None = None,
        padding_cache: EncoderStream | None = None,
        use_streaming: bool | None = None,
        return_dict: bool | None = None,
        encoder_past_key_values: EncoderStream | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> MimiEncoderOutput:
        """Encode audio into codes.

        Args:
            input_values: Tensor, shape = (B, audio_channels, N), at `config.sampling_rate`, about -1 to 1.
            padding_mask: Tensor, shape = (B, N) or (B, audio_channels, N), nonzero for real samples, which are one run
                per row. Every row gets the frames that it gets alone; they stand on the side where its samples do.
            num_quantizers: how many codebooks to use, from the semantic ones alone to all (the default).
            encoder_cache, padding_cache: the stream that the last call returned, to continue it; one is enough. An
                empty cache of transformers begins a stream.
            use_streaming: begin a stream. A call then returns the frames that are whole, and keeps the rest.
            return_dict: a tuple instead of a [`MimiEncoderOutput`] where False, without `audio_codes_mask`.
            encoder_past_key_values: the name of `encoder_cache` up to transformers 5.23.
            output_hidden_states, output_attentions: return these as well. The whole audio is one step then: attentions
                take memory that grows with the square of its length.

        Other keywords are ignored, as by transformers' own class.

        Raises:
            TypeError, ValueError: for input of another shape, type or range, or that is not finite.
        """
        self.require_half("encoder")
        num_quantizers = self.check_num_quantizers(num_quantizers)
        self.check_audio(input_values)
        recorder = Recorder.wanted(self, output_hidden_states, output_attentions)
        stream = find_stream(
            self,
            EncoderStream,
            (encoder_cache, encoder_past_key_values, padding_cache),
            self.config.use_streaming if use_streaming is None else use_streaming,
            lambda: self.encoder_stream(input_values.shape[0], num_quantizers),
        )
        if stream is not None:
            refuse_in_stream(recorder, padding_mask)
            codes = stream.push(input_values, num_quantizers=num_quantizers)
            mask = torch.ones(codes.shape[0], codes.shape[2], dtype=torch.bool, device=codes.device)
            return self._output(MimiEncoderOutput(codes, stream, stream, audio_codes_mask=mask), return_dict)
        rows = Ragged.of_audio(input_values, padding_mask, self.config.frame_size)
        codes = input_values.new_zeros(input_values.shape[0], num_quantizers, rows.frames.length, dtype=torch.int64)
        with torch.no_grad():
            step = encoder_step(self, num_quantizers, recorder)
            for start, stop, tile in self.encode_tiles(input_values, rows, step, whole=recorder is not None):
                codes[..., start:stop] = tile
        output = MimiEncoderOutput(rows.frames.place(codes), None, None, *outputs_of(recorder), rows.frames.mask())
        return self._output(output, return_dict)

    def encode_tiles(
        self, input_values: Tensor, rows: Ragged, step: Step, whole: bool = False
    ) -> Iterator[tuple[int, int, Tensor]]:
        """First frame, last frame + 1 and what `step` makes of each tile of a batch.

        Args:
            input_values: Tensor, shape = (B, audio_channels, N).
            rows: where its rows lie.
            step: takes audio, shape = (B, F * frame_size, audio_channels).
            whole: make one tile of all frames.

        Raises:
            ValueError: for audio that is not finite.
        """

        def cut(start: int, stop: int) -> Tensor:
            audio = rows.samples.cut(input_values, start * rows.frame_size, stop * rows.frame_size)
            if not is_captured() and not torch.isfinite(audio).all():
                raise ValueError(
                    "input_values holds NaN or infinity among its real samples. Encode finite audio, about -1 to 1."
                )
            return audio.transpose(1, 2).to(self.dtype)

        return self._tiles(rows.frames.length, input_values.shape[0], cut, step, whole)

    # Codes to audio

    def decode(
        self,
        audio_codes: Tensor,
        padding_mask: Tensor | None = None,
        decoder_cache: DecoderStream | None = None,
        return_dict: bool | None = None,
        use_streaming: bool | None = None,
        use_cache: bool | None = None,
        audio_codes_mask: Tensor | None = None,
        decoder_past_key_values: DecoderStream | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> MimiDecoderOutput:
        """Decode codes into audio.

        Args:
            audio_codes: Tensor, shape = (B, K, F), integers, K from the semantic quantizers alone to all.
            padding_mask: Tensor, shape = (B, N) or (B, audio_channels, N), the mask of the audio that was encoded: the
                output is as long as it, holds each row's real samples in their place, and zeros elsewhere.
            decoder_cache: the stream that the last call returned, to continue it.
            return_dict: a tuple instead of a [`MimiDecoderOutput`] where False.
            use_streaming, use_cache: begin a stream (either name will do).
            audio_codes_mask: Tensor, shape = (B, F), nonzero for real frames, where there is no mask of samples.
            decoder_past_key_values: the name of `decoder_cache` up to transformers 5.23.
            output_hidden_states, output_attentions: as for [`encode`].

        Other keywords are ignored, as by transformers' own class.

        Raises:
            TypeError, ValueError: for codes of another shape, type or range, or a mask that does not fit.
        """
        self.require_half("decoder")
        audio_codes = self.check_codes(audio_codes)
        recorder = Recorder.wanted(self, output_hidden_states, output_attentions)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        stream = find_stream(
            self,
            DecoderStream,
            (decoder_cache, decoder_past_key_values),
            use_cache if use_streaming is None else use_streaming,
            lambda: self.decoder_stream(audio_codes.shape[0]),
        )
        if stream is not None:
            refuse_in_stream(recorder, padding_mask, audio_codes_mask)
            audio = stream.push(audio_codes)
            audio = audio if padding_mask is None else audio[..., : padding_mask.shape[-1]]
            return self._output(MimiDecoderOutput(audio, stream), return_dict)
        rows = Ragged.of_codes(audio_codes, padding_mask, audio_codes_mask, self.config.frame_size)
        audio = self.decode_tiles(audio_codes, rows, decoder_step(self, recorder), whole=recorder is not None)
        return self._output(MimiDecoderOutput(audio, None, *outputs_of(recorder)), return_dict)

    def decode_tiles(self, source: Tensor, rows: Ragged, step: Step, whole: bool = False) -> Tensor:
        """The audio that `step` makes of a batch, tile by tile: Tensor, shape = (B, audio_channels, N).

        Args:
            source: Tensor, shape = (B, K or D, F).
            rows: where its rows lie.
            step: takes some frames of the source.
            whole: make one tile of all frames.
        """

        def cut(start: int, stop: int) -> Tensor:
            return rows.frames.cut(source, start, stop)

        # Autograd wants the tiles; without it they go straight to their place, so that no second copy is ever held.
        tiles, placed = [], None
        if rows.frames.length == 0 or not (torch.is_grad_enabled() or is_captured()):
            shape = (source.shape[0], self.config.audio_channels, rows.samples.length)
            placed = torch.zeros(shape, dtype=self.dtype, device=source.device)
        for start, _, tile in self._tiles(rows.frames.length, source.shape[0], cut, step, whole):
            audio = tile.transpose(1, 2).to(self.dtype)  # autocast may give another one
            if placed is None:
                tiles.append(audio)
            else:
                rows.samples.write(placed, audio, start * rows.frame_size)
        return rows.samples.place(torch.cat(tiles, dim=2)) if placed is None else placed

    # Both

    def forward(
        self,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        audio_codes: Tensor | None = None,
        encoder_cache: EncoderStream | None = None,
        decoder_cache: DecoderStream | None = None,
        return_dict: bool | None = None,
        padding_cache: EncoderStream | None = None,
        use_streaming: bool | None = None,
        use_cache: bool | None = None,
        return_loss: bool | None = None,
        encoder_past_key_values: EncoderStream | None = None,
        decoder_past_key_values: DecoderStream | None = None,
        **_: Any,
    ) -> Any:
        """Encode audio and decode the codes again; with `audio_codes`, only decode these.

        The audio is as long as `input_values` or `padding_mask`, where one is given. In training mode, audio goes
        through encoder, quantizer and decoder with gradients instead, and the codebooks learn; see
        [`MimiModel.training_output`].

        Args:
            use_streaming: begin a stream of both directions, or go on with those that are passed as caches.
            use_cache: begin a stream of the decoder alone, as transformers' own class does; the encoder takes each call
                as audio of its own.
            return_loss: compute the reconstruction loss, and in training mode its sum with the commitment. By default,
                only training mode computes it. A stream has none. (transformers' Trainer has an `eval_loss` if its
                batches hold `"return_loss": True`.)

        The other arguments are those of [`encode`] and [`decode`]; other keywords are ignored.

        Returns:
            A [`MimiOutput`], in training mode a [`MimiTrainingOutput`], or a tuple.
        """
        encoder_caches = (encoder_cache, encoder_past_key_values, padding_cache)
        decoder_caches = (decoder_cache, decoder_past_key_values)
        streaming = self.config.use_streaming if use_streaming is None else use_streaming
        streaming = streaming or any(cache is not None for cache in encoder_caches)
        going_on = streaming or any(cache is not None for cache in decoder_caches)
        if self.training and audio_codes is None and not going_on:
            output = self.training_output(input_values, padding_mask, num_quantizers, return_loss is not False)
            return self._output(output, return_dict)
        if audio_codes is not None:
            encoded = MimiEncoderOutput(audio_codes)
        else:
            audio: Any = input_values  # encode refuses None
            encoded = self.encode(
                audio,
                padding_mask,
                num_quantizers,
                encoder_past_key_values if encoder_cache is None else encoder_cache,
                padding_cache,
                streaming,
                return_dict=True,
            )
        if padding_mask is None and input_values is not None and not streaming:
            padding_mask = torch.ones_like(input_values[:, 0], dtype=torch.bool)
        decoded = self.decode(
            encoded.audio_codes,
            padding_mask,
            *decoder_caches[:1],
            return_dict=True,
            use_streaming=streaming or None,
            use_cache=use_cache,
            decoder_past_key_values=decoder_past_key_values,
        )
        output = MimiOutput(
            encoded.audio_codes,
            decoded.audio_values,
            encoded.encoder_cache,
            decoded.decoder_cache,
            encoded.audio_codes_mask,
        )
        if return_loss and input_values is not None and not going_on:
            rate = self.config.sampling_rate
            output.loss = padded_reconstruction_loss(input_values, padding_mask, decoded.audio_values, rate)
        return self._output(output, return_dict)

    def training_output(
        self, input_values: Tensor | None, padding_mask: Tensor | None, num_quantizers: int | None, return_loss: bool
    ) -> ModelOutput:
        """What [`forward`] returns in training mode, for an engine that can be trained."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained. Train a MimiModel.")

    # Streams

    def encoder_stream(self, batch_size: int = 1, num_quantizers: int | None = None) -> EncoderStream:
        """A stream that turns audio into codes as it comes; see [`EncoderStream`]."""
        self.require_half("encoder")
        self.prepare()
        return EncoderStream(self, batch_size, self.check_num_quantizers(num_quantizers))

    def decoder_stream(self, batch_size: int = 1) -> DecoderStream:
        """A stream that turns codes into audio as they come; see [`DecoderStream`]."""
        self.require_half("decoder")
        self.prepare()
        return DecoderStream(self, batch_size)

    # Helpers

    def _tiles(
        self, frames: int, batch_size: int, cut: Callable[[int, int], Tensor], step: Step, whole: bool
    ) -> Iterator[tuple[int, int, Tensor]]:
        """First frame, last frame + 1 and the output of each tile, `cut(start, stop)` its input."""
        self.prepare()
        state = None
        # A graph for any number of frames holds no loop over them.
        at_once = is_captured() or (whole and frames)
        for start, stop in [(0, frames)] if at_once else even_parts(frames, self.tile_frames(batch_size)):
            y, state = step(cut(start, stop), state)
            yield start, stop, y

    def _output(self, output: Any, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.as_plain_tuple()
