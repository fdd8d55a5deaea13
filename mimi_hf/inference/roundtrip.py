"""A file through the codec and back, in constant memory: what the codec does to a recording, and how fast."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mimi_hf.audio import AudioBlocks, write_blocks

CHUNK_FRAMES = 240  # at once: 19 s


@dataclass(frozen=True)
class RoundtripReport:
    """What a round trip did.

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


def roundtrip(model, source, output, num_quantizers=None, progress=None) -> RoundtripReport:
    """Encode an audio file, decode the codes, and write the result.

    Args:
        model: a [`MimiModel`].
        source: path of a file of any rate and number of channels.
        output: path to write to: .wav, .flac or .ogg, at the model's rate, as long as the original.
        num_quantizers: how many codebooks to use; all by default.
        progress: called with the part done, from 0 to 1.

    Raises:
        FileNotFoundError, ValueError: as [`mimi_hf.audio.read_audio`] and [`mimi_hf.audio.write_audio`]; for
            audio that is not finite.
    """
    config = model.config
    rate, channels = config.sampling_rate, config.audio_channels
    encoder, decoder = model.encoder_stream(num_quantizers=num_quantizers), model.decoder_stream()
    num_samples, written, frames, seconds = 0, 0, 0, [0.0, 0.0]
    with (
        AudioBlocks(source, rate, channels, CHUNK_FRAMES / config.frame_rate) as blocks,
        write_blocks(output, rate, channels, blocks.num_samples) as write,
    ):
        for chunk in _chunks(blocks, source):
            begin = time.perf_counter()
            codes = encoder.flush().audio_codes if chunk is None else encoder.push(chunk)
            _wait(model.device)
            middle = time.perf_counter()
            audio = decoder.push(codes)[0].float().cpu().numpy()  # (C, n)
            seconds[0] += middle - begin
            seconds[1] += time.perf_counter() - middle
            num_samples += 0 if chunk is None else chunk.shape[2]
            frames += codes.shape[2]
            write(audio[:, : num_samples - written])  # the last frame is filled up
            written += min(audio.shape[1], num_samples - written)
            if progress is not None and blocks.duration:
                progress(min(1.0, written / (blocks.duration * rate)))
    if progress is not None:
        progress(1.0)
    bits = encoder.num_quantizers * model.bits_per_codebook * config.frame_rate
    return RoundtripReport(Path(output), num_samples / rate, frames, encoder.num_quantizers, bits, *seconds)


def _chunks(blocks: AudioBlocks, source) -> Iterator[torch.Tensor | None]:
    """The audio, Tensor, shape = (1, C, n), and None at its end."""
    num_samples = 0
    for block in blocks:
        chunk = torch.from_numpy(block)[None]
        if not torch.isfinite(chunk).all():
            where = num_samples / blocks.sampling_rate
            raise ValueError(f"{source} holds NaN or infinity, near {where:.2f} s. Repair it.")
        num_samples += chunk.shape[2]
        yield chunk
    if not num_samples:
        raise ValueError(f"{source} is too short: nothing is left of it at {blocks.sampling_rate} Hz. Leave it out.")
    yield None


def _wait(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
