"""Feature extractor of the Mimi codec: audio in any form becomes the padded batch that the model takes.

Letters for shapes: B batch, C channels, N samples.
"""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol, TypeAlias

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, logging

from .audio import mix_channels, read_audio, resample
from .audio.mix import check_rate
from .utils.arrays import to_numpy

if TYPE_CHECKING:
    import torch

if TYPE_CHECKING:
    import torch

logger = logging.get_logger(__name__)

# An array with more rows than this is taken for (samples, channels), which is refused.
MAX_CHANNELS = 8


class AudioDecoder(Protocol):
    """What torchcodec's `AudioDecoder` offers, and `datasets` gives: its samples have `data` (C, N) and a rate."""

    def get_all_samples(self) -> Any:
        """Decode the whole file."""
        ...


# One example of audio; a list of them is a batch.
AudioExample: TypeAlias = (
    "np.ndarray | torch.Tensor | Sequence[Any] | str | os.PathLike | bytes | BinaryIO | Mapping | AudioDecoder"
)


class MimiFeatureExtractor(SequenceFeatureExtractor):
    """Turns audio into `input_values` and `padding_mask` for [`MimiModel`].

    Valid audio that transformers' `EncodecFeatureExtractor` accepts (the class that the Hub's Mimi checkpoints name)
    gives the same result here, bit for bit, with one exception: a list of arrays or tensors is always a batch, whereas
    that class takes a list of two tensors, for a stereo model, as the two channels of one example.

    This class also takes files and tensors, and converts other sampling rates and numbers of channels. It refuses input
    that cannot be right: integers of unknown scale, NaN and infinity, empty audio.

    Args:
        feature_size: channels of the model: 1 for mono, 2 for stereo.
        sampling_rate: samples per second of the model.
        padding_value: fills up shorter examples.
        chunk_length_s: seconds in a chunk. If given, lengths are padded to whole chunks.
        overlap: the share of a chunk, from 0 to 1, that the next chunk repeats. Chunks need it.
        **kwargs: `padding_side`, `"right"` (default) or `"left"`, and what transformers' base class takes.

    Raises:
        ValueError: a value is out of range. The message says why.

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
        feature_size: int = 1,
        sampling_rate: int = 24_000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        **kwargs: Any,
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
            raise ValueError(f"overlap={overlap!r} must be from 0 to 1, a share of the chunk; None for no chunks.")

    def to_dict(self) -> dict[str, Any]:
        """The values to save, without the name of the class.

        So `AutoFeatureExtractor` follows the model type in config.json, in the same folder: to this class, or, where
        this package is not installed, to the class that transformers has for Mimi.
        """
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
        """Samples from the start of one chunk to the start of the next, or `None` without chunks."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def __call__(
        self,
        raw_audio: "AudioExample | Sequence[AudioExample]",
        padding: bool | str | PaddingStrategy | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: float | None = None,
    ) -> BatchFeature:
        """Make a batch of one or several examples.

        An example is one of these; a list or tuple of them is a batch, whose examples may have different forms:

        - an array or tensor, (N,) or (C, N), floating point in [-1, 1]; or nested lists of numbers;
        - a path, or the bytes of an audio file (wav, flac, ogg, mp3, …), or an open binary file;
        - a dictionary as `datasets` gives: `{"array": …, "sampling_rate": …}` or `{"bytes": …, "path": …}`;
        - a torchcodec `AudioDecoder`.

        A list of numbers is one example, and a list of lists is a batch. Every example is mixed to the channels of the
        model (many to mono: their mean; mono to stereo: twice the same) and resampled to its sampling rate.

        Args:
            raw_audio: the example or the batch.
            padding: `True` or `"longest"` (default): pad to the longest example, in whole chunks where there are
                chunks; `"max_length"`: pad to `max_length`; `False`: no padding, examples keep their lengths.
            truncation: cut examples to `max_length`, or, without it, to the whole chunks of the shortest example.
                Together with an explicit `padding`, `max_length` is needed.
            max_length: samples per channel, at the rate of the model.
            return_tensors: `"pt"` or `"np"`; a list of numpy arrays by default.
            sampling_rate: the rate of arrays that come without one. The rate that a file, a dictionary or a decoder
                states wins. Where no rate is known, the rate of the model is assumed, with one warning.

        Returns:
            BatchFeature: `input_values` (B, C, N) float32, and, unless `padding` is `False`, `padding_mask` (B, N)
            int32: 1 for a real sample, 0 for padding.

        Raises:
            ValueError: an example or an option is not valid. The message names the example (by its place in the
                batch), the value, the rule and the remedy.
            TypeError: an example is of a type that cannot be audio, or is not made of real numbers.
        """
        # Before the work is done: unknown or contradictory options.
        if return_tensors is not None:
            TensorType(return_tensors)  # raises for an unknown one
        if sampling_rate is not None:
            sampling_rate = check_rate(sampling_rate)
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
        padding = True if padding is None else padding

        examples = [self.load_example(i, example, sampling_rate) for i, example in enumerate(_as_batch(raw_audio))]
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

    def load_example(self, index: int, example: AudioExample, sampling_rate: float | None = None) -> np.ndarray:
        """Read one example, check it, mix it to the channels of the model and resample it to its rate.

        Args:
            index: the place of the example in its batch, for messages.
            example: one example, in any form that the feature extractor takes.
            sampling_rate: its rate, where it does not state one; by default that of the model, with one warning.

        Returns:
            np.ndarray: shape = (C, N), float32.

        Raises:
            ValueError: the example cannot be read, or is not valid audio.
            TypeError: it is of a type that cannot be audio, or is not made of real numbers.
        """
        try:
            audio, own_rate = _read(example)
            rate = own_rate if own_rate is not None else sampling_rate
            if rate is None:
                rate = self.sampling_rate
                logger.warning_once(
                    f"Audio came without a sampling rate and is taken as {rate} Hz. Pass sampling_rate, so that other"
                    " rates are resampled."
                )
            wrong = ~np.isfinite(audio)
            if wrong.any():
                channel, sample = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{wrong.sum()} of its samples are NaN or infinite as float32, the first is sample {sample} of"
                    f" channel {channel} ({audio[channel, sample]}). Leave it out, or repair it, for example with"
                    " numpy.nan_to_num."
                )
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

    def _chunked_length(
        self, lengths: list[int], padding: bool | str | PaddingStrategy, truncation: bool, max_length: int | None
    ) -> tuple[int | None, bool | str | PaddingStrategy]:
        """`max_length` and `padding` for whole chunks; unchanged where there are no chunks, or nothing to do."""
        length, stride = self.chunk_length, self.chunk_stride
        if length is None or stride is None or max_length is not None or not (padding or truncation):
            return max_length, padding
        chunks = min(lengths) // stride if truncation else math.ceil(max(lengths) / stride)
        max_length = (chunks - 1) * stride + length
        if max_length < 1:
            raise ValueError(
                f"The shortest example has {min(lengths)} samples, less than a chunk ({length}), so that truncation"
                " leaves nothing. Pad instead, or leave it out."
            )
        return max_length, padding if truncation else "max_length"


