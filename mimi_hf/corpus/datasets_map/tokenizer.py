"""Callables for `datasets`: [`AudioTokenizer`] turns a column of audio into codes, [`AudioDetokenizer`] the reverse.

Letters for shapes: C channels, N samples, K codebooks, F frames.
"""

import io
import json
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
import wrapt
from transformers.utils import logging

from mimi_hf.audio.mix import check_rate
from mimi_hf.feature_extraction_mimi import MimiFeatureExtractor
from mimi_hf.inference.batches import code_dtype, decode_all, default_batch_seconds, encode_all, group_in_order
from mimi_hf.utils.arrays import to_numpy

from .columns import fetch, read_column
from .model_source import ModelSource

logger = logging.get_logger(__name__)

NUM_SAMPLES = "audio_num_samples"
ERROR = "audio_error"
# So many batches are held at once, and sorted by length.
_WINDOW_BATCHES = 8
# Part of the hash: to be counted up when the same arguments give something else.
_VERSION = 1

Item = TypeVar("Item")


class _Callable:
    """What both directions share: the model, and a hash by what is done, not where, how fast and with which memory."""

    def __init__(self, model, device, dtype, revision, batch_seconds):
        if batch_seconds is not None and not batch_seconds > 0:
            raise ValueError(f"batch_seconds={batch_seconds!r} must be positive, or None for what suits the device.")
        self.source = ModelSource(model, dtype, revision, device)
        self.batch_seconds = batch_seconds

    @property
    def config(self):
        """The [`MimiConfig`] of the model."""
        return self.source.config

    def _meaning(self) -> dict:
        """All that decides about the output, JSON-able; what `datasets` hashes."""
        arguments = {name: value for name, value in self.__dict__.items() if name not in ("source", "batch_seconds")}
        return {"class": type(self).__name__, "version": _VERSION, "model": self.source.identity, **arguments}

    def _most(self, model) -> float:
        """Samples of audio to hold at once."""
        return _WINDOW_BATCHES * (self.batch_seconds or default_batch_seconds(model)) * self.config.sampling_rate


