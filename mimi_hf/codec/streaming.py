"""Streams for real-time use: the codec's state, the samples that do not fill a frame yet, and nothing else.

Pushing never depends on how the input is cut: any chunks give the codes, and any codes the audio, of the whole.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_latents
from .compiled import CompiledStep, compile_step
from .pieces import even_parts
from .state import State, copy_state, map_state, reset_rows, select_rows
from .steps import Codec, Step, decoder_step, encoder_step

if TYPE_CHECKING:
    from typing_extensions import Self

Rows = int | Collection[int] | Tensor | None


class Flushed(NamedTuple):
    """The end of a stream.

    audio_codes: Tensor, shape = (B, K, 1), or (B, K, 0) where no samples were left over.
    num_samples: how many samples of this last frame were pushed; the rest of it is zeros.
    """

    audio_codes: Tensor
    num_samples: int


class Stream:
    """What both directions share. `state` is made of tensors, batch first, all zeros where a row has not begun.

    model: the codec whose steps the stream takes.
    batch_size: B, rows.
    """

    def __init__(self, model: Codec, batch_size: int) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a positive integer, one row per session.")
        self.model = model
        self.batch_size = batch_size
        self.place = (model.device, model.dtype)
        self.state: State = None
        self.compiled: CompiledStep | None = None

    def copy(self) -> Self:
        """A fork: an independent stream that goes on from here. The model is shared."""
        fork = object.__new__(type(self))
        fork.__dict__.update(self.__dict__)
        fork.state = copy_state(self.state)
        fork.compiled = None  # it may hold the memory of this stream
        return fork

    __copy__ = copy

    def __deepcopy__(self, memo: dict) -> Self:
        fork = self.copy()
        fork.model = memo.get(id(self.model), self.model)  # what is copied may hold the codec, too
        return fork

    def reset(self, rows: Rows = None) -> None:
        """Begin again, all rows or some, as if nothing had been pushed. The other rows do not notice.

        Args:
            rows: the rows to restart: None for all, an index, a list or set of indices, or Tensor, shape = (B,), bool.

        Raises:
            ValueError: for a row that the stream does not have.
        """
        mask = self._mask(rows)
        if mask is None:
            self.state = None
        elif self.state is not None:
            self.state = reset_rows(self.state, mask)

    def _mask(self, rows: Rows) -> Tensor | None:
        """Tensor, shape = (B,), bool, True for the rows that are named; None where these are all."""
        if rows is None:
            return None
        rows = sorted(rows) if isinstance(rows, set | frozenset) else rows
        indices = torch.as_tensor(rows, device=self.model.device)
        if indices.dtype == torch.bool:
            if indices.shape != (self.batch_size,):
                raise ValueError(
                    f"The mask of rows has shape {tuple(indices.shape)}, but the stream has {self.batch_size} rows."
                )
            return None if indices.all() else indices
        if not indices.numel():
            indices = indices.long()  # torch makes floats of an empty list
        if indices.is_floating_point():
            raise TypeError(f"rows={indices.tolist()} must be indices or a mask of rows.")
        indices = indices.flatten().long()
        if any(not 0 <= row < self.batch_size for row in indices.tolist()):
            raise ValueError(
                f"Rows {indices.tolist()} are not all in 0 to {self.batch_size - 1}, the rows of the stream."
            )
        mask = torch.zeros(self.batch_size, dtype=torch.bool, device=indices.device).index_fill(0, indices, True)
        return None if mask.all() else mask

    def _advance(self, x: Tensor, frames: int, step: Step, key: tuple, active: Tensor | None) -> Tensor:
        """What a step makes of the next `frames` frames.

        Args:
            step: the step. Single frames of a stream that has begun take its compiled form, where the codec wants that.
            key: tells the step from the codec's other ones.
            active: the mask of the rows that advance, all if None.
        """
        codec = self.model
        compiles = codec.compiled_steps is not None and frames == 1 and self.state is not None
        if compiles and codec.is_settled(self.state):
            step = self._compiled_form(step, key)
        y, state = step(x, self.state)
        if active is not None:
            old = map_state(torch.zeros_like, state) if self.state is None else self.state
            state = select_rows(active, state, old)
        self.state = state
        return y

    def _compiled_form(self, step: Step, key: tuple) -> CompiledStep:
        """The compiled form of a step, which all streams of the codec share."""
        self.model.prepare()
        steps = self.model.compiled_steps
        assert steps is not None
        if key not in steps:
            steps[key] = compile_step(step)
        if self.compiled is None or self.compiled.compiled is not steps[key]:
            self.compiled = CompiledStep(steps[key], step)
        return self.compiled

    def _follow_model(self) -> None:
        """Move the state to where the model is now, in its dtype."""
        place = (self.model.device, self.model.dtype)
        if place != self.place:
            device, dtype = self.place = place
            self.state = map_state(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), self.state)

    def _check_batch(self, x: Tensor, name: str) -> None:
        if x.shape[0] != self.batch_size:
            raise ValueError(
                f"The {name} has a batch of {x.shape[0]}, but the stream was made for {self.batch_size} rows. Push one"
                f" row per session, or make a stream with batch_size={x.shape[0]}."
            )


class EncoderStream(Stream):
    """Audio in, in chunks of any length; codes out, as soon as a frame is whole.

    Made by [`MimiModel.encoder_stream`]. Its rows are sessions that share one clock: they push chunks of equal length,
    or pause.

    Example:
        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> stream = model.encoder_stream(batch_size=1, num_quantizers=8)
        >>> stream.push(torch.randn(1, 1, 2000)).shape
        torch.Size([1, 8, 1])
        >>> codes, num_samples = stream.flush()
        >>> codes.shape, num_samples
        (torch.Size([1, 8, 1]), 80)
    """

    def __init__(self, model: Codec, batch_size: int, num_quantizers: int) -> None:
        super().__init__(model, batch_size)
        self.num_quantizers = num_quantizers
        self.reset()

    def reset(self, rows: Rows = None) -> None:
        """Begin again, all rows or some. The other rows do not notice.

        Frames stay on the clock that the rows share: a row that is restarted between two frames is silent from the last
        frame's end to here.

        Args:
            rows: the rows to restart: None for all, an index, a list of indices, or Tensor, shape = (B,), bool.

        Raises:
            ValueError: for a row that the stream does not have.
        """
        super().reset(rows)
        mask = self._mask(rows)
        if mask is None:
            self.pending = torch.zeros(self.batch_size, self.model.config.audio_channels, 0, device=self.model.device)
            self.ended = False
        else:
            self.pending = reset_rows(self.pending, mask)

    def take_over(self, other: EncoderStream) -> None:
        """Go on where another stream of this codec stands, which shall not be pushed again before it takes over, too.

        So codes and latents come from one stream, by turns.
        """
        self.place, self.state, self.pending, self.ended = other.place, other.state, other.pending, other.ended

    @torch.no_grad()
    def push(self, chunk: Tensor, active: Rows = None, num_quantizers: int | None = None) -> Tensor:
        """Encode the next samples.

        Args:
            chunk: Tensor, shape = (B, audio_channels, n), n >= 0.
            active: the rows that go on, as in [`reset`]; all if None. The others pause: what the chunk holds for
                them is ignored. Rows may pause between frames only.
            num_quantizers: K from here on; as before if None.

        Returns:
            Tensor, shape = (B, K, f), int64, the f >= 0 frames that are whole now; -1 in rows that pause.

        Raises:
            TypeError, ValueError: for a chunk of another type or shape, or that is not finite or far too loud, or rows
                that would pause inside a frame; the stream is as before.
        """
        self.model.check_audio(chunk)
        self._check_batch(chunk, "chunk")
        if self.ended:
            raise ValueError("This stream was flushed, which ended it. Call reset() to begin another.")
        frame_size = self.model.config.frame_size
        mask = self._mask(active)
        if mask is not None:
            if self.pending.shape[2] or chunk.shape[2] % frame_size:
                raise ValueError(
                    f"Some rows pause while {self.pending.shape[2]} samples wait for the rest of their frame and"
                    f" {chunk.shape[2]} more come. Rows that pause share the frames of the others: push multiples of"
                    f" {frame_size} samples."
                )
            chunk = chunk.masked_fill(~mask.to(chunk.device)[:, None, None], 0)
        if not torch.isfinite(chunk).all():
            raise ValueError("The chunk holds NaN or infinity. Push finite audio, about -1 to 1.")
        audio = torch.cat([self.pending, chunk.to(self.pending)], dim=2).to(self.model.device)
        whole = audio.shape[2] // frame_size * frame_size
        if num_quantizers is not None:
            num_quantizers = self.model.check_num_quantizers(num_quantizers)
        codes = self._encode(audio[..., :whole], num_quantizers or self.num_quantizers, mask)
        self.num_quantizers = num_quantizers or self.num_quantizers
        self.pending = audio[..., whole:].clone()
        return codes

    @torch.no_grad()
    def flush(self) -> Flushed:
        """End the stream: pad what is left over with zeros to a whole frame and encode it."""
        num_samples = self.pending.shape[2]
        padding = -num_samples % self.model.config.frame_size
        codes = self._encode(torch.nn.functional.pad(self.pending, (0, padding)), self.num_quantizers)
        self.pending = self.pending[..., :0]
        self.ended = True
        return Flushed(codes, num_samples)

    def _encode(self, audio: Tensor, num_quantizers: int, active: Tensor | None = None) -> Tensor:
        """audio: Tensor, shape = (B, C, F * frame_size) -> Tensor, shape = (B, K, F)."""
        self._follow_model()
        codec, frame_size = self.model, self.model.config.frame_size
        audio = audio.transpose(1, 2).to(codec.device, codec.dtype)
        step, key, nothing = self._step(num_quantizers)
        tiles = even_parts(audio.shape[1] // frame_size, codec.tile_frames(self.batch_size))
        before = copy_state(self.state) if len(tiles) > 1 else self.state
        codes = [nothing]
        try:
            for start, stop in tiles:
                tile = audio[:, start * frame_size : stop * frame_size]
                codes.append(self._advance(tile, stop - start, step, key, active))
        except ValueError:  # a later tile is refused: the stream is as before
            self.state = before
            raise
        joined = torch.cat(codes, dim=2)
        return joined if active is None else joined.masked_fill(~active[:, None, None], self._paused)

    _paused = -1

    def _step(self, num_quantizers: int) -> tuple[Step, tuple, Tensor]:
        """The step, what tells it from the codec's other ones, and what it makes of no frames."""
        codec = self.model
        nothing = torch.empty(self.batch_size, num_quantizers, 0, dtype=torch.int64, device=codec.device)
        return encoder_step(codec, num_quantizers), ("encode", num_quantizers, codec.training), nothing


