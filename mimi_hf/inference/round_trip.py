"""A file through the codec and back, in constant memory: what the codec does to a recording, and how fast."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimi_hf.audio import AudioBlocks, write_blocks

from .recordings import decode_codes, encode_blocks
from .timing import Stopwatch

if TYPE_CHECKING:
    from mimi_hf.codec.tiles import TiledCodec

CHUNK_FRAMES = 240  # at once: 19 s


@dataclass(frozen=True)
class RoundtripReport:
    """What a round trip did.

    output: the file that was written.
    duration: seconds of audio.
    frames, num_quantizers: F and K of the codes.
    bits_per_second: K * log2(V) * frame rate.
    encode_seconds, decode_seconds: wall-clock time in the model alone.
    """

    output: Path
    duration: float
    frames: int
    num_quantizers: int
    bits_per_second: float
    encode_seconds: float
    decode_seconds: float


def roundtrip(
    model: TiledCodec,
    source: str | os.PathLike,
    output: str | os.PathLike,
    num_quantizers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> RoundtripReport:
    """Encode an audio file, decode the codes, and write the result.

    Args:
        model: a [`MimiModel`].
        source: path of a file of any rate and number of channels.
        output: path to write to: .wav, .flac or .ogg, at the model's rate, as long as the original.
        num_quantizers: how many codebooks to use; all by default.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        FileNotFoundError, ValueError: as [`mimi_hf.audio.read_audio`] and [`mimi_hf.audio.write_audio`]; for audio
            that is not finite.
    """
    config = model.config
    rate, channels = config.sampling_rate, config.audio_channels
    encoder, decoder = model.encoder_stream(num_quantizers=num_quantizers), model.decoder_stream()
    encoding, decoding = Stopwatch(model.device), Stopwatch(model.device)
    num_samples = written = frames = 0
    with (
        AudioBlocks(source, rate, channels, CHUNK_FRAMES / config.frame_rate) as blocks,
        write_blocks(output, rate, channels, blocks.num_samples) as write,
    ):
        for codes, num_samples in encode_blocks(encoder, blocks, str(source), encoding):
            frames += codes.shape[2]
            for audio in decode_codes(decoder, [codes], decoding):
                real = audio[:, : num_samples - written]  # the last frame is padded
                write(real)
                written += real.shape[1]
            if progress is not None and blocks.duration:
                progress(min(1.0, written / (blocks.duration * rate)))
    if progress is not None:
        progress(1.0)
    bits = encoder.num_quantizers * model.bits_per_codebook * config.frame_rate
    seconds = (encoding.seconds, decoding.seconds)
    return RoundtripReport(Path(output), num_samples / rate, frames, encoder.num_quantizers, bits, *seconds)
