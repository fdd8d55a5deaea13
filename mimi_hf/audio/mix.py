"""Read, write, resample and mix audio, as numpy arrays. Letters for shapes: C channels, N samples."""

import io
import math
import numbers
import os
from pathlib import Path

import numpy as np

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.files import written_beside

# What is written, by extension: libsndfile's name of the format, the most channels and the highest sampling rate that
# it holds. libsndfile itself (1.2) crashes instead of refusing where Ogg's limits are passed.
WRITABLE = {
    ".wav": ("WAV", 1024, 2**31 - 1),
    ".flac": ("FLAC", 8, 655_350),
    ".ogg": ("OGG", 255, 200_000),
}
READABLE = "wav, flac, ogg (Vorbis, Opus), mp3, aiff, au, caf and what else libsndfile knows"

# libsndfile (1.2) overflows its stack when it gets minutes of Ogg Vorbis in one call.
_WRITE_BLOCK = 65_536
# Frames that libsndfile reports for a FLAC file whose header does not say how long it is.
_UNKNOWN_LENGTH = 2**63 - 1


def read_audio(source, sampling_rate=None, channels=None):
    """Read an audio file.

    Args:
        source (str, os.PathLike, bytes or binary file object): where the file is, its content, or an open file, which
            is read to its end.
        sampling_rate (int, optional): resample to this rate. The file's own rate by default.
        channels (int, optional): mix to this number of channels, see [`mix_channels`]. All of them by default.

    Returns:
        tuple[np.ndarray, int]: audio of shape (C, N), float32 in [-1, 1], and its sampling rate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, empty, or no audio.
        TypeError: `source` is nothing that can be read.

    Example:

        >>> from mimi_hf.audio.mix import read_audio
        >>> audio, rate = read_audio("speech.flac", sampling_rate=24_000, channels=1)  # doctest: +SKIP
    """
    audio, rate = _decode(*_open(source))
    if channels is not None:
        audio = mix_channels(audio, channels)
    if sampling_rate is not None:
        audio, rate = resample(audio, rate, sampling_rate), sampling_rate
    return audio, rate


def write_audio(path, audio, sampling_rate):
    """Write an audio file: wav (16 bit), flac (16 bit) or ogg (Vorbis), as the extension says.

    The file appears whole or not at all: it is written aside in the same folder, then renamed.

    Args:
        path (str or os.PathLike): where to; what is there already is replaced.
        audio (np.ndarray or torch.Tensor): (C, N) or (N,), real floating point. Clipped to [-1, 1].
        sampling_rate (int): samples per second.

    Raises:
        ValueError: an unknown extension, audio that is empty or not finite, or that the format cannot hold.
        TypeError: audio that is not floating point.
        OSError: the file cannot be written, for example because its folder does not exist.
    """
    path = Path(os.fsdecode(path))
    kind, samples, rate = _check_writable(path, audio, sampling_rate)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    with written_beside(path) as aside:
        _encode(aside, kind, samples, rate)


def resample(audio, from_rate, to_rate):
    """Change the sampling rate with soxr (high quality).

    Args:
        audio (np.ndarray): (..., N), floating point; the last axis is time.
        from_rate, to_rate (int or float): samples per second, positive.

    Returns:
        np.ndarray: (..., N * to_rate / from_rate), rounded; float64 where `audio` is, else float32. `audio` itself
        where both rates are equal.

    Raises:
        ValueError, TypeError: for a rate that is no positive number, or audio that is not floating point.
    """
    import soxr

    from_rate, to_rate = check_rate(from_rate, "from_rate"), check_rate(to_rate, "to_rate")
    audio = np.asarray(audio)
    if from_rate == to_rate:
        return audio
    if audio.dtype.kind != "f":
        raise TypeError(f"Audio to resample must be floating point, not {audio.dtype}. Convert it first.")
    if audio.dtype != np.float64:
        audio = audio.astype(np.float32)
    rows = np.ascontiguousarray(audio).reshape(math.prod(audio.shape[:-1]), audio.shape[-1])
    columns = soxr.resample(rows.T, from_rate, to_rate, quality="HQ")  # (N, rows) in and out
    return np.ascontiguousarray(columns.T).reshape(*audio.shape[:-1], len(columns))


def mix_channels(audio, channels):
    """Mix to mono, or double mono to stereo.

    Args:
        audio (np.ndarray): (C, N).
        channels (int): how many are wanted: C itself; 1, which is the mean of all; or 2 where C is 1.

    Returns:
        np.ndarray: (channels, N).

    Raises:
        ValueError: for other numbers of channels, as there is no one way to mix them.
    """
    present = audio.shape[0]
    if channels == present:
        return audio
    if channels == 1 and present > 1:
        return audio.mean(axis=0, keepdims=True)
    if channels == 2 and present == 1:
        return np.repeat(audio, 2, axis=0)
    raise ValueError(
        f"{present} channels cannot be mixed to {channels!r}: known are all to 1 (the mean) and 1 to 2 (doubled)."
        " Mix the audio yourself, or select channels."
    )


