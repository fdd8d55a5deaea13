"""Feature extractor of the Mimi codec: audio in whatever form becomes the padded batch that the model takes."""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, logging

from .audio import mix_channels, read_audio, resample
from .audio.mix import check_rate
from .utils.arrays import to_numpy

logger = logging.get_logger(__name__)

# An array with more rows than this is taken for (samples, channels), which is refused.
MAX_CHANNELS = 8


class MimiFeatureExtractor(SequenceFeatureExtractor):
    """Turns audio into `input_values` and `padding_mask` for [`MimiModel`].

    Sound audio that transformers' `EncodecFeatureExtractor` (which the Hub's Mimi checkpoints name) accepts gives the
    same result here, bit for bit. Beyond that, files and tensors are taken as well, and other sampling rates and
    numbers of channels are converted instead of refused. What it lets pass although it cannot be right is refused:
    integers of unknown scale, NaN and infinity, empty audio. And a list of arrays or tensors is always a batch, where
    it takes a list of two tensors, for a stereo model, for the two channels of one example.

    Args:
        feature_size (int): channels of the model: 1 for mono, 2 for stereo.
        sampling_rate (int): samples per second of the model.
        padding_value (float): what shorter examples are filled up with.
        chunk_length_s (float, optional): if given, lengths are made whole chunks of so many seconds.
        overlap (float, optional): the part of a chunk, from 0 to 1, that the next one repeats. Chunks need it.
        padding_side (str): `"right"` (default) or `"left"`.

    Raises:
        ValueError: for a value that makes no sense. The message says why.

    Example:

        >>> import numpy as np
        >>> from mimi_hf import MimiFeatureExtractor
        >>> feature_extractor = MimiFeatureExtractor()
        >>> one_second, two_seconds = np.zeros(16_000), np.zeros((2, 32_000))  # mono and stereo
        >>> inputs = feature_extractor([one_second, two_seconds], sampling_rate=16_000, return_tensors="pt")
        >>> inputs["input_values"].shape, inputs["padding_mask"].sum(dim=1)
        (torch.Size([2, 1, 48000]), tensor([24000, 48000]))
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size=1,
        sampling_rate=24_000,
        padding_value=0.0,
        chunk_length_s=None,
        overlap=None,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.chunk_length_s = chunk_length_s
        self.overlap = overlap
        check_rate(sampling_rate)
        if feature_size not in (1, 2):
            raise ValueError(
                f"feature_size={feature_size!r} must be 1 (mono) or 2 (stereo), as the model has channels."
            )
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"padding_side={self.padding_side!r} must be 'right' or 'left'.")
        if chunk_length_s is not None and not chunk_length_s > 0:
            raise ValueError(f"chunk_length_s={chunk_length_s!r} must be positive, in seconds; None for no chunks.")
        if overlap is not None and not 0 <= overlap <= 1:
            raise ValueError(f"overlap={overlap!r} must be from 0 to 1, a part of the chunk; None for no chunks.")

    def to_dict(self):
        """What is saved. It names no class: the model type in config.json, beside it, leads `AutoFeatureExtractor` here
        and, where this package is not installed, to the class that transformers has for Mimi."""
        content = super().to_dict()
        content.pop("feature_extractor_type", None)
        return content

    # Properties, as chunk_length_s and overlap may be changed at any time.
    @property
    def chunk_length(self) -> int | None:
        """Samples per chunk, or `None` without chunks."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the start of one chunk to that of the next, or `None` without chunks."""
        if self.chunk_length_s is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def __call__(
        self, raw_audio, padding=None, truncation=False, max_length=None, return_tensors=None, sampling_rate=None
    ) -> BatchFeature:
        """Make a batch of one or several examples.

        An example is one of these; a list or tuple of them, mixed too, is a batch:

        - an array or tensor, (N,) or (C, N), floating point in [-1, 1]; or nested lists of numbers;
        - a path, or the bytes of an audio file (wav, flac, ogg, mp3, …), or an open binary file;
        - a dictionary as `datasets` gives: `{"array": …, "sampling_rate": …}` or `{"bytes": …, "path": …}`;
        - a torchcodec `AudioDecoder`.

        A list of numbers is one example, and a list of lists is a batch. Every example is mixed to the channels of the
        model (many to mono: their mean; mono to stereo: twice the same) and resampled to its sampling rate.

        Args:
            raw_audio: the example or the batch.
            padding (bool, str or PaddingStrategy, optional): `True` or `"longest"` (default): to the longest example,
                in whole chunks where there are chunks; `"max_length"`: to `max_length`; `False`: none, lengths stay.
            truncation (bool): cut examples to `max_length`, or, in its absence, to the whole chunks of the shortest.
                Together with an explicit `padding`, `max_length` is needed.
            max_length (int, optional): samples per channel, at the rate of the model.
            return_tensors (str, optional): `"pt"` or `"np"`; a list of numpy arrays by default.
            sampling_rate (int, optional): of arrays that do not say it themselves. What a file, a dictionary or a
                decoder says about itself wins. Without any, the rate of the model is assumed, with one warning.

        Returns:
            BatchFeature: `input_values` (B, C, N) float32, and, unless `padding` is `False`, `padding_mask` (B, N)
            int32: 1 where there is a real sample, 0 where there is padding.

        Raises:
            ValueError, TypeError: naming the example (by its place in the batch), the value, the rule and the remedy.
        """
        if return_tensors is not None:
            TensorType(return_tensors)  # raises for an unknown one before the work is done
        if sampling_rate is not None:
            sampling_rate = check_rate(sampling_rate)
        self._check_lengths(padding, truncation, max_length)
        padding = True if padding is None else padding

        examples = [self._load(i, example, sampling_rate) for i, example in enumerate(_as_batch(raw_audio))]
        if isinstance(raw_audio, np.ndarray) and raw_audio.dtype == np.float16:
            examples = [examples[0].astype(np.float16)]  # EncodecFeatureExtractor keeps half precision of one array

        lengths = [example.shape[-1] for example in examples]
        max_length, padding = self._chunked_length(lengths, padding, truncation, max_length)
        # Sequences are padded time first: (N,) or (N, 2).
        sequences = [example[0] if self.feature_size == 1 else example.T for example in examples]
        batch = self.pad(
            BatchFeature({"input_values": sequences}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            return_attention_mask=bool(padding),
        )
        if padding:
            batch["padding_mask"] = batch.pop("attention_mask")
        batch["input_values"] = [np.atleast_2d(sequence.T) for sequence in batch.pop("input_values")]
        return batch.convert_to_tensors(return_tensors)

    def _check_lengths(self, padding, truncation, max_length):
        """Refuse unknown or contradictory ways to make lengths equal."""
        if padding not in (None, True, False):
            PaddingStrategy(padding)  # raises for an unknown one
        if max_length is not None:
            if not isinstance(max_length, numbers.Integral) or max_length < 1:
                raise ValueError(f"max_length={max_length!r} must be a positive number of samples, or None.")
        elif truncation and padding:
            raise ValueError(
                f"Both padding={padding!r} and truncation={truncation!r} were set without a length. Give max_length,"
                " or only one of them."
            )
        elif truncation and self.chunk_stride is None:
            raise ValueError(f"truncation={truncation!r} needs a length to cut to. Give max_length, in samples.")

    def _load(self, index, example, sampling_rate):
        """Example `index` of the batch as (C, N) float32, with the channels and the sampling rate of the model."""
        try:
            audio, own_rate = _read(example)
            rate = own_rate if own_rate is not None else sampling_rate
            if rate is None:
                rate = self.sampling_rate
                logger.warning_once(
                    f"Audio came without a sampling rate and is taken as {rate} Hz. Pass sampling_rate, so that other"
                    " rates are resampled."
                )
            _check_finite(audio)
            audio = resample(mix_channels(audio, self.feature_size), rate, self.sampling_rate)
            if audio.shape[-1] == 0:
                raise ValueError(
                    f"too short, nothing is left of it from {rate} to {self.sampling_rate} Hz. Leave it out."
                )
            return audio
        except TypeError as error:
            raise TypeError(f"Audio example {index}: {error}") from error
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: what decoders raise for damaged audio
            raise ValueError(f"Audio example {index}: {error}") from error

    def _chunked_length(self, lengths, padding, truncation, max_length):
        """`max_length` and `padding` for whole chunks; as they are where there are no chunks, or nothing to do."""
        stride = self.chunk_stride
        if stride is None or max_length is not None or not (padding or truncation):
            return max_length, padding
        chunks = min(lengths) // stride if truncation else math.ceil(max(lengths) / stride)
        max_length = (chunks - 1) * stride + self.chunk_length
        if max_length < 1:
            raise ValueError(
                f"The shortest example has {min(lengths)} samples, less than a chunk ({self.chunk_length}), so that"
                " truncation leaves nothing. Pad instead, or leave it out."
            )
        return max_length, padding if truncation else "max_length"


def _as_batch(raw_audio):
    """The list of examples. A sequence is a batch unless it begins with a number; all else is one example."""
    if not isinstance(raw_audio, Sequence) or isinstance(raw_audio, (str, bytes, bytearray, memoryview)):
        return [raw_audio]
    items = list(raw_audio)
    if not items:
        raise ValueError("raw_audio is empty, but a batch needs at least one example, and an example one sample.")
    return [items] if _is_number(items[0]) else items


def _is_number(value):
    if isinstance(value, (str, bytes)):  # which numpy.str_ and numpy.bytes_ are too
        return False
    return isinstance(value, (numbers.Number, np.generic)) or getattr(value, "ndim", None) == 0


def _read(example):
    """Audio (C, N) float32 of any form of example, and its sampling rate where it says so, else `None`."""
    if isinstance(example, Mapping):
        return _read_dictionary(example)
    if isinstance(example, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(example, "read"):
        return read_audio(example)
    if hasattr(example, "get_all_samples"):  # a torchcodec AudioDecoder
        samples = example.get_all_samples()
        return _as_audio(samples.data, oriented=True), check_rate(samples.sample_rate)
    return _as_audio(example), None


def _read_dictionary(example):
    """As [`_read`], for the dictionaries of `datasets`."""
    if example.get("array") is not None:
        rate = example.get("sampling_rate")
        return _as_audio(example["array"]), None if rate is None else check_rate(rate)
    for key in ("bytes", "path"):
        if example.get(key) is not None:
            return read_audio(example[key])
    raise ValueError(f"a dictionary needs a value under 'array', 'bytes' or 'path', but this one has {list(example)}.")


def _as_audio(values, oriented=False):
    """(C, N) float32 of an array, a tensor or nested lists; `oriented` where the shape is known to be (C, N)."""
    try:
        array = to_numpy(values)
    except ValueError as error:
        raise ValueError(f"its lists have different lengths ({error}). Make every channel equally long.") from error
    if array.size == 0:
        raise ValueError(f"it is empty, of shape {array.shape}, but needs at least one sample. Leave it out.")
    _check_type(array, scaled=isinstance(values, (list, tuple)) and _within_one(array))
    _check_shape(array, oriented)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return np.atleast_2d(array.astype(np.float32, copy=False))


def _within_one(array):
    return array.dtype.kind in "iuf" and array.min() >= -1 and array.max() <= 1


def _check_type(array, scaled):
    """Refuse what is no real number, and integers, unless they are `scaled`: numbers of a list, within [-1, 1]."""
    if array.dtype.kind == "O":
        # Where all are numbers, the largest is too large for a machine integer.
        strange = [item for item in array.flat if not isinstance(item, numbers.Real)]
        offender = strange[0] if strange else max(array.flat, key=abs)
        raise TypeError(
            f"{_shorten(offender)} is of type {type(offender).__name__}, but audio is an array, a tensor or a list of"
            " real numbers in [-1, 1], a path, the bytes of an audio file, a dictionary of 'array', 'bytes' or 'path',"
            " or a decoder."
        )
    if array.dtype.kind not in "iuf":
        raise TypeError(f"its type is {array.dtype}, but audio is made of real numbers in [-1, 1]. Convert it.")
    if array.dtype.kind in "iu" and not scaled:
        raise ValueError(
            f"its type is {array.dtype}, an integer whose full scale is unknown, but audio is floating point in"
            " [-1, 1]. Divide it first: 16-bit audio (int16) by 32768, 32-bit by 2147483648; uint8 is (x - 128) / 128."
        )


def _check_shape(array, oriented):
    if array.ndim not in (1, 2):
        raise ValueError(
            f"its shape is {array.shape}, but (samples,) or (channels, samples) is expected. Give a batch as a list of"
            " examples."
        )
    channels, samples = array.shape if array.ndim == 2 else (1, len(array))
    if not oriented and (channels > MAX_CHANNELS or channels > max(2, samples)):
        raise ValueError(
            f"its shape is {array.shape}, but (channels, samples) with up to {MAX_CHANNELS} channels is expected."
            " Transpose it, or give a batch as a list of examples."
        )


def _check_finite(audio):
    wrong = ~np.isfinite(audio)
    if wrong.any():
        channel, sample = np.argwhere(wrong)[0]
        raise ValueError(
            f"{wrong.sum()} of its samples are NaN or infinite as float32, the first is sample {sample} of channel"
            f" {channel} ({audio[channel, sample]}). Leave it out, or repair it, for example with numpy.nan_to_num."
        )


def _shorten(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
