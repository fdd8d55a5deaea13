"""Pipelines of transformers: audio to codes, codes to audio, audio to latents.

Importing `mimi_hf` registers them, see [`mimi_hf.auto`]. Lists, generators and data sets, `batch_size`, `num_workers`,
`device` and `dtype` work as in any pipeline. The result of an item does not depend on the other items of its batch; the
model takes as many of these at once as suit its device.
"""

import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoTokenizer, FeatureExtractionPipeline, Pipeline

from .audio.mix import check_rate
from .configuration_mimi import MimiConfig
from .feature_extraction_mimi import MimiFeatureExtractor
from .inference.batches import decode_all, encode_batches
from .modeling_mimi import MimiModel
from .utils.arrays import to_numpy
from .utils.remote import fetch

# Where `datasets` defines data sets and their columns. Looking at a type shall not import it.
_DATA_SETS = ("datasets.arrow_dataset", "datasets.iterable_dataset")


@dataclass(frozen=True)
class _Item:
    """An item and its position among the others, for error messages."""

    index: int
    value: Any


class _Items(Dataset):
    """A list or data set that numbers its items."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Item:
        return _Item(index, self.source[index])


class _Stream(IterableDataset):
    """Numbers items that can only be taken one after the other.

    transformers takes the first item of a generator, and up to 5.13 all of them, before anybody asks for a result.
    """

    def __init__(self, source: Iterable[Any]):
        self.source = source

    def __iter__(self) -> Iterator[_Item]:
        return (_Item(index, value) for index, value in enumerate(self.source))


class _MimiPipeline(Pipeline):
    """Shared by the pipelines: the model, its feature extractor, and the rule for what is one item.

    Between `preprocess` and `postprocess` an item is a dictionary of arrays and numbers, a batch a dictionary of lists.
    """

    model: MimiModel
    feature_extractor: MimiFeatureExtractor

    # The feature extractor follows from the model's config. (The one that checkpoints on the Hub name reads no files.)
    _load_feature_extractor = _load_tokenizer = _load_processor = _load_image_processor = _load_video_processor = False
    _half = "encoder"

    def __init__(self, model: MimiModel, feature_extractor: Any = None, **kwargs: Any):
        if not isinstance(model, MimiModel):
            raise TypeError(
                f"This pipeline needs a MimiModel of mimi_hf, not a {type(model).__module__}.{type(model).__name__}."
                " Name a Mimi checkpoint, or load it with AutoModel after `import mimi_hf`."
            )
        model.require_half(self._half)
        extractor = _choose_feature_extractor(feature_extractor, model.config)
        super().__init__(model=model, feature_extractor=extractor, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Process one item, or several; see the class for what an item is, and what comes back."""
        if isinstance(inputs, (list, tuple)) and not self._is_item(inputs):
            results: Any = super().__call__(_Items(inputs), **kwargs)
            return list(results)
        if _is_stream(inputs):
            return super().__call__(_Stream(inputs), **kwargs)
        if isinstance(inputs, Dataset) or _is_of_datasets(inputs):
            return super().__call__(_Items(inputs), **kwargs)
        return super().__call__(_Item(0, inputs), **kwargs)

    def _is_item(self, values: list | tuple) -> bool:
        """Whether a list is one item, rather than a list of items."""
        raise NotImplementedError


class _FromAudio(_MimiPipeline):
    """Shared by the pipelines that take audio."""

    def _is_item(self, values: list | tuple) -> bool:
        return bool(values) and isinstance(values[0], numbers.Number)

    def preprocess(self, inputs: Any, sampling_rate: int | None = None) -> dict:
        index, value = (inputs.index, inputs.value) if isinstance(inputs, _Item) else (0, inputs)
        try:
            audio = _plain_audio(value)
        except ValueError as error:
            raise ValueError(f"Audio example {index}: {error}") from error
        return {"input_values": self.feature_extractor.load_example(index, audio, sampling_rate)}

    def _forward(self, model_inputs: dict, **parameters: Any) -> dict:
        audio = _as_list(model_inputs["input_values"])
        encoded = encode_batches(self.model, audio, partial(self._encode, **parameters))
        return {"encoded": encoded, "num_samples": torch.tensor([samples.shape[1] for samples in audio])}

    def _encode(self, values: Tensor, **parameters: Any) -> Tensor:
        """Tensor, shape = (B, C, N) -> Tensor, shape = (B, K or D, F)."""
        raise NotImplementedError


