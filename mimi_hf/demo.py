"""What the codec does to a recording, to be seen and heard: tokens, a .mimi file, audio, spectrograms, figures."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .audio import AudioBlocks, write_blocks
from .bitstream import BitstreamReader
from .evaluation.metrics import METRICS, score
from .evaluation.picture import draw_spectrograms
from .inference import EncodeOptions, decode_file, encode_file
from .utils.files import check_replaceable, written_beside
from .utils.png import encode_png, enlarge, wheel_colors

FILES = ("original.wav", "speech.mimi", "decoded.wav", "tokens.png", "spectrogram.png")
LONGEST = 30.0  # seconds that are measured and pictured


@dataclass(frozen=True)
class DemoReport:
    """What was done.

    codes: np.ndarray, shape = (K, F).
    codebook_size: V.
    duration: seconds of audio; scores and pictures are of the first [`LONGEST`] of them.
    num_bytes: of the .mimi file. original_bytes: of the same audio as 16-bit samples.
    bits_per_second: of the codes, K * log2(V) * frame rate.
    encode_seconds, decode_seconds: wall-clock time, reading and writing included.
    scores: by the names of metrics: values, or None where one makes no sense of the audio.
    missing: labels of metrics whose packages are not installed.
    """

    output: Path
    codes: np.ndarray
    codebook_size: int
    duration: float
    num_bytes: int
    original_bytes: int
    bits_per_second: float
    encode_seconds: float
    decode_seconds: float
    scores: dict[str, float | None]
    missing: list[str]


def speech_path() -> Path:
    """A recording that comes with the package: six seconds of a LibriVox reader (public domain), which `mimi-tiny` has
    never learnt from."""
    return Path(__file__).parent / "assets" / "speech.flac"


def run_demo(model, source, output: str | Path, num_quantizers: int | None = None, force: bool = False) -> DemoReport:
    """Send a recording through the codec, and write all that there is to see and hear into a folder, at once.

    Args:
        model: a mono [`MimiModel`].
        source: path of an audio file.
        output: the folder, see [`mimi_hf.utils.files.check_replaceable`].
        num_quantizers: how many codebooks to use; all by default.
        force: replace what an earlier demonstration left there.

    Raises:
        OSError, ValueError: the recording cannot be read, the folder cannot be written, or the model is not mono.
    """
    output, rate = Path(output), model.config.sampling_rate
    if model.config.audio_channels != 1:
        raise ValueError(
            f"The model takes {model.config.audio_channels} channels; a demonstration needs one. Name a mono model."
        )
    check_replaceable(output, set(FILES), force)
    options = EncodeOptions(num_quantizers=num_quantizers)
    _warm_up(model)
    with written_beside(output) as aside:
        aside.mkdir()
        begin = time.perf_counter()
        encoded = encode_file(model, source, aside / "speech.mimi", options)
        middle = time.perf_counter()
        decode_file(model, aside / "speech.mimi", aside / "decoded.wav")
        end = time.perf_counter()
        _copy(source, aside / "original.wav", rate)
        original, decoded = (_read_start(path, rate) for path in (source, aside / "decoded.wav"))
        length = min(len(original), len(decoded))
        original, decoded = original[:length], decoded[:length]
        with open(aside / "speech.mimi", "rb") as file:
            codes = np.concatenate(list(BitstreamReader(file)), axis=-1)[0]
        shown = codes[:, : math.ceil(LONGEST * model.config.frame_rate)]
        (aside / "tokens.png").write_bytes(encode_png(draw_tokens(shown, model.config.codebook_size)))
        (aside / "spectrogram.png").write_bytes(encode_png(draw_spectrograms([original, decoded], rate)))
        size = (aside / "speech.mimi").stat().st_size
    names = [name for name in ("mel_distance", "stoi", "pesq") if not METRICS[name].missing]
    scores = score(original, decoded, rate, names)
    return DemoReport(
        output,
        codes,
        model.config.codebook_size,
        encoded.duration,
        size,
        2 * round(encoded.duration * rate),
        len(codes) * math.log2(model.config.codebook_size) * model.config.frame_rate,
        middle - begin,
        end - middle,
        {name: found.value for name, found in scores.items()},
        [METRICS[name].label for name in ("stoi", "pesq") if METRICS[name].missing],
    )


def _warm_up(model):
    """A first call fills caches; it is not what is measured."""
    with torch.no_grad():
        silence = torch.zeros(1, 1, 2 * model.config.frame_size, device=model.device, dtype=model.dtype)
        model.decode(model.encode(silence).audio_codes)


def _copy(source, path: Path, rate: int):
    """The recording as the model hears it: mono, at its rate."""
    with AudioBlocks(source, rate, 1) as blocks, write_blocks(path, rate, 1, blocks.num_samples) as write:
        for block in blocks:
            write(block)


def _read_start(path, rate: int) -> np.ndarray:
    """What is measured: array, shape = (N,)."""
    with AudioBlocks(path, rate, 1, duration=LONGEST) as blocks:
        return np.concatenate([block[0] for block in blocks])


def draw_tokens(codes: np.ndarray, size: int) -> np.ndarray:
    """Codes as a picture, a row for each codebook, a column for each frame.

    Args:
        codes: np.ndarray, shape = (K, F).
        size: V.

    Returns:
        np.ndarray, shape = (height, width, 3), uint8.
    """
    return enlarge(wheel_colors(codes / size), 16, 8)
