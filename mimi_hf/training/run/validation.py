"""How good a model is in the middle of its training: on recordings that it never learns from."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mimi_hf.evaluation.metrics import choose_metrics, score
from mimi_hf.evaluation.report import CodebookUse
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.data.audio_cache import AudioCache

_PIECE = 10.0  # seconds that are measured at once
_WATCHED = ("mel_distance", "si_sdr")
# How bad a model is that was never measured.
NEVER = (math.inf, math.inf)


@dataclass(frozen=True)
class ValidationResult:
    """What was found.

    figures: means over the pieces of each metric, and `perplexity` of the codebook that is used least evenly.
    badness: by which models are compared, the lower the better: in how many pieces the metric finds nothing to measure
        although it does in the originals, such as speech; then its mean.
    original, reconstruction: Tensors, shape = (N,), of the first piece.
    """

    figures: dict[str, float]
    badness: tuple[float, float]
    original: Tensor
    reconstruction: Tensor
    sampling_rate: int


class Validation:
    """Recordings to measure a model on.

    Args:
        config: of the run: how many seconds, and by which metric models are compared.
        cache: the recordings.

    Raises:
        ImportError, ValueError: the metric's package is not installed, or there is no such metric.
    """

    def __init__(self, config: TrainingConfig, cache: AudioCache):
        self.metric = choose_metrics([config.run.metric])[0]
        self.metrics = choose_metrics(dict.fromkeys([self.metric.name, *_WATCHED]))
        self.seconds = config.data.validation_seconds
        self.cache = cache

    @property
    def identity(self) -> list:
        """What it measures, by which metric: figures of others do not compare."""
        return [self.cache.folder.name, self.seconds, self.metric.name]

    def run(self, model) -> ValidationResult:
        """Measure a model, in evaluation mode, with all its codebooks."""
        rate = model.config.sampling_rate
        scores: dict[str, list[float]] = {metric.name: [] for metric in self.metrics}
        pairs, codes, lost = [], [], 0
        for original in self._pieces(rate):
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
        return ValidationResult(figures, badness, *pairs[0], rate)

    def _pieces(self, rate: int):
        """Pieces of recordings, in turn from each source, until there are enough seconds."""
        piece, left = round(_PIECE * rate), self.seconds * rate
        numbers = self.cache.index[:, 3]
        queues = [self._cuts(np.flatnonzero(numbers == source), piece) for source in np.unique(numbers)]
        while queues and left > 0:
            for queue in list(queues):
                audio = next(queue, None)
                if audio is None:
                    queues.remove(queue)
                elif left > 0:
                    yield audio[: max(1, int(left))]
                    left -= len(audio)

    def _cuts(self, recordings, piece: int):
        for recording in recordings.tolist():
            length = int(self.cache.index[recording, 2])
            for start in range(0, length, piece):
                if start == 0 or length - start >= piece // 10:
                    yield self.cache.read(recording, start, piece)
