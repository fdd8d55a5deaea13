"""Streams for real-time use: the codec's state, the samples that do not fill a frame yet, and nothing else.

Pushing never depends on how the input is cut: any chunks give the codes, and any codes the audio, of the whole.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .compiled import CompiledStep, compile_step
from .state import copy_state, map_state, reset_rows, select_rows
from .transformer import ring_slots

_ATTRIBUTE = "mimi_stream"  # of a cache of transformers that carries a stream


class Flushed(NamedTuple):
    """The end of a stream.

    audio_codes: Tensor, shape = (B, K, 1), or (B, K, 0) where no samples were left over.
    num_samples: how many samples of this last frame were pushed; the rest of it is zeros.
    """

    audio_codes: Tensor
    num_samples: int


def encoder_step(model, num_quantizers: int):
    """What an [`EncoderStream`] takes for some frames, as a function to compile or export.

    Tensor, shape = (B, F * frame_size, audio_channels), and the state before (None begins) -> Tensor, shape =
    (B, num_quantizers, F), int64, and the state after.
    """

    def encode(audio: Tensor, state):
        latents, state = model.encode_tile(audio, state)
        return model.quantizer.search(latents, num_quantizers), state

    return encode


def decoder_step(model):
    """What a [`DecoderStream`] takes for some frames, as a function to compile or export.

    Tensor, shape = (B, K, F), int64, and the state before (None begins) -> Tensor, shape = (B, F * frame_size,
    audio_channels), and the state after.
    """

    def decode(codes: Tensor, state):
        return model.decode_tile(model.quantizer.lookup(codes).to(model.dtype), state)

    return decode


class _Stream:
    """What both directions share. `state` is made of tensors, batch first, all zeros where a row has not begun."""

    def __init__(self, model, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a positive integer, one row per session.")
        self.model = model
        self.batch_size = batch_size
        self.place = (model.device, model.dtype)
        self.state = None
        self.compiled: CompiledStep | None = None

    def copy(self):
        """A fork: an independent stream that goes on from here. The model is shared."""
        fork = object.__new__(type(self))
        fork.__dict__.update(self.__dict__)
        fork.state = copy_state(self.state)
        fork.compiled = None  # it may hold the memory of this stream
        return fork

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def reset(self, rows=None):
        """Begin again, all rows or some, as if nothing had been pushed. The other rows do not notice.

        Args:
            rows: the rows to restart: None for all, an index, a list or set of indices, or Tensor, shape = (B,), bool.

        Raises:
            ValueError: for a row that the stream does not have.
        """
        mask = None if rows is None else self._row_mask(rows)
        if mask is None or mask.all():
            self.state = None
        elif self.state is not None:
            self.state = reset_rows(self.state, mask)

    def _row_mask(self, rows) -> Tensor:
        rows = sorted(rows) if isinstance(rows, set | frozenset) else rows
        rows = torch.as_tensor(rows, device=self.model.device)
        if not rows.numel():
            rows = rows.long()  # torch makes floats of an empty list
        if rows.dtype == torch.bool:
            if rows.shape != (self.batch_size,):
                raise ValueError(
                    f"The mask of rows has shape {tuple(rows.shape)}, but the stream has {self.batch_size} rows."
                )
            return rows
        if rows.is_floating_point():
            raise TypeError(f"rows={rows.tolist()} must be indices or a mask of rows.")
        rows = rows.flatten().long()
        if any(not 0 <= row < self.batch_size for row in rows.tolist()):
            raise ValueError(f"Rows {rows.tolist()} are not all in 0 to {self.batch_size - 1}, the rows of the stream.")
        return torch.zeros(self.batch_size, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)

    def _take(self, x: Tensor, frames: int, plain, key: tuple, active: Tensor | None) -> Tensor:
        """Go on by `frames` frames of x: what the step makes of them.

        Args:
            plain: the step. Single frames of a stream that has begun go through its compiled form, where the model is
                to have such.
            key: what tells the step from other ones of the model.
            active: the mask of the rows that advance, all where None.
        """
        model = self.model
        slots = ring_slots(model.config.sliding_window, model.config.latent_stride)  # of rings for a frame at a time
        live = frames == 1 and self.state is not None and self.state.transformer.slots == slots
        step = plain if model._compiled_steps is None or not live else self._compile(plain, (*key, model.training))
        y, state = step(x, self.state)
        if active is not None:
            old = map_state(torch.zeros_like, state) if self.state is None else self.state
            position = torch.where(active, state.transformer.position, old.transformer.position)
            # The rings stay as they are: what a paused row wrote into them, its next step will overwrite.
            transformer = state.transformer._replace(position=position)
            state, old = (whole._replace(transformer=None) for whole in (state, old))
            state = select_rows(active, state, old)._replace(transformer=transformer)
        self.state = state
        return y

    def _compile(self, plain, key: tuple) -> CompiledStep:
        """The compiled form of a step, which the streams of a model share."""
        model = self.model
        model.quantizer.prepare()
        if key not in model._compiled_steps:
            model._compiled_steps[key] = compile_step(plain)
        compiled = model._compiled_steps[key]
        if self.compiled is None or self.compiled.compiled is not compiled:
            self.compiled = CompiledStep(compiled, plain)
        return self.compiled

    def _active(self, rows) -> Tensor | None:
        """The mask of the rows that advance: Tensor, shape = (B,), bool, None where all do."""
        mask = None if rows is None else self._row_mask(rows)
        return None if mask is None or mask.all() else mask

    def _follow_model(self):
        """Move the state to where the model is now, in its dtype."""
        place = (self.model.device, self.model.dtype)
        if place != self.place:
            device, dtype = self.place = place
            self.state = map_state(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), self.state)

    def _check_batch(self, x: Tensor, name: str):
        if x.shape[0] != self.batch_size:
            raise ValueError(
                f"The {name} has a batch of {x.shape[0]}, but the stream was made for {self.batch_size} rows. Push one"
                f" row per session, or make a stream with batch_size={x.shape[0]}."
            )


class EncoderStream(_Stream):
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

    def __init__(self, model, batch_size: int, num_quantizers: int):
        super().__init__(model, batch_size)
        self.num_quantizers = num_quantizers
        self.reset()

    def reset(self, rows=None):
        """Begin again, all rows or some. The other rows do not notice.

        Frames stay on the clock that the rows share: a row that is restarted between two frames is silent from the last
        frame's end to here.

        Args:
            rows: the rows to restart: None for all, an index, a list of indices, or Tensor, shape = (B,), bool.

        Raises:
            ValueError: for a row that the stream does not have.
        """
        super().reset(rows)
        mask = None if rows is None else self._row_mask(rows)
        if mask is None or mask.all():
            self.pending = torch.zeros(self.batch_size, self.model.config.audio_channels, 0, device=self.model.device)
            self.ended = False
        else:
            self.pending = reset_rows(self.pending, mask)

    @torch.no_grad()
    def push(self, chunk: Tensor, active=None) -> Tensor:
        """Encode the next samples.

        Args:
            chunk: Tensor, shape = (B, audio_channels, n), n >= 0.
            active: the rows that go on, as in [`reset`]; all where None. The others pause: what the chunk holds for
                them is ignored. Rows may pause between frames only.

        Returns:
            Tensor, shape = (B, K, f), int64, the f >= 0 frames that are whole now; -1 in rows that pause.

        Raises:
            TypeError, ValueError: for a chunk of another type or shape, or that is not finite, or rows that would pause
                inside a frame; the stream is as before.
        """
        return self._push(chunk, self.num_quantizers, active)

    def _push(self, chunk: Tensor, num_quantizers: int, active=None) -> Tensor:
        self.model._check_audio(chunk)
        self._check_batch(chunk, "chunk")
        if self.ended:
            raise ValueError("This stream was flushed, which ended it. Call reset() to begin another.")
        frame_size = self.model.config.frame_size
        active = self._active(active)
        if active is not None:
            if self.pending.shape[2] or chunk.shape[2] % frame_size:
                raise ValueError(
                    f"Some rows pause while {self.pending.shape[2]} samples wait for the rest of their frame and"
                    f" {chunk.shape[2]} more come. Rows that pause share the frames of the others: push multiples of"
                    f" {frame_size} samples."
                )
            chunk = chunk.masked_fill(~active.to(chunk.device)[:, None, None], 0)
        if not torch.isfinite(chunk).all():
            raise ValueError("The chunk holds NaN or infinity. Push finite audio, about -1 to 1.")
        self.num_quantizers = num_quantizers
        audio = torch.cat([self.pending, chunk.to(self.pending)], dim=2).to(self.model.device)
        whole = audio.shape[2] // frame_size * frame_size
        codes = self._encode(audio[..., :whole], active)
        self.pending = audio[..., whole:].clone()
        return codes

    @torch.no_grad()
    def flush(self) -> Flushed:
        """End the stream: pad what is left over with zeros to a whole frame and encode it."""
        num_samples = self.pending.shape[2]
        padding = -num_samples % self.model.config.frame_size
        codes = self._encode(torch.nn.functional.pad(self.pending, (0, padding)))
        self.pending = self.pending[..., :0]
        self.ended = True
        return Flushed(codes, num_samples)

    def _encode(self, audio: Tensor, active: Tensor | None = None) -> Tensor:
        """audio: Tensor, shape = (B, C, F * frame_size) -> Tensor, shape = (B, K, F)."""
        self._follow_model()
        model, frame_size = self.model, self.model.config.frame_size
        audio = audio.transpose(1, 2).to(model.device, model.dtype)
        step = encoder_step(model, self.num_quantizers)
        codes = [torch.empty(self.batch_size, self.num_quantizers, 0, dtype=torch.int64, device=model.device)]
        for start, stop in model._tiles(audio.shape[1] // frame_size, self.batch_size):
            tile = audio[:, start * frame_size : stop * frame_size]
            codes.append(self._take(tile, stop - start, step, ("encode", self.num_quantizers), active))
        codes = torch.cat(codes, dim=2)
        return codes if active is None else codes.masked_fill(~active[:, None, None], -1)


class DecoderStream(_Stream):
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
    def push(self, audio_codes: Tensor, active=None) -> Tensor:
        """Decode the next frames.

        Args:
            audio_codes: Tensor, shape = (B, K, f), integers, f >= 0.
            active: the rows that go on, as in [`reset`]; all where None. The others pause: their codes are ignored.

        Returns:
            Tensor, shape = (B, audio_channels, f * frame_size); zeros in rows that pause.

        Raises:
            TypeError, ValueError: for codes of another type, shape or range; the stream is as before.
        """
        model, frame_size = self.model, self.model.config.frame_size
        active = self._active(active)
        if active is not None and isinstance(audio_codes, Tensor) and audio_codes.shape[:1] == active.shape:
            audio_codes = audio_codes.long() if audio_codes.dtype == torch.uint16 else audio_codes  # has no such fill
            audio_codes = audio_codes.masked_fill(
                ~active.to(audio_codes.device).view(-1, *[1] * (audio_codes.dim() - 1)), 0
            )
        audio_codes = model.quantizer.check_codes(audio_codes)
        self._check_batch(audio_codes, "tensor of codes")
        self._follow_model()
        frames = audio_codes.shape[2]
        step = decoder_step(model)
        audio = torch.empty(
            self.batch_size, model.config.audio_channels, frames * frame_size, dtype=model.dtype, device=model.device
        )
        for start, stop in model._tiles(frames, self.batch_size):
            tile = self._take(audio_codes[..., start:stop].to(model.device), stop - start, step, ("decode",), active)
            audio[..., start * frame_size : stop * frame_size] = tile.transpose(1, 2)
        return audio if active is None else audio.masked_fill(~active[:, None, None], 0)


def find_stream(model, kind: type, carriers: tuple, wanted: bool, make):
    """The stream to go on with in a call of transformers' native style, None where it streams nothing.

    Native Mimi threads caches through its calls, ours the stream itself. An empty cache of transformers that a caller
    has made in advance is accepted as well: a stream is begun and attached to it, as native code would fill it in
    place. (Resetting such a cache does not reset the stream; make a new one.)

    Args:
        model: whose call it is.
        kind: [`EncoderStream`] or [`DecoderStream`].
        carriers: what was passed as caches, None among them.
        wanted: begin a stream where there is none yet.
        make: makes that stream.

    Raises:
        TypeError, ValueError: for a cache that carries another kind of stream, that of another model, or native state.
    """
    carriers = [carrier for carrier in carriers if carrier is not None]
    if not carriers and not wanted:
        return None
    found = [carrier if isinstance(carrier, _Stream) else getattr(carrier, _ATTRIBUTE, None) for carrier in carriers]
    streams = list({id(stream): stream for stream in found if stream is not None}.values())
    if len(streams) > 1:
        raise ValueError("The caches carry different streams. Pass those that one call returned.")
    stream = streams[0] if streams else make()
    if not isinstance(stream, kind):
        raise TypeError(f"A {type(stream).__name__} was passed where a {kind.__name__} belongs.")
    if stream.model is not model:
        raise ValueError("The cache carries a stream of another model. Begin a stream with this one.")
    for carrier, carried in zip(carriers, found, strict=True):
        if carried is None:
            _attach(stream, carrier)
    return stream


def _attach(stream: _Stream, carrier):
    """Let an empty cache of transformers carry `stream`."""
    name = type(carrier).__name__
    if not hasattr(carrier, "__dict__"):
        raise TypeError(f"A cache of type {name} can carry no stream. Pass what the last call returned.")
    filled = any(part is not None for part in getattr(carrier, "padding_cache", ()))
    if filled or getattr(carrier, "get_seq_length", int)() > 0:
        raise ValueError(
            f"The {name} was filled by another model. Pass what this model's last call returned, or an empty cache."
        )
    setattr(carrier, _ATTRIBUTE, stream)


def refuse_padding(*masks: Tensor | None):
    """Refuse masks that mark padding: a stream has none."""
    for mask in masks:
        if mask is not None and not torch.as_tensor(mask).all():
            raise ValueError("The mask marks padding, but a stream has none. Push what is real alone.")


__all__ = ["DecoderStream", "EncoderStream", "Flushed", "decoder_step", "encoder_step"]
