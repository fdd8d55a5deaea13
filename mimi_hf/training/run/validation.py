"""Validation: how good the model is during training, on recordings that it is not trained on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mimi_hf.evaluation.metrics import choose_metrics, score
from mimi_hf.evaluation.report import CodebookUse
from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.data.audio_cache import AudioCache

_EXCERPT = 10.0  # seconds that are measured at once
_WATCHED = ("mel_distance", "si_sdr")
# The badness of a model that was never measured.
NEVER = (math.inf, math.inf)


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation.

    figures: the mean of each metric over excerpts, and the lowest `perplexity` of a codebook.
    badness: compares models, lower is better. First, the number of excerpts in which the metric finds something to
        measure, such as speech, in the original but not in the reconstruction. Then the mean of the metric.
    original, reconstruction: Tensors, shape = (N,), of the first excerpt.
    """

    figures: dict[str, float]
    badness: tuple[float, float]
    original: Tensor
    reconstruction: Tensor
    sampling_rate: int


class Validation:
    """Measures models on recordings.

    Args:
        config: of the run. It says how many seconds to use, and which metric compares models.
        cache: the recordings.

    Raises:
        ImportError, ValueError: the metric's package is not installed, or there is no such metric.
    """

    def __init__(self, config: TrainingConfig, cache: AudioCache) -> None:
        self.metric = choose_metrics([config.run.metric])[0]
        self.metrics = choose_metrics(dict.fromkeys([self.metric.name, *_WATCHED]))
        self.seconds = config.data.validation_seconds
        self.cache = cache

    @property
    def identity(self) -> list:
        """The recordings and the metric. Only results of the same identity can be compared."""
        return [self.cache.folder.name, self.seconds, self.metric.name]

    def run(self, model: MimiModel) -> ValidationResult:
        """Measure a model, which is in evaluation mode, with all its codebooks."""
        rate = model.config.sampling_rate
        scores: dict[str, list[float]] = {metric.name: [] for metric in self.metrics}
        pairs, codes, lost = [], [], 0
        for original in self._excerpts(rate):
            audio = torch.from_numpy(original)[None, None].to(model.device)
            with torch.inference_mode():
                code = model.encode(audio).audio_codes
                decoded = model.decode(code).audio_values[0, 0, : len(original)].cpu().clone()
            codes.append(code[0].cpu())
            pairs.append((torch.from_numpy(original), decoded))
            for name, found in score(original, decoded.numpy(), rate, self.metrics).items():
                if found.value is not None:
                    scores[name].append(found.value)
                elif name == self.metric.name:
                    lost += score(original, original, rate, [self.metric])[name].value is not None
        figures = {name: float(np.mean(values)) for name, values in scores.items() if values}
        counts = [torch.bincount(level, minlength=model.config.codebook_size) for level in torch.cat(codes, dim=1)]
        figures["perplexity"] = min(CodebookUse.of(one.numpy()).perplexity for one in counts)
        value = figures.get(self.metric.name, -np.inf if self.metric.higher_is_better else np.inf)
        badness = (float(lost), -value if self.metric.higher_is_better else value)
        original, decoded = pairs[0]
        return ValidationResult(figures, badness, original, decoded, rate)

    def _excerpts(self, rate: int) -> Iterator[np.ndarray]:
        """Cut excerpts, from each source in turn, until there are enough seconds."""
        length, left = round(_EXCERPT * rate), self.seconds * rate
        numbers = self.cache.index[:, 3]
        queues = [self._cut(np.flatnonzero(numbers == source), length) for source in np.unique(numbers)]
        while queues and left > 0:
            for queue in list(queues):
                audio = next(queue, None)
                if audio is None:
                    queues.remove(queue)
                elif left > 0:
                    yield audio[: max(1, int(left))]
                    left -= len(audio)

    def _cut(self, recordings: np.ndarray, length: int) -> Iterator[np.ndarray]:
        """Cut recordings into excerpts. A rest below a tenth of the length is dropped."""
        for recording in recordings.tolist():
            samples = int(self.cache.index[recording, 2])
            for start in range(0, samples, length):
                if start == 0 or samples - start >= length // 10:
                    yield self.cache.read(recording, start, length)
