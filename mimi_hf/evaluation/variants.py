"""Variants of running a codec that should give equal results: precisions, streams, compiled, transformers' Mimi."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

from mimi_hf.inference.recordings import decode_codes, encode_blocks
from mimi_hf.loading import DTYPES, ModelChoice, default_device
from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.quantization import MimiInt8Config


class Variant(Protocol):
    """A way to run a codec that can be compared with another.

    name: for reports.
    config: of the model, with the attributes of [`mimi_hf.codec.steps.CodecConfig`].
    """

    name: str
    config: Any

    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        """Encode a recording.

        Args:
            audio: Tensor, shape = (1, C, N), float32, on the CPU.
            num_quantizers: K, codebooks to use.

        Returns:
            Tensor, shape = (1, K, F), int64.
        """
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Decode the codes of a recording.

        Args:
            codes: Tensor, shape = (1, K, F), int64, on the CPU.

        Returns:
            Tensor, shape = (1, C, F * frame_size), floating point.
        """
        ...


class WholeVariant:
    """Runs a model on whole recordings. The model is a [`MimiModel`] or transformers' own."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name, self.config = model, name, model.config

    @torch.no_grad()
    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        """Encode a recording, see [`Variant.encode`]."""
        audio = audio.to(self.model.device, self.model.dtype)
        return self.model.encode(audio, num_quantizers=num_quantizers).audio_codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes, see [`Variant.decode`]."""
        return self.model.decode(codes.to(self.model.device)).audio_values


class StreamVariant:
    """Runs a [`MimiModel`] as a stream, frame by frame."""

    def __init__(self, model: MimiModel, name: str) -> None:
        self.model, self.name, self.config = model, name, model.config

    def encode(self, audio: Tensor, num_quantizers: int) -> Tensor:
        """Encode a recording, see [`Variant.encode`]."""
        stream = self.model.encoder_stream(num_quantizers=num_quantizers)
        frames = (frame[0].numpy() for frame in audio.split(self.config.frame_size, dim=2))
        return torch.cat([block.codes for block in encode_blocks(stream, frames, "the audio")], dim=2)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes, see [`Variant.decode`]."""
        frames = decode_codes(self.model.decoder_stream(), codes.split(1, dim=2))
        return torch.from_numpy(np.concatenate([*frames], axis=1))[None]


def open_variant(what: str, choice: ModelChoice, device: str | None = None) -> Variant:
    """Load a model in the variant of this name.

    Args:
        what: the same model in another precision: `float32`, `bfloat16`, `float16` or `int8` (8-bit weights); the same
            model and precision as `eager`, `stream` (frame by frame), `compiled` (frame by frame, compiled) or `native`
            (transformers' own Mimi); or another model: a folder, or an id on the Hub. Write `./stream` for a folder
            with the name of a variant.
        choice: the model, and the precision of all variants that name none.
        device: see [`ModelChoice.load`].

    Raises:
        OSError, ValueError: there is no such model, or it cannot be loaded.
    """
    if what in DTYPES:
        return WholeVariant(replace(choice, dtype=what).load(device), what)
    if what in VARIANTS:
        return VARIANTS[what](choice, device)
    return WholeVariant(ModelChoice(what, choice.dtype).load(device), what)


def _load(kind: Any, choice: ModelChoice, device: str | None, **options: Any) -> Any:
    """Load a model of another class, or with options, as [`ModelChoice.load`] does it."""
    revision, dtype = choice.resolve()[1].revision, getattr(torch, choice.dtype)
    model = kind.from_pretrained(choice.place, dtype=dtype, revision=revision, **options)
    return model.to(device or default_device())


VARIANTS: dict[str, Callable[[ModelChoice, str | None], Variant]] = {
    "eager": lambda choice, device: WholeVariant(choice.load(device), "eager"),
    "stream": lambda choice, device: StreamVariant(choice.load(device), "stream"),
    "compiled": lambda choice, device: StreamVariant(choice.load(device).compile_for_streaming(), "compiled"),
    "native": lambda choice, device: WholeVariant(_load(transformers.MimiModel, choice, device), "native"),
    "int8": lambda choice, device: WholeVariant(
        _load(MimiModel, choice, device, quantization_config=MimiInt8Config()), "int8"
    ),
}