class LatentEncoderStream(EncoderStream):
    """Audio in, latents out, shape = (B, D, f), as an [`EncoderStream`] gives codes; zeros in rows that pause.

    Made by [`MimiModel.latent_encoder_stream`].
    """

    _paused = 0

    def _step(self, num_quantizers: int) -> tuple[Step, tuple, Tensor]:
        codec: Any = self.model

        def encode(audio: Tensor, state: State) -> tuple[Tensor, State]:
            latents, state = codec.encode_finite_tile(audio, state)
            return latents.transpose(1, 2), state

        nothing = torch.empty(self.batch_size, codec.config.hidden_size, 0, dtype=codec.dtype, device=codec.device)
        return encode, ("encode latents", codec.training), nothing


class DecoderStream(Stream):
    """Codes in, any number of frames at once; audio out, all of it at once.

    Made by [`MimiModel.decoder_stream`].

    Example:
        >>> import torch
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> stream = model.decoder_stream(batch_size=1)
        >>> stream.push(torch.zeros(1, 8, 3, dtype=torch.int64)).shape
        torch.Size([1, 1, 5760])
    """

    @torch.no_grad()
    def push(self, audio_codes: Tensor, active: Rows = None) -> Tensor:
        """Decode the next frames.

        Args:
            audio_codes: Tensor, shape = (B, K, f), integers, f >= 0.
            active: the rows that go on, as in [`reset`]; all if None. The others pause: their codes are ignored.

        Returns:
            Tensor, shape = (B, audio_channels, f * frame_size); zeros in rows that pause.

        Raises:
            TypeError, ValueError: for codes of another type, shape or range; the stream is as before.
        """
        mask = self._mask(active)
        if mask is not None and isinstance(audio_codes, Tensor) and audio_codes.shape[:1] == mask.shape:
            audio_codes = audio_codes.long() if audio_codes.dtype == torch.uint16 else audio_codes  # has no such fill
            paused = ~mask.to(audio_codes.device).view(-1, *[1] * (audio_codes.dim() - 1))
            audio_codes = audio_codes.masked_fill(paused, 0)
        audio_codes = self.model.check_codes(audio_codes)
        return self._decode(audio_codes, decoder_step(self.model), ("decode", self.model.training), mask)

    def _decode(self, source: Tensor, step: Step, key: tuple, active: Tensor | None) -> Tensor:
        """source: Tensor, shape = (B, K or D, F), checked -> Tensor, shape = (B, C, F * frame_size)."""
        codec, frame_size = self.model, self.model.config.frame_size
        self._check_batch(source, "input")
        self._follow_model()
        frames = source.shape[2]
        shape = (self.batch_size, codec.config.audio_channels, frames * frame_size)
        audio = torch.empty(shape, dtype=codec.dtype, device=codec.device)
        for start, stop in even_parts(frames, codec.tile_frames(self.batch_size)):
            tile = source[..., start:stop].to(codec.device)
            decoded = self._advance(tile, stop - start, step, key, active)
            audio[..., start * frame_size : stop * frame_size] = decoded.transpose(1, 2)
        return audio if active is None else audio.masked_fill(~active[:, None, None], 0)


class LatentDecoderStream(DecoderStream):
    """Latents in, audio out, as a [`DecoderStream`] takes codes. Made by [`MimiModel.latent_decoder_stream`]."""

    @torch.no_grad()
    def push(self, latents: Tensor, active: Rows = None) -> Tensor:
        """Decode the next frames.

        Args:
            latents: Tensor, shape = (B, D, f), quantized or not, f >= 1.
            active: as in [`DecoderStream.push`].

        Returns:
            Tensor, shape = (B, audio_channels, f * frame_size); zeros in rows that pause.

        Raises:
            TypeError, ValueError: for latents of another type or shape; the stream is as before.
        """
        codec: Any = self.model
        check_latents(latents, codec.config.hidden_size)

        def decode(tile: Tensor, state: State) -> tuple[Tensor, State]:
            return codec.decode_tile(tile.transpose(1, 2).to(codec.dtype), state)

        return self._decode(latents, decode, ("decode latents", codec.training), self._mask(active))


__all__ = ["DecoderStream", "EncoderStream", "Flushed", "LatentDecoderStream", "LatentEncoderStream"]
