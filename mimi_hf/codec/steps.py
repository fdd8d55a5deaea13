"""What an engine offers: two steps and a config. [`mimi_hf.codec.tiles.TiledCodec`] makes a codec of them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .recorder import Recorder
from .state import State

# Input and the state before (None begins) -> output and the state after.
Step = Callable[[Tensor, State], tuple[Tensor, State]]


class CodecConfig(Protocol):
    """What a codec must know of itself; [`mimi_hf.MimiConfig`] has it all.

    frame_size: samples of a frame; frame_rate: frames of a second.
    codebook_size: V; num_quantizers: K of all codebooks; num_semantic_quantizers: of those that come first.
    has_half: whether it has its "encoder", or its "decoder".
    use_streaming, use_cache, return_dict: defaults of the arguments of these names.
    """

    sampling_rate: int
    audio_channels: int
    codebook_size: int
    num_quantizers: int
    num_semantic_quantizers: int
    use_streaming: bool
    use_cache: bool
    return_dict: bool | None

    @property
    def frame_size(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    def has_half(self, half: str) -> bool: ...


class Steps(Protocol):
    """An engine: it computes some whole frames, and hands on what it must remember.

    A state is a tree of tensors, batch first. All zeros means that nothing has been pushed yet (see `state`). A step
    may reuse the memory of the state that it is given.
    """

    config: Any

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode_step(self, audio: Tensor, state: State, num_quantizers: int) -> tuple[Tensor, State]:
        """Tensor, shape = (B, F * frame_size, audio_channels) -> Tensor, shape = (B, num_quantizers, F), int64."""
        ...

    def decode_step(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """Tensor, shape = (B, K, F), int64 -> Tensor, shape = (B, F * frame_size, audio_channels)."""
        ...


class Codec(Steps, Protocol):
    """What a stream needs of a codec besides its steps; [`TiledCodec`] explains each."""

    training: bool
    compiled_steps: dict[tuple, Step] | None

    def prepare(self) -> None: ...
    def tile_frames(self, batch_size: int) -> int: ...
    def is_settled(self, state: State) -> bool: ...
    def check_audio(self, audio: Tensor) -> None: ...
    def check_codes(self, codes: Tensor) -> Tensor: ...
    def check_num_quantizers(self, num_quantizers: int | None) -> int: ...


def encoder_step(codec: Steps, num_quantizers: int, recorder: Recorder | None = None) -> Step:
    """The step of an encoder as a function of audio and state alone, to compile or export."""
    more = _optional(recorder)

    def encode(audio: Tensor, state: State) -> tuple[Tensor, State]:
        return codec.encode_step(audio, state, num_quantizers, **more)

    return encode


def decoder_step(codec: Steps, recorder: Recorder | None = None) -> Step:
    """The step of a decoder as a function of codes and state alone, to compile or export."""
    more = _optional(recorder)

    def decode(codes: Tensor, state: State) -> tuple[Tensor, State]:
        return codec.decode_step(codes, state, **more)

    return decode


def _optional(recorder: Recorder | None) -> dict[str, Any]:
    """An argument that not every engine knows."""
    return {} if recorder is None else {"recorder": recorder}