def check_rate(rate, name="sampling_rate"):
    """The sampling rate as a plain int or float; refuses what is no finite number of at least 1."""
    value = rate.item() if hasattr(rate, "item") and getattr(rate, "ndim", None) == 0 else rate
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}={rate!r} must be a number of samples per second, for example 24000.")
    if not 1 <= value < math.inf:
        raise ValueError(f"{name}={rate!r} must be positive: at least 1 sample per second. Give it in Hz, like 24000.")
    return int(value) if value == int(value) else float(value)


def _open(source):
    """What soundfile opens for `source`, and what to call it in messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), f"the audio of {memoryview(source).nbytes} bytes"
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if not os.path.exists(path) or os.path.isdir(path):
            problem = "is a folder" if os.path.isdir(path) else "does not exist"
            raise FileNotFoundError(f"{_shorten(path)} {problem}; the path of an audio file is needed.")
        return path, _shorten(path)
    if hasattr(source, "read"):
        content = source.read()
        if isinstance(content, bytes):
            return io.BytesIO(content), f"the audio in {_shorten(getattr(source, 'name', type(source).__name__))}"
        raise TypeError(
            f"The file object {source!r} gives {type(content).__name__}, not bytes. Open it with mode 'rb'."
        )
    raise TypeError(
        f"Audio cannot be read from {type(source).__name__}. Give a path, the bytes of a file, or a binary file object."
    )


def _decode(file, name):
    """Audio (C, N) float32 and its rate from what [`_open`] gives."""
    import soundfile

    try:
        with soundfile.SoundFile(for_soundfile(file)) as sound:
            if sound.frames == _UNKNOWN_LENGTH:
                raise ValueError(f"{name} does not say how long it is, as it was streamed. Encode it again to a file.")
            samples = sound.read(dtype="float32", always_2d=True)  # (N, C)
            expected, rate = expected_samples(sound), sound.samplerate
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless format, by its extension
        raise unreadable(name, error) from error
    except MemoryError as error:
        raise unreadable(name, f"its header says that it has {sound.frames} samples: {error}") from error
    check_complete(name, len(samples), expected)
    return np.ascontiguousarray(samples.T), rate


def for_soundfile(file):
    """A path as soundfile takes it, whatever bytes its name is made of; a file object as it is."""
    return os.fsencode(file) if isinstance(file, str | os.PathLike) else file


def expected_samples(sound):
    """Samples per channel that a `soundfile.SoundFile` must give; 0 where its header only estimates them (mp3)."""
    return 0 if sound.format == "MP3" else sound.frames


def unreadable(name, error):
    """The error for what libsndfile refuses."""
    return ValueError(
        f"{name} cannot be read as audio ({error}). It is damaged, or its format is not among those supported:"
        f" {READABLE}."
    )


def check_complete(name, samples, expected):
    """Refuse a file that ends early, or is empty."""
    if samples < expected:
        raise ValueError(f"{name} is damaged: only {samples} of its {expected} samples can be read.")
    if not samples:
        raise ValueError(f"{name} is empty: it has no samples. Leave it out.")


def _check_writable(path, audio, sampling_rate):
    """libsndfile's name of the format, samples (N, C) and the rate, after all checks."""
    if path.suffix.lower() not in WRITABLE:
        raise ValueError(f"{path} has the extension {path.suffix!r}, but known are {', '.join(WRITABLE)}.")
    kind, most_channels, highest_rate = WRITABLE[path.suffix.lower()]
    audio = to_numpy(audio)
    if audio.dtype.kind != "f":
        raise TypeError(f"Audio to write must be floating point in [-1, 1], not {audio.dtype}. Scale and convert it.")
    if audio.ndim not in (1, 2) or audio.size == 0:
        raise ValueError(f"Audio to write has shape {audio.shape}, but (channels, samples) or (samples,) is needed.")
    audio = np.atleast_2d(audio)
    if len(audio) > most_channels:
        raise ValueError(
            f"Audio to write has shape {audio.shape}: {len(audio)} channels, but {kind} holds up to {most_channels}."
            " The shape must be (channels, samples): transpose, or mix."
        )
    if not np.isfinite(audio).all():
        raise ValueError("Audio to write holds NaN or infinity. Replace these, for example with numpy.nan_to_num.")
    rate = check_rate(sampling_rate)
    if rate != int(rate) or rate > highest_rate:
        raise ValueError(
            f"sampling_rate={rate} must be a whole number up to {highest_rate} for {kind}. Resample first."
        )
    return kind, audio.T, rate


def _encode(path, kind, samples, rate):
    """Write samples (N, C) in blocks."""
    import soundfile

    try:
        with soundfile.SoundFile(for_soundfile(path), "w", rate, samples.shape[1], format=kind) as sound:
            for start in range(0, len(samples), _WRITE_BLOCK):
                block = samples[start : start + _WRITE_BLOCK]
                sound.write(np.ascontiguousarray(block.clip(-1, 1), dtype=np.float32))
    except soundfile.SoundFileError as error:
        raise OSError(f"{path.parent} takes no {kind} file: {error} Check permissions and free space.") from error


def _shorten(name):
    """A path for a message; a text that was mistaken for one may be long."""
    name = str(name)
    return repr(name if len(name) <= 200 else f"{name[:200]}…")