class AudioTokenizationPipeline(_FromAudio):
    """`pipeline("audio-tokenization")`: audio to codes.

    An item is a path, a URL (http, hf, s3 or another that fsspec opens), the bytes of an audio file, an array, a
    tensor, a dictionary (of `"array"`, `"raw"` or `"audio"` and `"sampling_rate"`, or of `"bytes"` and `"path"`), a row
    of a data set with one of these under `"audio"`, or a torchcodec decoder. It may have any length and sampling rate,
    mono or stereo. Pass one item, a list, a generator, a `KeyDataset`, a data set of `datasets` or a column of it.

    Args:
        num_quantizers (int, optional): codebooks to use; all by default.
        sampling_rate (int, optional): of arrays that come without one; the model's by default.
        batch_size (int, optional): how many items go to the model together, 1 by default.
        num_workers (int, optional): processes that read items ahead.

    Returns:
        dict: for each item `audio_codes`, np.ndarray of shape (K, F), int64, exactly the codes that it gets alone;
        `num_samples`, the samples per channel that they stand for; and `sampling_rate`, the model's. A list gives a
        list; generators and data sets give results one by one.

    Raises:
        ValueError, TypeError: for audio that cannot be used, with the position of the item.

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

    def _sanitize_parameters(
        self, num_quantizers: int | None = None, sampling_rate: int | None = None, local_files_only: Any = None
    ) -> tuple[dict, dict, dict]:
        forward = {}
        if num_quantizers is not None:
            forward["num_quantizers"] = self.model.check_num_quantizers(num_quantizers)
        return _given_rate(sampling_rate), forward, {}

    def _encode(self, values: Tensor, num_quantizers: int | None = None) -> Tensor:
        return self.model.encode(values, num_quantizers=num_quantizers, use_streaming=False, return_dict=False)[0]

    def postprocess(self, model_outputs: dict) -> dict:
        return {
            "audio_codes": model_outputs["encoded"][0].numpy(),
            "num_samples": int(model_outputs["num_samples"]),
            "sampling_rate": self.model.config.sampling_rate,
        }


class AudioDetokenizationPipeline(_MimiPipeline):
    """`pipeline("audio-detokenization")`: codes to audio.

    An item is codes of shape (K, F), as an array, a tensor or nested lists of integers. Or it is a dictionary with
    codes under `"audio_codes"` and, to cut off the padding of the last frame, `"num_samples"`: the result of
    `audio-tokenization`.

    Args:
        batch_size, num_workers: as for [`AudioTokenizationPipeline`]. Items may differ in length and codebooks.

    Returns:
        dict: for each item `audio`, np.ndarray of shape (C, N), float32, and its `sampling_rate`.

    Raises:
        ValueError, TypeError: for codes that this model cannot decode, with the position of the item.

    Example:
        >>> from transformers import pipeline
        >>> from mimi_hf import MimiConfig, MimiModel
        >>> model = MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).eval()
        >>> detokenize = pipeline("audio-detokenization", model=model)
        >>> detokenize({"audio_codes": [[3, 1, 4], [1, 5, 9]], "num_samples": 5000})["audio"].shape
        (1, 5000)
    """

    _half = "decoder"

    def _is_item(self, values: list | tuple) -> bool:
        row = values[0] if values else None
        return isinstance(row, (list, tuple)) and bool(row) and isinstance(row[0], numbers.Number)

    def _sanitize_parameters(self, local_files_only: Any = None) -> tuple[dict, dict, dict]:
        return {}, {}, {}

    def preprocess(self, inputs: Any) -> dict:
        index, value = (inputs.index, inputs.value) if isinstance(inputs, _Item) else (0, inputs)
        try:
            return self._check(value)
        except TypeError as error:
            raise TypeError(f"Codes example {index}: {error}") from error
        except ValueError as error:
            raise ValueError(f"Codes example {index}: {error}") from error

    def _check(self, value: Any) -> dict:
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
        self.model.check_codes(torch.from_numpy(codes)[None])
        most = codes.shape[1] * self.model.config.frame_size
        length = most if length is None else length
        if not isinstance(length, numbers.Integral) or not 0 <= int(length) <= most:
            raise ValueError(
                f"num_samples={length!r}, but its {codes.shape[1]} frames stand for an integer up to {most}."
            )
        return {"audio_codes": codes, "num_samples": int(length)}

    def _forward(self, model_inputs: dict) -> dict:
        audio = decode_all(self.model, _as_list(model_inputs["audio_codes"]))
        return {"audio": audio, "num_samples": torch.tensor(_as_list(model_inputs["num_samples"]))}

    def postprocess(self, model_outputs: dict) -> dict:
        audio = model_outputs["audio"][0][:, : int(model_outputs["num_samples"])]
        return {"audio": audio, "sampling_rate": self.model.config.sampling_rate}


class AudioFeatureExtractionPipeline(_FromAudio):
    """`pipeline("feature-extraction")` for Mimi: audio to the latents before the quantizer.

    Args:
        return_tensors (bool): return tensors; nested lists by default, as for other models.
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

    def _sanitize_parameters(
        self, sampling_rate: int | None = None, return_tensors: bool | None = None, local_files_only: Any = None
    ) -> tuple[dict, dict, dict]:
        return _given_rate(sampling_rate), {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def _encode(self, values: Tensor) -> Tensor:
        return self.model.encode_latents(values)

    def postprocess(self, model_outputs: dict, return_tensors: bool = False) -> Tensor | list:
        latents = model_outputs["encoded"][0].T[None].contiguous()
        return latents if return_tensors else latents.tolist()


class FeatureExtraction(FeatureExtractionPipeline):
    """The task `feature-extraction`: makes our pipeline for Mimi, transformers' own for any other model."""

    _load_tokenizer = None  # only if the model has one, and Mimi has none

    def __new__(cls, model: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
        if isinstance(model, MimiModel):
            return AudioFeatureExtractionPipeline(model, **kwargs)
        if tokenizer is None:
            if model.name_or_path:
                AutoTokenizer.from_pretrained(model.name_or_path)  # raises the reason
            raise ValueError(
                f"The tokenizer of this {type(model).__name__} could not be found, but feature-extraction needs one."
                " Pass tokenizer=."
            )
        return FeatureExtractionPipeline(model=model, tokenizer=tokenizer, **kwargs)


def _choose_feature_extractor(feature_extractor: Any, config: MimiConfig) -> MimiFeatureExtractor:
    """The given feature extractor, if it is ours and fits the model, or else a new one for the model.

    Raises:
        ValueError: the given one has other channels or another sampling rate than the model.
    """
    if isinstance(feature_extractor, (str, os.PathLike)):
        feature_extractor = MimiFeatureExtractor.from_pretrained(feature_extractor)
    expected = {"feature_size": config.audio_channels, "sampling_rate": config.sampling_rate}
    if feature_extractor is not None:
        found = {name: getattr(feature_extractor, name, None) for name in expected}
        if found != expected:
            raise ValueError(
                f"The {type(feature_extractor).__name__} has {found}, but this model needs {expected}. Leave it out."
            )
    if isinstance(feature_extractor, MimiFeatureExtractor):
        return feature_extractor
    return MimiFeatureExtractor(**expected)


def _given_rate(sampling_rate: int | None) -> dict:
    return {} if sampling_rate is None else {"sampling_rate": check_rate(sampling_rate)}


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _is_of_datasets(inputs: Any) -> bool:
    return any(base.__module__ in _DATA_SETS for base in type(inputs).__mro__)


def _is_stream(inputs: Any) -> bool:
    """Whether items can only be taken one after the other, not by index."""
    if isinstance(inputs, IterableDataset):
        return True
    if isinstance(inputs, Iterator):
        return not hasattr(inputs, "read")  # which is an open file
    return _is_of_datasets(inputs) and not hasattr(inputs, "__getitem__")


def _plain_audio(value: Any) -> Any:
    """Audio in a form that the feature extractor takes, from the further forms that pipelines take."""
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
