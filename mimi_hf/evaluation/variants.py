"""Ways to run a codec that ought to give the same: precisions, streams, compiled steps, transformers' own Mimi."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mimi_hf.loading import DTYPES, ModelChoice


class Engine(Protocol):
    """What can be compared: a name, a config, and both directions."""

    name: str
    config: object

    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        """audio: Tensor, shape = (1, C, N), float32 -> Tensor, shape = (1, K, F), int64."""

    def decode(self, codes: Tensor) -> Tensor:
        """codes: Tensor, shape = (1, K, F), int64 -> Tensor, shape = (1, C, N)."""


class Whole:
    """A model that takes whole recordings: of this library, or transformers' own."""

    def __init__(self, model, name: str):
        self.model, self.name, self.config = model.eval(), name, model.config

    @torch.no_grad()
    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        audio = audio.to(self.model.device, self.model.dtype)
        return self.model.encode(audio, num_quantizers=num_quantizers).audio_codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes.to(self.model.device)).audio_values


class Stream:
    """A [`MimiModel`] that gets and gives one frame at a time."""

    def __init__(self, model, name: str):
        self.model, self.name, self.config = model.eval(), name, model.config

    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        stream = self.model.encoder_stream(num_quantizers=num_quantizers)
        codes = [stream.push(frame) for frame in audio.split(self.config.frame_size, dim=2)]
        if stream.pending.shape[2]:
            codes.append(stream.flush().audio_codes)
        return torch.cat(codes, dim=2)

    def decode(self, codes: Tensor) -> Tensor:
        stream = self.model.decoder_stream()
        return torch.cat([stream.push(frame) for frame in codes.split(1, dim=2)], dim=2)


def open_engine(what: str, choice: ModelChoice, device: str | None = None) -> Engine:
    """The engine that a word means.

    Args:
        what: `float32`, `bfloat16`, `float16`, `int8` (8-bit weights); `eager`, `stream` (frame by frame), `compiled`
            (the same, compiled), `native` (transformers' own Mimi), all of the same model; or another model: a folder,
            or an id of the Hub. A folder that is called like one of the words is meant by `./stream`.
        choice: the model, and the precision of all that name none.
        device: where; as for [`ModelChoice.load`].

    Raises:
        OSError, ValueError: there is no such model, or it cannot be loaded.
    """
    if what in DTYPES:
        return Whole(replace(choice, dtype=what).load(device), what)
    if what in ENGINES:
        return ENGINES[what](choice, device)
    return Whole(ModelChoice(what, choice.dtype).load(device), what)


def _native(choice: ModelChoice, device: str | None) -> Engine:
    import transformers

    return Whole(_load(transformers.MimiModel, choice, device), "native")


def _int8(choice: ModelChoice, device: str | None) -> Engine:
    from mimi_hf.modeling_mimi import MimiModel
    from mimi_hf.quantization import MimiInt8Config

    return Whole(_load(MimiModel, choice, device, quantization_config=MimiInt8Config()), "int8")


def _load(kind, choice: ModelChoice, device: str | None, **options):
    """A model of some class, as [`ModelChoice.load`] gives one of ours."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    revision = choice.resolve()[1].revision
    dtype = getattr(torch, choice.dtype)
    return kind.from_pretrained(choice.place, dtype=dtype, revision=revision, **options).to(device)


ENGINES: dict[str, Callable[[ModelChoice, str | None], Engine]] = {
    "eager": lambda choice, device: Whole(choice.load(device), "eager"),
    "stream": lambda choice, device: Stream(choice.load(device), "stream"),
    "compiled": lambda choice, device: Stream(choice.load(device).compile_for_streaming(), "compiled"),
    "native": _native,
    "int8": _int8,
}
