"""A file through the codec and back: what the codec does to a recording, and how fast."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .audio_io import read_audio, write_audio

CHUNK_FRAMES = 240  # per step of the progress: 19 s


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
        FileNotFoundError, ValueError: as [`mimi_hf.audio_io.read_audio`] and [`mimi_hf.audio_io.write_audio`].
    """
    config = model.config
    samples, rate = read_audio(source, config.sampling_rate, config.audio_channels)
    audio = torch.from_numpy(samples)[None]
    step = CHUNK_FRAMES * config.frame_size
    encoder, decoder = model.encoder_stream(num_quantizers=num_quantizers), model.decoder_stream()
    decoded, frames, seconds = torch.empty(audio.shape), 0, [0.0, 0.0]
    for start in range(0, audio.shape[2], step):
        chunk = audio[..., start : start + step]
        begin = time.perf_counter()
        codes = encoder.push(chunk)
        if start + step >= audio.shape[2]:
            codes = torch.cat([codes, encoder.flush().audio_codes], dim=2)
        _wait(model.device)
        middle = time.perf_counter()
        piece = decoder.push(codes).cpu()
        seconds[0] += middle - begin
        seconds[1] += time.perf_counter() - middle
        decoded[..., start : start + step] = piece[..., : chunk.shape[2]]
        frames += codes.shape[2]
        if progress is not None:
            progress(min(1.0, (start + step) / audio.shape[2]))
    write_audio(output, decoded[0], rate)
    bits = codes.shape[1] * model.bits_per_codebook * config.frame_rate
    return RoundtripReport(Path(output), audio.shape[2] / rate, frames, codes.shape[1], bits, *seconds)


def _wait(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