def is_number(value: object) -> bool:
    """Whether a value is one number: of Python, of numpy, or an array or tensor without dimensions."""
    if isinstance(value, (str, bytes)):  # which numpy.str_ and numpy.bytes_ are too
        return False
    return isinstance(value, (numbers.Number, np.generic)) or getattr(value, "ndim", None) == 0


def _as_batch(raw_audio: "AudioExample | Sequence[AudioExample]") -> list[Any]:
    """The list of examples. A sequence is a batch unless it begins with a number; all else is one example."""
    if not isinstance(raw_audio, Sequence) or isinstance(raw_audio, (str, bytes, bytearray, memoryview)):
        return [raw_audio]
    items = list(raw_audio)
    if not items:
        raise ValueError("raw_audio is empty, but a batch needs at least one example, and an example one sample.")
    return [items] if is_number(items[0]) else items


def _read(example: Any) -> tuple[np.ndarray, float | None]:
    """Audio (C, N) float32 of an example in any form, and its sampling rate, or `None` where it states none."""
    if isinstance(example, Mapping):  # as `datasets` gives them
        if example.get("array") is not None:
            rate = example.get("sampling_rate")
            return _as_audio(example["array"]), None if rate is None else check_rate(rate)
        for key in ("bytes", "path"):
            if example.get(key) is not None:
                return read_audio(example[key])
        raise ValueError(
            f"a dictionary needs a value under 'array', 'bytes' or 'path', but this one has {list(example)}."
        )
    if isinstance(example, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(example, "read"):
        return read_audio(example)
    if hasattr(example, "get_all_samples"):
        samples = example.get_all_samples()
        return _as_audio(samples.data, oriented=True), check_rate(samples.sample_rate)
    return _as_audio(example), None


def _as_audio(values: Any, oriented: bool = False) -> np.ndarray:
    """(C, N) float32 of an array, a tensor or nested lists; `oriented` where the shape is known to be (C, N)."""
    try:
        array = to_numpy(values)
    except ValueError as error:
        raise ValueError(f"its lists have different lengths ({error}). Make every channel equally long.") from error
    if array.size == 0:
        raise ValueError(f"it is empty, of shape {array.shape}, but needs at least one sample. Leave it out.")
    _check_numbers(array, listed=isinstance(values, (list, tuple)))
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
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, and is refused as such
        return np.atleast_2d(array.astype(np.float32, copy=False))


def _check_numbers(array: np.ndarray, listed: bool) -> None:
    """Refuse what is no real number, and integers, unless they were `listed` and lie within [-1, 1]."""
    kind = array.dtype.kind
    if kind == "O":
        # Where all are numbers, the largest is too large for a machine integer.
        strange = [item for item in array.flat if not isinstance(item, numbers.Real)]
        offender = strange[0] if strange else max(array.flat, key=abs)
        text = repr(offender)
        raise TypeError(
            f"{text if len(text) <= 80 else f'{text[:80]}…'} is of type {type(offender).__name__}, but audio is an"
            " array, a tensor or a list of real numbers in [-1, 1], a path, the bytes of an audio file, a dictionary of"
            " 'array', 'bytes' or 'path', or a decoder."
        )
    if kind not in "iuf":
        raise TypeError(f"its type is {array.dtype}, but audio is made of real numbers in [-1, 1]. Convert it.")
    if kind in "iu" and not (listed and array.min() >= -1 and array.max() <= 1):
        raise ValueError(
            f"its type is {array.dtype}, an integer whose full scale is unknown, but audio is floating point in"
            " [-1, 1]. Divide it first: 16-bit audio (int16) by 32768, 32-bit by 2147483648; uint8 is (x - 128) / 128."
        )