class AudioTokenizer(_Callable):
    """Adds codes to the examples of a data set: `dataset.map(AudioTokenizer("kyutai/mimi"), batched=True)`.

    Works batched (faster: audio of much the same length goes through the model together) and unbatched, on a `Dataset`
    with any `num_proc`, and on an `IterableDataset`. Each process loads the model once, and takes its share of the
    threads. The codes of an example do not depend on its neighbours. `datasets` finds its cache again for the same
    weights, dtype and arguments; device, batch_seconds and the name of a folder do not count.

    The column may hold what [`MimiFeatureExtractor`] takes: `{"bytes", "path"}`, paths, URLs, bytes,
    `{"array", "sampling_rate"}`, arrays, decoders; at any rate, mono or stereo. A column of type `Audio` is read from
    its files, so that torchcodec is not needed.

    Added are

    - `audio_codes`: (K, F), uint16 (uint32 where codebooks have more than 65536 entries);
    - `audio_num_samples`: N, at the rate of the model, which tells what of the last frame is real;
    - `audio_error`, with `on_error="skip"` alone: why an example could not be read, "" where it was.

    Args:
        model (str, os.PathLike or MimiModel): an id on the Hub, a folder, or the model itself.
        num_quantizers (int, optional): codebooks to use; all by default.
        audio_column (str): where the audio is.
        codes_column (str): where the codes go.
        sampling_rate (int, optional): of arrays that do not say it themselves; by default that of the model.
        device (str, optional): a GPU by default, where there is one; with `with_rank=True` each process takes another.
        dtype (str, optional): "float32" (default), "bfloat16" or "float16".
        revision (str, optional): of the model on the Hub.
        batch_seconds (float, optional): padded audio in a batch of the model; by default what suits the device. The
            `batch_size` of `map` only says how much is sorted by length.
        on_error (str): "raise", or "skip": what cannot be read gets no frames, (K, 0), 0 samples and an `audio_error`.

    Raises:
        OSError, ValueError, TypeError: for a model that is not there, and arguments that make no sense.

    Example:

        >>> import numpy as np
        >>> from mimi_hf import AudioTokenizer, MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> tokenizer = AudioTokenizer(model, num_quantizers=8)
        >>> example = tokenizer({"audio": {"array": np.zeros(16_000), "sampling_rate": 16_000}})
        >>> example["audio_codes"].shape, example["audio_codes"].dtype, example["audio_num_samples"]
        ((8, 13), dtype('uint16'), 24000)
    """

    def __init__(
        self,
        model="kyutai/mimi",
        num_quantizers=None,
        audio_column="audio",
        codes_column="audio_codes",
        sampling_rate=None,
        device=None,
        dtype=None,
        revision=None,
        batch_seconds=None,
        on_error="raise",
    ):
        super().__init__(model, device, dtype, revision, batch_seconds)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'skip'.")
        self.num_quantizers = self._check_num_quantizers(num_quantizers)
        self.audio_column, self.codes_column = audio_column, codes_column
        self.sampling_rate = None if sampling_rate is None else check_rate(sampling_rate)
        self.on_error = on_error

    def _check_num_quantizers(self, wanted) -> int:
        least, most = self.config.num_semantic_quantizers, self.config.num_quantizers
        wanted = most if wanted is None else wanted
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not least <= wanted <= most:
            raise ValueError(
                f"num_quantizers={wanted!r} must be an integer from {least} to {most}, as this model has codebooks."
            )
        return wanted

    def __call__(self, examples: Mapping, rank: int | None = None) -> dict:
        """Codes of one example or of a batch of them.

        Args:
            examples: as `map` passes them. In a plain dictionary, an array of two dimensions is taken for a batch.
            rank: of the process, as `map` passes it with `with_rank=True`.

        Returns:
            The new columns: of one example its values, of a batch lists of them.

        Raises:
            ValueError, TypeError: for audio that cannot be read, unless `on_error="skip"`, and a missing column.
        """
        values, batched = read_column(examples, self.audio_column, "audio_column")
        columns = self.source.run(lambda model: self._encode(model, values), rank)
        return columns if batched else {name: column[0] for name, column in columns.items()}

    def output_features(self, features):
        """`datasets.Features` after `map`, for its argument `features`. An `IterableDataset` needs it to know them."""
        from datasets import Features, Value

        added = {self.codes_column: [[Value(code_dtype(self.config.codebook_size).name)]], NUM_SAMPLES: Value("int64")}
        if self.on_error == "skip":
            added[ERROR] = Value("string")
        return Features({**(features or {}), **added})

    def _encode(self, model, values: list) -> dict[str, list]:
        nothing = np.empty((self.num_quantizers, 0), code_dtype(self.config.codebook_size))
        codes, lengths, errors = [], [], []
        for window in group_in_order(self._read(values), lambda item: item[0].shape[1], self._most(model)):
            readable = [audio for audio, error in window if not error]
            encoded = iter(encode_all(model, readable, self.num_quantizers, self.batch_seconds))
            for audio, error in window:
                codes.append(nothing if error else next(encoded))
                lengths.append(audio.shape[1])
                errors.append(error)
        columns = {self.codes_column: codes, NUM_SAMPLES: lengths}
        return {**columns, ERROR: errors} if self.on_error == "skip" else columns

    def _read(self, values: list) -> Iterator[tuple[np.ndarray, str]]:
        """For each its audio, (C, N), and why it cannot be read, in which case N is 0."""
        config = self.config
        extractor = MimiFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate)
        for index, value in enumerate(values):
            try:
                audio = extractor.load_example(index, fetch(value), self.sampling_rate)
                yield np.require(audio, requirements="W"), ""  # PyTorch warns where memory is Arrow's
            except (OSError, ValueError, TypeError) as error:
                path = value.get("path") if isinstance(value, Mapping) else None
                message = f"{error} (Column {self.audio_column!r}{f', path {path!r}' if path else ''}.)"
                if self.on_error == "raise":
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    raise kind(f"{message} To go on without it, give on_error='skip'.") from error
                logger.warning(message)
                yield np.empty((config.audio_channels, 0), np.float32), message


