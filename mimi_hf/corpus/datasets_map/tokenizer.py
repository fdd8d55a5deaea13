"""Callables for `datasets`: [`AudioTokenizer`] turns a column of audio into codes, [`AudioDetokenizer`] the reverse.

Letters for shapes: C channels, N samples, K codebooks, F frames.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from transformers.utils import logging

from mimi_hf.audio.mix import check_rate
from mimi_hf.corpus.names import CODES, SAMPLES
from mimi_hf.feature_extraction_mimi import MimiFeatureExtractor
from mimi_hf.inference.batches import code_dtype, decode_all, encode_all, group_in_order
from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.utils.arrays import to_numpy

from .map_function import MapFunction, hash_by_description
from .read_column import fetch, read_column

if TYPE_CHECKING:
    from datasets import Features

logger = logging.get_logger(__name__)

ERROR = "audio_error"


@hash_by_description
class AudioTokenizer(MapFunction):
    """Adds codes to the examples of a data set: `dataset.map(AudioTokenizer("kyutai/mimi"), batched=True)`.

    It works batched (faster: audio of similar length goes through the model together) and unbatched, on a `Dataset`
    with any `num_proc`, and on an `IterableDataset`. Each process loads the model once, and takes its share of the
    threads. The codes of an example do not depend on its neighbours. `datasets` finds its cache again for the same
    weights, dtype and arguments, whatever the device, batch_seconds and the name of a folder.

    The column may hold anything that [`MimiFeatureExtractor`] takes: `{"bytes", "path"}`, paths, URLs, bytes,
    `{"array", "sampling_rate"}`, arrays, decoders; at any rate, mono or stereo. A column of type `Audio` is read from
    its files, so torchcodec is not needed.

    New columns are

    - `audio_codes`: (K, F), uint16 (uint32 if codebooks have more than 65536 entries);
    - `audio_num_samples`: N, at the rate of the model: decoded audio is cut to it;
    - `audio_error`, with `on_error="skip"` alone: why an example could not be read, "" if it could.

    Args:
        model (str, os.PathLike or MimiModel): an id on the Hub, a folder, or the model itself.
        num_quantizers (int, optional): codebooks to use; all by default.
        audio_column (str): where the audio is.
        codes_column (str): where the codes go.
        sampling_rate (int, optional): of arrays that come without one; by default that of the model.
        device (str, optional): by default a GPU if there is one; with `with_rank=True` each process takes its own.
        dtype (str, optional): "float32" (default), "bfloat16" or "float16".
        revision (str, optional): of the model on the Hub.
        batch_seconds (float, optional): padded audio in a batch of the model; by default what suits the device. The
            `batch_size` of `map` only limits how much is sorted by length.
        on_error (str): "raise", or "skip": an example that cannot be read gets no frames, (K, 0), 0 samples and an
            `audio_error`.

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
        model: str | os.PathLike[str] | MimiModel = "kyutai/mimi",
        num_quantizers: int | None = None,
        audio_column: str = "audio",
        codes_column: str = CODES,
        sampling_rate: int | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        batch_seconds: float | None = None,
        on_error: str = "raise",
    ):
        super().__init__(model, device, dtype, revision, batch_seconds)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'skip'.")
        least, most = self.config.num_semantic_quantizers, self.config.num_quantizers
        wanted = most if num_quantizers is None else num_quantizers
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not least <= wanted <= most:
            raise ValueError(
                f"num_quantizers={wanted!r} must be an integer from {least} to {most}, as this model has codebooks."
            )
        self.num_quantizers = wanted
        self.audio_column, self.codes_column = audio_column, codes_column
        self.sampling_rate = None if sampling_rate is None else check_rate(sampling_rate)
        self.on_error = on_error

    def __call__(self, examples: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Encode one example or a batch.

        Args:
            examples: as `map` passes them. In a plain dictionary, an array of two dimensions is a batch.
            rank: of the process, as `map` passes it with `with_rank=True`.

        Returns:
            The new columns: the values of one example, or lists of them for a batch.

        Raises:
            ValueError, TypeError: for audio that cannot be read, unless `on_error="skip"`, and a missing column.
        """
        values, batched = read_column(examples, self.audio_column, "audio_column")
        columns = self.source.run(lambda model: self._encode(model, values), rank)
        return columns if batched else {name: column[0] for name, column in columns.items()}

    def output_features(self, features: Features | None) -> Features:
        """`datasets.Features` after `map`, for its argument `features`, without which an `IterableDataset` has none."""
        from datasets import Features, Value

        added = {self.codes_column: [[Value(code_dtype(self.config.codebook_size).name)]], SAMPLES: Value("int64")}
        if self.on_error == "skip":
            added[ERROR] = Value("string")
        return Features({**(features or {}), **added})

    def _encode(self, model: MimiModel, values: list) -> dict[str, list]:
        nothing = np.empty((self.num_quantizers, 0), code_dtype(self.config.codebook_size))
        codes, lengths, errors = [], [], []
        for window in group_in_order(self._read(values), lambda item: item[0].shape[1], self.window_samples(model)):
            readable = [audio for audio, error in window if not error]
            encoded = iter(encode_all(model, readable, self.num_quantizers, self.batch_seconds))
            for audio, error in window:
                codes.append(nothing if error else next(encoded))
                lengths.append(audio.shape[1])
                errors.append(error)
        columns = {self.codes_column: codes, SAMPLES: lengths}
        return {**columns, ERROR: errors} if self.on_error == "skip" else columns

    def _read(self, values: list) -> Iterator[tuple[np.ndarray, str]]:
        """For each value its audio, (C, N), and why it cannot be read; then N is 0."""
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


@hash_by_description
class AudioDetokenizer(MapFunction):
    """Adds audio to the examples of a data set of codes, the reverse of [`AudioTokenizer`].

    If there is a column `audio_num_samples`, audio is cut to it. Examples without frames get `None` for audio; give
    `map` the features of [`output_features`] if a whole batch may have no frames.

    Args:
        model (str, os.PathLike or MimiModel): an id on the Hub, a folder, or the model itself.
        codes_column (str): where the codes are, (K, F) each.
        audio_column (str): where the audio goes; a column of this name is replaced.
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
        model: str | os.PathLike[str] | MimiModel = "kyutai/mimi",
        codes_column: str = CODES,
        audio_column: str = "audio",
        audio_format: str = "flac",
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        batch_seconds: float | None = None,
    ):
        super().__init__(model, device, dtype, revision, batch_seconds)
        if audio_format not in ("flac", "wav", "array"):
            raise ValueError(f"audio_format={audio_format!r} must be 'flac', 'wav' or 'array'.")
        self.codes_column, self.audio_column = codes_column, audio_column
        self.audio_format = audio_format

    def __call__(self, examples: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Decode one example or a batch.

        Args:
            examples: as `map` passes them.
            rank: of the process, as `map` passes it with `with_rank=True`.

        Returns:
            The new column: the value of one example, or a list of them for a batch.

        Raises:
            ValueError, TypeError: for codes that this model cannot decode, and a missing column.
        """
        values, batched = read_column(examples, self.codes_column, "codes_column", depth=2)
        lengths = [None] * len(values)
        if SAMPLES in examples:
            lengths = examples[SAMPLES]
            lengths = list(lengths) if batched else [lengths]
        audio = self.source.run(lambda model: self._decode(model, values), rank)
        audio = [self._pack(*pair) for pair in zip(audio, lengths, strict=True)]
        return {self.audio_column: audio if batched else audio[0]}

    def output_features(self, features: Features | None) -> Features:
        """`datasets.Features` after `map`, for its argument `features`, without which an `IterableDataset` has none."""
        from datasets import Features, Value

        array = [Value("float32")] if self.config.audio_channels == 1 else [[Value("float32")]]
        audio = {"bytes": Value("binary"), "path": Value("string")}
        if self.audio_format == "array":
            audio = {"array": array, "sampling_rate": Value("int64")}
        return Features({**(features or {}), self.audio_column: audio})

    def _decode(self, model: MimiModel, values: list) -> list[np.ndarray | None]:
        """For each value its audio, (C, F * frame_size); `None` without frames."""
        checked = enumerate(_check_codes(model, index, value) for index, value in enumerate(values))
        whole = ((index, codes) for index, codes in checked if codes is not None)
        most = self.window_samples(model) / self.config.frame_size
        audio: list[np.ndarray | None] = [None] * len(values)
        for window in group_in_order(whole, lambda item: item[1].shape[1], most):
            decoded = decode_all(model, [codes for _, codes in window], batch_seconds=self.batch_seconds)
            for (index, _), recording in zip(window, decoded, strict=True):
                audio[index] = recording
        return audio

    def _pack(self, audio: np.ndarray | None, num_samples: int | None) -> dict[str, Any] | None:
        """Audio (C, N) in the form of `audio_format`."""
        audio = audio if audio is None or num_samples is None else audio[:, : int(num_samples)]
        if audio is None or not audio.size:
            return None
        rate = self.config.sampling_rate
        if self.audio_format == "array":
            return {"array": audio[0] if len(audio) == 1 else audio, "sampling_rate": rate}
        file = io.BytesIO()
        soundfile.write(file, audio.T.clip(-1, 1), rate, format=self.audio_format.upper(), subtype="PCM_16")
        return {"bytes": file.getvalue(), "path": f"audio.{self.audio_format}"}


def _check_codes(model: MimiModel, index: int, value: Any) -> np.ndarray | None:
    """Codes (K, F) of one example; `None` if it has no frames."""
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
        return model.check_codes(torch.from_numpy(codes.astype(np.int64))[None])[0].numpy()
    except (ValueError, TypeError) as error:
        raise type(error)(f"Codes of example {index}: {error}") from error


__all__ = ["AudioDetokenizer", "AudioTokenizer"]
