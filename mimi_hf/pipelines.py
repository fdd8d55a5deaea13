"""Pipelines of transformers: audio to codes, codes to audio, audio to latents.

Importing `mimi_hf` registers them, see [`mimi_hf.auto`]. Lists, generators and data sets, `batch_size`, `num_workers`,
`device` and `dtype` work as in any pipeline. What an item gives does not depend on its neighbours in a batch, of which
the model takes as many at once as suit its device.
"""

import numbers
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoTokenizer, FeatureExtractionPipeline, Pipeline

from .audio.mix import check_rate
from .feature_extraction_mimi import MimiFeatureExtractor
from .inference.batches import cut_batches, decode_all, default_batch_seconds
from .modeling_mimi import MimiModel
from .utils.arrays import to_numpy
from .utils.remote import fetch

# Where the data sets of `datasets` and their columns are defined: not to be imported for a look at a type.
_DATA_SETS = ("datasets.arrow_dataset", "datasets.iterable_dataset")


@dataclass(frozen=True)
class _Item:
    """An item and its place among the others, for messages."""

    index: int
    value: Any


class _Items(Dataset):
    """A list or data set, whose items tell their place."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return _Item(index, self.source[index])


class _MimiPipeline(Pipeline):
    """What the pipelines share: the model, its feature extractor, and what counts as one item.

    Between `preprocess` and `postprocess` an item is a dictionary of arrays and numbers, a batch one of lists.
    """

    # The feature extractor follows from the model's config. (The one that checkpoints on the Hub name reads no files.)
    _load_feature_extractor = _load_tokenizer = _load_processor = _load_image_processor = _load_video_processor = False
    _half = "encoder"

    def __init__(self, model, feature_extractor=None, **kwargs):
        if not isinstance(model, MimiModel):
            raise TypeError(
                f"This pipeline needs a MimiModel of mimi_hf, not a {type(model).__module__}.{type(model).__name__}."
                " Name a Mimi checkpoint, or load it with AutoModel after `import mimi_hf`."
            )
        model.require_half(self._half)
        super().__init__(model=model, feature_extractor=_fit(feature_extractor, model.config), **kwargs)

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, (list, tuple)) and not self._is_item(inputs):
            return list(super().__call__(_Items(inputs), **kwargs))
        if _is_stream(inputs):
            numbered = (_Item(index, value) for index, value in enumerate(inputs))
            return super().__call__(numbered, **kwargs)
        if isinstance(inputs, Dataset) or _is_of_datasets(inputs):
            return super().__call__(_Items(inputs), **kwargs)
        return super().__call__(_Item(0, inputs), **kwargs)

    def _is_item(self, values: list | tuple) -> bool:
        """Whether a list is one item."""
        raise NotImplementedError


class _FromAudio(_MimiPipeline):
    """What takes audio."""

    def _is_item(self, values):
        return bool(values) and isinstance(values[0], numbers.Number)

    def preprocess(self, inputs, sampling_rate=None):
        index, value = (inputs.index, inputs.value) if isinstance(inputs, _Item) else (0, inputs)
        try:
            audio = _plain_audio(value)
        except ValueError as error:
            raise ValueError(f"Audio example {index}: {error}") from error
        return {"input_values": self.feature_extractor.load_example(index, audio, sampling_rate)}

    def _forward(self, model_inputs, **parameters):
        audio = _as_list(model_inputs["input_values"])
        lengths = [samples.shape[1] for samples in audio]
        encoded = [torch.empty(0)] * len(audio)
        for batch in cut_batches(lengths, default_batch_seconds(self.model) * self.model.config.sampling_rate):
            values = torch.from_numpy(audio[batch[0]])[None]
            if len(batch) > 1:  # a long recording goes alone, and shall not be copied
                values = torch.zeros(len(batch), *values.shape[1:])
                for row, index in enumerate(batch):
                    values[row, :, : lengths[index]] = torch.from_numpy(audio[index])
            # No mask: zeros after the end are what the last frame of a recording by itself is filled up with, and
            # frames do not look ahead.
            rows = self._encode(values.to(self.device), **parameters)
            for row, index in enumerate(batch):
                frames = int(self.model.get_encoded_length(lengths[index]))
                encoded[index] = rows[row, :, :frames].cpu().clone()  # not a view of the batch
        return {"encoded": encoded, "num_samples": torch.tensor(lengths)}

    def _encode(self, values: Tensor, **parameters) -> Tensor:
        """Tensor, shape = (B, C, N) -> Tensor, shape = (B, K or D, F)."""
        raise NotImplementedError


class AudioTokenizationPipeline(_FromAudio):
    """`pipeline("audio-tokenization")`: audio to codes.

    An item is a path, a URL (http, hf, s3 and what else fsspec opens), the bytes of an audio file, an array, a tensor,
    a dictionary (of `"array"`, `"raw"` or `"audio"` and `"sampling_rate"`, or of `"bytes"` and `"path"`), a row of a
    data set with one of these under `"audio"`, or a torchcodec decoder: of any length, any sampling rate, mono or
    stereo. Give one, a list, a generator, a `KeyDataset`, a data set of `datasets` or a column of it.

    Args:
        num_quantizers (int, optional): codebooks to use; all by default.
        sampling_rate (int, optional): of arrays that do not say it themselves; the model's by default.
        batch_size (int, optional): how many items go to the model together, 1 by default.
        num_workers (int, optional): processes that read items ahead.

    Returns:
        dict: for each item `audio_codes`, np.ndarray of shape (K, F), int64, exactly the codes that it gets alone;
        `num_samples`, the samples per channel that they stand for, at the model's `sampling_rate`, which is there, too.
        A list gives a list; generators and data sets give them one by one.

    Raises:
        ValueError, TypeError: for audio that cannot be used, naming the item by its place.

    Example:

        >>> import numpy as np
        >>> from transformers import pipeline
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> tokenize = pipeline("audio-tokenization", model=model, num_quantizers=8)
        >>> item = tokenize({"array": np.zeros(48_000), "sampling_rate": 48_000})
        >>> item["audio_codes"].shape, item["num_samples"]
        ((8, 13), 24000)
    """

    def _sanitize_parameters(self, num_quantizers=None, sampling_rate=None, local_files_only=None):
        forward = {}
        if num_quantizers is not None:
            forward["num_quantizers"] = self.model.quantizer.check_num_quantizers(num_quantizers)
        return _given_rate(sampling_rate), forward, {}

    def _encode(self, values, num_quantizers=None):
        output = self.model.encode(values, num_quantizers=num_quantizers, use_streaming=False, return_dict=True)
        return output.audio_codes

    def postprocess(self, model_outputs):
        return {
            "audio_codes": model_outputs["encoded"][0].numpy(),
            "num_samples": int(model_outputs["num_samples"]),
            "sampling_rate": self.model.config.sampling_rate,
        }


class AudioDetokenizationPipeline(_MimiPipeline):
    """`pipeline("audio-detokenization")`: codes to audio.

    An item is codes of shape (K, F), as an array, a tensor or nested lists of integers; or a dictionary of them under
    `"audio_codes"` and, to cut the padding of the last frame, `"num_samples"`: what `audio-tokenization` gives.

    Args:
        batch_size, num_workers: as for [`AudioTokenizationPipeline`]. Items may differ in length and codebooks.

    Returns:
        dict: for each item `audio`, np.ndarray of shape (C, N), float32, and its `sampling_rate`.

    Raises:
        ValueError, TypeError: for codes that are none of this model, naming the item by its place.

    Example:

        >>> from transformers import pipeline
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> detokenize = pipeline("audio-detokenization", model=model)
        >>> detokenize({"audio_codes": [[3, 1, 4], [1, 5, 9]], "num_samples": 5000})["audio"].shape
        (1, 5000)
    """

    _half = "decoder"

    def _is_item(self, values):
        row = values[0] if values else None
        return isinstance(row, (list, tuple)) and bool(row) and isinstance(row[0], numbers.Number)

    def _sanitize_parameters(self, local_files_only=None):
        return {}, {}, {}

    def preprocess(self, inputs):
        index, value = (inputs.index, inputs.value) if isinstance(inputs, _Item) else (0, inputs)
        try:
            return self._check(value)
        except TypeError as error:
            raise TypeError(f"Codes example {index}: {error}") from error
        except ValueError as error:
            raise ValueError(f"Codes example {index}: {error}") from error

    def _check(self, value) -> dict:
        """Codes (K, F) as int64, and how many samples they stand for."""
        length = None
        if isinstance(value, Mapping):
            if value.get("audio_codes") is None:
                raise ValueError(f"a dictionary needs a value under 'audio_codes', but this one has {list(value)}.")
            # The second name is that of columns in data sets.
            length = value.get("num_samples", value.get("audio_num_samples"))
            value = value["audio_codes"]
        codes = to_numpy(value)
        if codes.dtype.kind not in "iu":
            raise TypeError(f"its type is {codes.dtype}, but codes are integers. Pass what audio-tokenization gives.")
        if codes.ndim != 2:
            raise ValueError(
                f"its shape is {codes.shape}, but (codebooks, frames) is expected. Give a batch as a list: list(codes)."
            )
        codes = codes.astype(np.int64)
        self.model.quantizer.check_codes(torch.from_numpy(codes)[None])
        most = codes.shape[1] * self.model.config.frame_size
        length = most if length is None else length
        if not isinstance(length, numbers.Integral) or not 0 <= length <= most:
            raise ValueError(
                f"num_samples={length!r}, but its {codes.shape[1]} frames stand for an integer up to {most}."
            )
        return {"audio_codes": codes, "num_samples": int(length)}

    def _forward(self, model_inputs):
        codes = _as_list(model_inputs["audio_codes"])
        audio = [np.empty(0)] * len(codes)
        for codebooks in {len(item) for item in codes}:
            rows = [row for row, item in enumerate(codes) if len(item) == codebooks]
            for row, decoded in zip(rows, decode_all(self.model, [codes[row] for row in rows]), strict=True):
                audio[row] = decoded
        return {"audio": audio, "num_samples": torch.tensor(_as_list(model_inputs["num_samples"]))}

    def postprocess(self, model_outputs):
        audio = model_outputs["audio"][0][:, : int(model_outputs["num_samples"])]
        return {"audio": audio, "sampling_rate": self.model.config.sampling_rate}


class AudioFeatureExtractionPipeline(_FromAudio):
    """`pipeline("feature-extraction")` for Mimi: audio to the latents before the quantizer.

    Args:
        return_tensors (bool): tensors; nested lists by default, as for other models.
        sampling_rate, batch_size, num_workers: as for [`AudioTokenizationPipeline`], which takes the same items.

    Returns:
        For each item its latents, shape = (1, F, D), time before width, as other models give them.

    Raises:
        ValueError, TypeError: as [`AudioTokenizationPipeline`].

    Example:

        >>> import numpy as np
        >>> from transformers import pipeline
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> extract = pipeline("feature-extraction", model=model)
        >>> extract(np.zeros(24_000), sampling_rate=24_000, return_tensors=True).shape
        torch.Size([1, 13, 512])
    """

    def _sanitize_parameters(self, sampling_rate=None, return_tensors=None, local_files_only=None):
        return _given_rate(sampling_rate), {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _encode(self, values):
        return self.model.encode_latents(values)

    def postprocess(self, model_outputs, return_tensors=False):
        latents = model_outputs["encoded"][0].T[None].contiguous()
        return latents if return_tensors else latents.tolist()


class FeatureExtraction(FeatureExtractionPipeline):
    """What the task `feature-extraction` makes: ours for Mimi, transformers' own pipeline for any other model."""

    _load_tokenizer = None  # where there is one: Mimi has none

    def __new__(cls, model, tokenizer=None, **kwargs):
        if isinstance(model, MimiModel):
            return AudioFeatureExtractionPipeline(model, **kwargs)
        if tokenizer is None:
            if model.name_or_path:
                AutoTokenizer.from_pretrained(model.name_or_path)  # raises the reason, which was passed over
            raise ValueError(
                f"The tokenizer of this {type(model).__name__} could not be found, but feature-extraction needs one."
                " Pass tokenizer=."
            )
        return FeatureExtractionPipeline(model=model, tokenizer=tokenizer, **kwargs)


