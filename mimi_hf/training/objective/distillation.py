"""What makes the semantic codebook semantic: it learns to tell what a speech model tells of the audio."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimi_hf.codec.losses import in_single_precision

# Zero crossings of the resampler's sinc on each side, and where its pass band ends, as a share of half the lower rate.
_CROSSINGS, _ROLLOFF = 24, 0.95


class SemanticTeacher:
    """A speech model's view of audio, at the frame rate of a codec (Moshi, arXiv:2410.00037, section 3.3.3).

    Each frame of the codec gets the mean of the teacher's frames that lie in two frames' length around its middle, as
    in the paper, which pools WavLM's 50 frames a second with kernel 8 and stride 4. Teachers see the whole clip, what
    is to come included, and pooling reaches half a frame ahead, too: the codec, which is causal, learns to foretell
    what it can of that. The teacher itself is not trained.

    Args:
        name: a folder, or the id of a model on the Hub, of the family of wav2vec 2.0 (WavLM, HuBERT, data2vec, …).
        sampling_rate: samples per second of the audio to come.
        frame_size: samples in a frame of the codec.
        device: where the teacher runs.
        layer: whose output is taken, counted from 1; the last, with the norm that follows it, by default.
        revision: of the model on the Hub.

    Attributes:
        width: T, of what it gives.

    Raises:
        OSError: there is no such model here, and it cannot be fetched.
        ValueError: the model is no such teacher, or has no such layer.
    """

    def __init__(
        self,
        name: str,
        sampling_rate: int,
        frame_size: int,
        device="cpu",
        layer: int | None = None,
        revision: str | None = None,
    ):
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
        """audio: Tensor, shape = (B, C, N), about -1 to 1, where the teacher is -> Tensor, shape = (B, F, T), float32.

        F is the number of the codec's frames, the last of which may be partial.
        """
        if audio.dim() != 3 or 0 in audio.shape:
            raise ValueError(f"audio has shape {tuple(audio.shape)}, but (batch, channels, samples) is needed.")
        frames = -(-audio.shape[-1] // self._frame_size)
        mono = resample(audio.float().mean(dim=1), self._sampling_rate, self._rate)
        if self._normalizes:
            mono = (mono - mono.mean(dim=1, keepdim=True)) / (mono.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
        # With silence around it, frame i lies about sample (i + 0.5) * hop, and every hop has its frame.
        margin = self._field - self._hop
        missing = -mono.shape[1] % self._hop
        mono = F.pad(mono, (margin // 2, margin - margin // 2 + missing))
        hidden = self._hidden(mono)
        pooling = self._pooling(frames, hidden.shape[1]).to(hidden.device)
        return torch.einsum("fl,blt->bft", pooling, hidden.float())

    def _hidden(self, mono: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        output = self.model(mono.to(dtype), output_hidden_states=self.layer is not None)
        return output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]

    def _pooling(self, frames: int, teacher_frames: int) -> Tensor:
        """The share of the teacher's frames in each of the codec's: Tensor, shape = (frames, teacher_frames)."""
        length = self._frame_size / self._sampling_rate
        middles = (torch.arange(frames, dtype=torch.float64) + 0.5) * length
        teacher = (torch.arange(teacher_frames, dtype=torch.float64) + 0.5) * (self._hop / self._rate)
        distance = (middles[:, None] - teacher).abs()
        # Of a teacher that is slower than that, the nearest.
        inside = distance < torch.clamp(distance.min(dim=1, keepdim=True).values + 1e-9, min=length)
        return (inside / inside.sum(dim=1, keepdim=True)).float()


@in_single_precision
def distillation_loss(semantic_latents: Tensor, teacher: Tensor, projection: nn.Linear) -> Tensor:
    """Mean over frames of 1 - the cosine between what the teacher says and a linear projection of what the semantic
    codebook says (Moshi, arXiv:2410.00037, section 3.3.3).

    Args:
        semantic_latents: Tensor, shape = (B, F, D).
        teacher: Tensor, shape = (B, F, T), of [`SemanticTeacher`]. No gradient goes through it.
        projection: from D to T; it is trained with the codec, and not needed afterwards.

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
    """Change the sampling rate, on any device, by a sinc under a Hann window (Smith and Gossett, ICASSP 1984).

    audio: Tensor, shape = (B, N), float32 -> Tensor, shape = (B, N * to_rate / from_rate, rounded up).
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


# Made outside of inference mode, whose tensors no later backward pass may use.
@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _resampling_kernel(down: int, up: int, device: torch.device) -> tuple[Tensor, int]:
    """A filter for each of `up` phases: Tensor, shape = (up, 1, taps); and how many samples it reaches back."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    reach = math.ceil(_CROSSINGS / cutoff)
    taps = torch.arange(-reach, reach + down, dtype=torch.float64)
    phase = torch.arange(up, dtype=torch.float64)[:, None] * (down / up)
    time = (taps - phase) * cutoff  # in zero crossings
    hann = torch.cos(math.pi / 2 * (time / _CROSSINGS).clamp(-1, 1)).square()
    return (cutoff * torch.sinc(time) * hann).float()[:, None].to(device), reach


def _load(name: str, revision: str | None) -> tuple[nn.Module, int, bool]:
    """A model, the sampling rate that it needs, and whether it needs audio of mean 0 and variance 1."""
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
            f"{name} is a model of type {model.config.model_type!r}, but teachers are of the family of wav2vec 2.0:"
            " they take samples, through convolutions. Name one of those, such as microsoft/wavlm-large."
        )
    return model, extractor.sampling_rate, bool(getattr(extractor, "do_normalize", False))


def _frame_geometry(config) -> tuple[int, int]:
    """Samples from frame to frame of the teacher's convolutions, and samples that each frame sees."""
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return hop, field