class AudioDetokenizer(_Callable):
    """Adds audio to the examples of a data set of codes, the reverse of [`AudioTokenizer`].

    Where there is a column `audio_num_samples`, audio is cut to it. Examples without frames get no audio, `None`;
    give `map` the features of [`output_features`] where a whole batch may be such.

    Args:
        model (str, os.PathLike or MimiModel): an id on the Hub, a folder, or the model itself.
        codes_column (str): where the codes are, (K, F) each.
        audio_column (str): where the audio goes; what the new data set had there is replaced.
        audio_format (str): "flac" (default) or "wav": the bytes of a file, 16 bit, as
            `{"bytes": …, "path": "audio.flac"}`, which `cast_column(…, datasets.Audio())` makes playable. "array":
            `{"array": …, "sampling_rate": …}` with the array (N,), or (C, N) of a stereo model, float32.
        device, dtype, revision, batch_seconds: as for [`AudioTokenizer`].

    Raises:
        OSError, ValueError, TypeError: for a model that is not there, and arguments that make no sense.

    Example:

        >>> import numpy as np
        >>> from mimi_hf import AudioDetokenizer, MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> detokenizer = AudioDetokenizer(model, audio_format="array")
        >>> example = {"audio_codes": np.zeros((8, 13), np.uint16), "audio_num_samples": 24_000}
        >>> detokenizer(example)["audio"]["array"].shape
        (24000,)
    """

    def __init__(
        self,
        model="kyutai/mimi",
        codes_column="audio_codes",
        audio_column="audio",
        audio_format="flac",
        device=None,
        dtype=None,
        revision=None,
        batch_seconds=None,
    ):
        super().__init__(model, device, dtype, revision, batch_seconds)
        if audio_format not in ("flac", "wav", "array"):
            raise ValueError(f"audio_format={audio_format!r} must be 'flac', 'wav' or 'array'.")
        self.codes_column, self.audio_column = codes_column, audio_column
        self.audio_format = audio_format

    def __call__(self, examples: Mapping, rank: int | None = None) -> dict:
        """Audio of one example or of a batch of them.

        Args:
            examples: as `map` passes them.
            rank: of the process, as `map` passes it with `with_rank=True`.

        Returns:
            The new column: of one example its value, of a batch a list of them.

        Raises:
            ValueError, TypeError: for codes that are none of this model, and a missing column.
        """
        values, batched = read_column(examples, self.codes_column, "codes_column", depth=2)
        lengths = [None] * len(values)
        if NUM_SAMPLES in examples:
            lengths = examples[NUM_SAMPLES]
            lengths = list(lengths) if batched else [lengths]
        audio = self.source.run(lambda model: self._decode(model, values), rank)
        audio = [self._pack(*pair) for pair in zip(audio, lengths, strict=True)]
        return {self.audio_column: audio if batched else audio[0]}

    def output_features(self, features):
        """`datasets.Features` after `map`, for its argument `features`. An `IterableDataset` needs it to know them."""
        from datasets import Features, Value

        array = [Value("float32")] if self.config.audio_channels == 1 else [[Value("float32")]]
        audio = {"bytes": Value("binary"), "path": Value("string")}
        if self.audio_format == "array":
            audio = {"array": array, "sampling_rate": Value("int64")}
        return Features({**(features or {}), self.audio_column: audio})

    def _decode(self, model, values: list) -> list[np.ndarray | None]:
        """For each its audio, (C, F * frame_size); `None` without frames."""
        checked = enumerate(_check_codes(model, index, value) for index, value in enumerate(values))
        whole = ((index, codes) for index, codes in checked if codes is not None)
        most = self._most(model) / self.config.frame_size
        audio: list[np.ndarray | None] = [None] * len(values)
        for window in group_in_order(whole, lambda item: item[1].shape[1], most):
            decoded = decode_all(model, [codes for _, codes in window], batch_seconds=self.batch_seconds)
            for (index, _), recording in zip(window, decoded, strict=True):
                audio[index] = recording
        return audio

    def _pack(self, audio: np.ndarray | None, num_samples) -> dict | None:
        """Audio (C, N) in the form that was asked for."""
        import soundfile

        audio = audio if audio is None or num_samples is None else audio[:, : int(num_samples)]
        if audio is None or not audio.size:
            return None
        rate = self.config.sampling_rate
        if self.audio_format == "array":
            return {"array": audio[0] if len(audio) == 1 else audio, "sampling_rate": rate}
        file = io.BytesIO()
        soundfile.write(file, audio.T.clip(-1, 1), rate, format=self.audio_format.upper(), subtype="PCM_16")
        return {"bytes": file.getvalue(), "path": f"audio.{self.audio_format}"}


def _check_codes(model, index: int, value) -> np.ndarray | None:
    """Codes (K, F) of one example; `None` where it has no frames."""
    if value is None:
        return None
    try:
        codes = to_numpy([to_numpy(row) for row in value])
        if not codes.size:
            return None
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise ValueError(
                f"it is {codes.dtype} of shape {codes.shape}, but integers (codebooks, frames) are needed."
            )
        return model.quantizer.check_codes(torch.from_numpy(codes.astype(np.int64))[None])[0].numpy()
    except (ValueError, TypeError) as error:
        raise type(error)(f"Codes of example {index}: {error}") from error


def _hash_by_meaning(module):
    """Make the hash of `datasets` see what a callable does; where it cannot be told, other arguments count, too."""
    register = getattr(module, "pklregister", None)
    for kind in (AudioTokenizer, AudioDetokenizer) if register else ():

        @register(kind)
        def save(pickler, instance):
            pickler.save_reduce(str, (json.dumps(instance._meaning(), sort_keys=True),), obj=instance)


wrapt.register_post_import_hook(_hash_by_meaning, "datasets.utils._dill")

__all__ = ["AudioDetokenizer", "AudioTokenizer"]