def _fit(feature_extractor, config) -> MimiFeatureExtractor:
    """The feature extractor for a model: the one that was given, as ours, if it fits; else that of `config`."""
    if isinstance(feature_extractor, (str, os.PathLike)):
        feature_extractor = MimiFeatureExtractor.from_pretrained(feature_extractor)
    expected = {"feature_size": config.audio_channels, "sampling_rate": config.sampling_rate}
    if feature_extractor is not None:
        found = {name: getattr(feature_extractor, name, None) for name in expected}
        if found != expected:
            raise ValueError(
                f"The {type(feature_extractor).__name__} has {found}, but this model needs {expected}. Leave it out."
            )
    return (
        feature_extractor if isinstance(feature_extractor, MimiFeatureExtractor) else MimiFeatureExtractor(**expected)
    )


def _given_rate(sampling_rate) -> dict:
    return {} if sampling_rate is None else {"sampling_rate": check_rate(sampling_rate)}


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def _is_of_datasets(inputs) -> bool:
    return any(base.__module__ in _DATA_SETS for base in type(inputs).__mro__)


def _is_stream(inputs) -> bool:
    """Whether items come one after the other, and are not to be asked for by their place."""
    if isinstance(inputs, IterableDataset):
        return True
    if isinstance(inputs, Iterator):
        return not hasattr(inputs, "read")  # which is an open file
    return _is_of_datasets(inputs) and not hasattr(inputs, "__getitem__")


def _plain_audio(value):
    """Audio as the feature extractor takes it, of what pipelines take beyond that."""
    if isinstance(value, str):
        return fetch(value)
    if not isinstance(value, Mapping):
        return value
    if any(value.get(key) is not None for key in ("array", "bytes")):
        return value
    if isinstance(value.get("path"), str):
        return _plain_audio(value["path"])
    for key in ("raw", "audio"):
        audio = value.get(key)
        if hasattr(audio, "shape") or isinstance(audio, (list, tuple)):
            return {"array": audio, "sampling_rate": value.get("sampling_rate")}
        if audio is not None:
            return _plain_audio(audio)
    return value


__all__ = ["AudioDetokenizationPipeline", "AudioFeatureExtractionPipeline", "AudioTokenizationPipeline"]
