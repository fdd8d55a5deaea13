"""A demonstration of the codec on a recording: tokens, a .mimi file, audio, spectrograms and scores."""

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
from .modeling_mimi import MimiModel
from .utils.files import check_replaceable, written_beside
from .utils.png import encode_png, enlarge, wheel_colors

FILES = ("original.wav", "speech.mimi", "decoded.wav", "tokens.png", "spectrogram.png")
LONGEST = 30.0  # seconds that are scored and drawn


@dataclass(frozen=True)
class DemoReport:
    """The results of a demonstration.

    output: the folder.
    codes: np.ndarray, shape = (K, F).
    codebook_size: V.
    duration: seconds of audio; scores and pictures are of the first [`LONGEST`] of them.
    num_bytes: of the .mimi file. original_bytes: of the same audio as 16-bit samples.
    bits_per_second: of the codes, K * log2(V) * frame rate.
    encode_seconds, decode_seconds: wall-clock time, reading and writing included.
    scores: by name of the metric, or None where a metric cannot judge the audio.
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
    """Return the path of a recording that comes with the package.

    It holds six seconds of a LibriVox reader (public domain). `mimi-tiny` was not trained on it.
    """
    return Path(__file__).parent / "assets" / "speech.flac"


def run_demo(
    model: MimiModel,
    source: str | Path,
    output: str | Path,
    num_quantizers: int | None = None,
    force: bool = False,
) -> DemoReport:
    """Encode and decode a recording, and write what there is to see and hear into a folder, whole or not at all.

    Args:
        model: a mono model.
        source: path of an audio file.
        output: the folder, see [`mimi_hf.utils.files.check_replaceable`].
        num_quantizers: how many codebooks to use; all by default.
        force: replace the folder of an earlier demonstration.

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
    with torch.no_grad():  # the first call fills caches, and would distort the times
        silence = torch.zeros(1, 1, 2 * model.config.frame_size, device=model.device, dtype=model.dtype)
        model.decode(model.encode(silence).audio_codes)
    with written_beside(output) as aside:
        aside.mkdir()
        begin = time.perf_counter()
        encoded = encode_file(model, source, aside / "speech.mimi", options)
        middle = time.perf_counter()
        decode_file(model, aside / "speech.mimi", aside / "decoded.wav")
        end = time.perf_counter()
        # The recording as the model hears it: mono, at its rate.
        with (
            AudioBlocks(source, rate, 1) as blocks,
            write_blocks(aside / "original.wav", rate, 1, blocks.num_samples) as write,
        ):
            for block in blocks:
                write(block)
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


def _read_start(path: str | Path, rate: int) -> np.ndarray:
    """Read what is scored and drawn: np.ndarray, shape = (N,)."""
    with AudioBlocks(path, rate, 1, duration=LONGEST) as blocks:
        return np.concatenate([block[0] for block in blocks])


def draw_tokens(codes: np.ndarray, size: int) -> np.ndarray:
    """Draw codes as a picture, a row for each codebook, a column for each frame.

    Args:
        codes: np.ndarray, shape = (K, F).
        size: V.

    Returns:
        np.ndarray, shape = (height, width, 3), uint8.
    """
    return enlarge(wheel_colors(codes / size), 16, 8)
