"""Distillation, which makes the semantic codebook semantic: it learns to predict the features of a speech model."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimi_hf.codec.losses import in_single_precision

# Of the resampler: zero crossings of its sinc on each side, and the end of its pass band as a share of half the lower
# rate.
_CROSSINGS, _ROLLOFF = 24, 0.95


class SemanticTeacher:
    """The features of a speech model, at the frame rate of a codec (Moshi, arXiv:2410.00037, section 3.3.3).

    Each frame of the codec gets the mean of the teacher's frames within one codec frame of its middle, as in the paper,
    which pools WavLM's 50 frames per second with kernel 8 and stride 4. The teacher sees the whole clip, the future
    included, and pooling reaches half a frame ahead. The codec is causal, and learns to predict what it can of that.
    The teacher is not trained.

    Args:
        name: a folder, or the id of a model on the Hub, of the family of wav2vec 2.0 (WavLM, HuBERT, data2vec, …).
        sampling_rate: samples per second of the audio.
        frame_size: samples per frame of the codec.
        device: where the teacher runs.
        layer: the layer whose output is used, counted from 1. By default the last, with the norm that follows it.
        revision: of the model on the Hub.

    Attributes:
        width: size of the features, T.

    Raises:
        OSError: the model is not here, and cannot be fetched.
        ValueError: the model is of another family, or has no such layer.
    """

    def __init__(
        self,
        name: str,
        sampling_rate: int,
        frame_size: int,
        device: torch.device | str = "cpu",
        layer: int | None = None,
        revision: str | None = None,
    ) -> None:
        self.model, self._rate, self._normalizes = _load(name, revision)
        config = self.model.config
        if layer is not None and not 1 <= layer <= config.num_hidden_layers:
            raise ValueError(
                f"layer={layer}, but {name} has layers 1 to {config.num_hidden_layers}. Choose one of them."
            )
        self.model.requires_grad_(False).eval().to(device)
        self.width, self.layer = config.hidden_size, layer
        self._sampling_rate, self._frame_size = sampling_rate, frame_size
        self._hop, self._field = _frame_geometry(config)

    @torch.no_grad()
    def __call__(self, audio: Tensor) -> Tensor:
        """Compute the features of audio.

        Args:
            audio: Tensor, shape = (B, C, N), about -1 to 1, on the teacher's device.

        Returns:
            Tensor, shape = (B, F, T), float32, for F frames of the codec. The last frame may be partial.

        Raises:
            ValueError: for another shape, or no samples.
        """
        if audio.dim() != 3 or 0 in audio.shape:
            raise ValueError(f"audio has shape {tuple(audio.shape)}, but (batch, channels, samples) is needed.")
        frames = -(-audio.shape[-1] // self._frame_size)
        mono = resample(audio.float().mean(dim=1), self._sampling_rate, self._rate)
        if self._normalizes:
            mono = (mono - mono.mean(dim=1, keepdim=True)) / (mono.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
        # Padded with silence, so that frame i of the teacher has its middle at sample (i + 0.5) * hop.
        margin = self._field - self._hop
        missing = -mono.shape[1] % self._hop
        mono = F.pad(mono, (margin // 2, margin - margin // 2 + missing))
        output = self.model(mono.to(next(self.model.parameters()).dtype), output_hidden_states=self.layer is not None)
        hidden = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        pooling = self._pooling(frames, hidden.shape[1]).to(hidden.device)
        return torch.einsum("fl,blt->bft", pooling, hidden.float())

    def _pooling(self, frames: int, teacher_frames: int) -> Tensor:
        """Weights that average the teacher's frames for each codec frame: Tensor, shape = (frames, teacher_frames)."""
        length = self._frame_size / self._sampling_rate
        middles = (torch.arange(frames, dtype=torch.float64) + 0.5) * length
        teacher = (torch.arange(teacher_frames, dtype=torch.float64) + 0.5) * (self._hop / self._rate)
        distance = (middles[:, None] - teacher).abs()
        # A teacher with fewer frames than the codec gives its nearest frame.
        inside = distance < torch.clamp(distance.min(dim=1, keepdim=True).values + 1e-9, min=length)
        return (inside / inside.sum(dim=1, keepdim=True)).float()


@in_single_precision
def distillation_loss(semantic_latents: Tensor, teacher: Tensor, projection: nn.Linear) -> Tensor:
    """Compute the distillation loss (Moshi, arXiv:2410.00037, section 3.3.3).

    It is the mean over frames of 1 - the cosine between the teacher's features and a linear projection of the latents
    of the semantic codebook.

    Args:
        semantic_latents: Tensor, shape = (B, F, D).
        teacher: Tensor, shape = (B, F, T), from [`SemanticTeacher`]. It gets no gradient.
        projection: from D to T. It is trained with the codec, and dropped afterwards.

    Returns:
        Tensor, shape = (), from 0 to 2.

    Raises:
        ValueError: where the frames differ.
    """
    if semantic_latents.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"semantic_latents has shape {tuple(semantic_latents.shape)} and teacher {tuple(teacher.shape)}; both need"
            " the same batch and frames. Make the teacher with the codec's own sampling_rate and frame_size."
        )
    return 1 - F.cosine_similarity(projection(semantic_latents), teacher.detach(), dim=-1).mean()


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sampling rate by a sinc with a Hann window (Smith and Gossett, ICASSP 1984), on any device.

    Args:
        audio: Tensor, shape = (B, N), float32.
        from_rate, to_rate: samples per second, before and after.

    Returns:
        Tensor, shape = (B, N * to_rate / from_rate), rounded up.
    """
    if from_rate == to_rate:
        return audio
    divisor = math.gcd(from_rate, to_rate)
    down, up = from_rate // divisor, to_rate // divisor
    kernel, reach = _resampling_kernel(down, up, audio.device)
    length = -(-audio.shape[1] * up // down)
    steps = -(-length // up)  # of `down` samples in, `up` samples out
    padded = F.pad(audio, (reach, steps * down + reach - audio.shape[1]))
    phases = F.conv1d(padded[:, None], kernel, stride=down)  # (B, up, steps)
    return phases.transpose(1, 2).flatten(1)[:, :length]


# Made outside of inference mode: no backward pass may use a tensor made there.
@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _resampling_kernel(down: int, up: int, device: torch.device) -> tuple[Tensor, int]:
    """Return a filter for each of `up` phases, Tensor, shape = (up, 1, taps), and how many samples it reaches back."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    reach = math.ceil(_CROSSINGS / cutoff)
    taps = torch.arange(-reach, reach + down, dtype=torch.float64)
    phase = torch.arange(up, dtype=torch.float64)[:, None] * (down / up)
    time = (taps - phase) * cutoff  # in zero crossings
    hann = torch.cos(math.pi / 2 * (time / _CROSSINGS).clamp(-1, 1)).square()
    return (cutoff * torch.sinc(time) * hann).float()[:, None].to(device), reach


def _load(name: str, revision: str | None) -> tuple[Any, int, bool]:
    """Return the model, its sampling rate, and whether it needs audio of mean 0 and variance 1."""
    from transformers import AutoFeatureExtractor, AutoModel

    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, revision=revision)
        model = AutoModel.from_pretrained(name, dtype=torch.float32, revision=revision)
    except OSError as error:
        raise OSError(
            f"The teacher {name!r} is neither a folder with a model and its preprocessor_config.json nor in the cache,"
            f" and could not be fetched from the Hub. Online: hf download {name}. ({error})"
        ) from error
    missing = [field for field in ("conv_stride", "conv_kernel", "hidden_size") if not hasattr(model.config, field)]
    if missing or model.main_input_name != "input_values":
        raise ValueError(
            f"{name} is a model of type {model.config.model_type!r}, but teachers are of the family of wav2vec 2.0,"
            " which takes samples. Name one of those, such as microsoft/wavlm-large."
        )
    return model, extractor.sampling_rate, bool(getattr(extractor, "do_normalize", False))


def _frame_geometry(config: Any) -> tuple[int, int]:
    """Return the stride and the receptive field, in samples, of the teacher's convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return hop, field
