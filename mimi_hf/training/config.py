"""The options of a training run: frozen dataclasses, read from YAML, each checked once."""

import dataclasses
import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mimi_hf.codec.codebook_learning import QuantizerTraining
from mimi_hf.codec.losses import FLOOR, RECONSTRUCTION_WEIGHTS
from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.utils.option_checks import check_option

from .data.augmentation import Augmentation
from .objective.discriminator import MimiDiscriminatorConfig
from .parsing import build_dataclass, parse_yaml, refuse_unknown, to_plain

PARTS = ("encoder", "quantizer", "decoder")


@dataclass(frozen=True)
class ModelOptions:
    """Which model is trained.

    start: the model to start from: a folder, a Hub id or `mimi-tiny`. Without it, a new model is made from `config`.
    config: fields of [`MimiConfig`], for a new model.
    train: which of encoder, quantizer and decoder are trained. This decides whether existing codes stay valid. Decoder
        only: they stay valid, and audio still encodes to the same codes. Encoder, but not quantizer: existing codes
        still decode, but the same audio encodes to different codes. Quantizer: existing codes lose their meaning.
    lora_rank: above 0, train only low-rank adapters (arXiv:2106.09685) of this rank in the transformers of the trained
        parts. All other weights and the codebooks stay fixed. Saving merges the adapters into the weights. 0 trains
        all weights.
    audio_scale: a new model's input audio is multiplied by this, and its output divided by it, because layers of unit
        variance fit louder audio better. The saved model has the factor in its first and last convolution. Has no
        effect with `start`.
    """

    start: str | None = None
    config: dict = field(default_factory=dict)
    train: tuple[str, ...] = PARTS
    lora_rank: int = 0
    audio_scale: float = 10.0

    def __post_init__(self) -> None:
        if self.start and self.config:
            raise ValueError(
                "model.start and model.config are both given, but a model to start from has its own config. Drop one."
            )
        if not self.train or set(self.train) - set(PARTS):
            raise ValueError(f"model.train={list(self.train)} must name one or more of {', '.join(PARTS)}.")
        if not self.start and set(self.train) != set(PARTS):
            raise ValueError("model.train leaves parts out, but a new model learns as a whole. Set model.start, too.")
        check_option(self.lora_rank >= 0, "model.lora_rank", self.lora_rank, "0 (off) or more")
        check_option(not self.lora_rank or self.start, "model.lora_rank", self.lora_rank, "0 for a new model")
        if self.lora_rank and not {"encoder", "decoder"} & set(self.train):
            raise ValueError(
                "model.lora_rank needs encoder or decoder in model.train: adapters are for their transformers."
            )
        refuse_unknown(self.config, _parameters_of(MimiConfig), "model.config")
        check_option(self.audio_scale > 0, "model.audio_scale", self.audio_scale, "above 0")


@dataclass(frozen=True)
class DataOptions:
    """Which recordings the model is trained and validated on.

    train: sources of training audio: folders, parquet files, manifests, WebDataset tars or Hub data sets.
    weights: how often each source is drawn from, in the order of `train`. By default in proportion to its hours.
    validation: sources of validation audio, which is never trained on. The best model is the one that scores best here.
    validation_seconds: how many seconds of it to use.
    cache: folder for the prepared audio (16-bit samples), to share it between runs. By default it lies in the output
        folder, where audio prepared for other sources is removed.
    crop_seconds: length of a crop. Use a multiple of 0.08 s: a crop is whole frames of 80 ms.
    batch_size: crops per batch, in each process.
    augmentation: random changes of each crop, see [`Augmentation`]. Leave out for none.
    """

    train: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    validation: tuple[str, ...] = ()
    validation_seconds: float = 60.0
    cache: str | None = None
    crop_seconds: float = 1.0
    batch_size: int = 8
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        check_option(self.train, "data.train", list(self.train), "one source or more")
        if self.weights is not None:
            fits = len(self.weights) == len(self.train) and all(weight > 0 for weight in self.weights)
            check_option(fits, "data.weights", list(self.weights), "a positive number for each source of data.train")
        check_option(self.crop_seconds >= 0.2, "data.crop_seconds", self.crop_seconds, "at least 0.2")
        check_option(self.batch_size >= 1, "data.batch_size", self.batch_size, "at least 1")
        check_option(self.validation_seconds > 0, "data.validation_seconds", self.validation_seconds, "above 0")


@dataclass(frozen=True)
class LossOptions:
    """The losses and their weights. A weight of 0 turns a loss off.

    preset: where the weights begin: `reconstruction` (default: the values listed below); `adversarial` (Moshi's,
        arXiv:2410.00037, section 3.3: adversarial and feature_matching 4, balanced, and no other loss on the audio);
        `both` (adversarial 1, feature_matching 2, and the reconstruction losses).
    mel: log-mel distance at five resolutions. spectral_convergence, log_magnitude: STFT distances. waveform: L1.
    floor: added to magnitudes before their logarithm. White noise of this RMS is about as loud.
    commitment: pulls latents towards their codebook entries.
    adversarial, feature_matching: losses from a multi-scale STFT discriminator.
    adversarial_start: the step from which on the discriminator is used and trained.
    discriminator: fields of [`MimiDiscriminatorConfig`]. discriminator_start: a folder or Hub id to start it from.
    distillation: pulls the semantic codebook towards the features of `teacher`.
    teacher: a speech model, in a folder or on the Hub.
    balance: scale the gradients so that each loss on the audio has the share that its weight says (EnCodec,
        arXiv:2210.13438, section 3.4). Otherwise the weights multiply the losses.
    """

    mel: float = RECONSTRUCTION_WEIGHTS["mel"]
    spectral_convergence: float = RECONSTRUCTION_WEIGHTS["spectral_convergence"]
    log_magnitude: float = RECONSTRUCTION_WEIGHTS["log_magnitude"]
    waveform: float = RECONSTRUCTION_WEIGHTS["waveform"]
    floor: float = FLOOR
    commitment: float = 0.05
    adversarial: float = 0.0
    feature_matching: float = 0.0
    adversarial_start: int = 0
    discriminator: dict = field(default_factory=dict)
    discriminator_start: str | None = None
    distillation: float = 0.0
    teacher: str | None = None
    balance: bool = False

    def __post_init__(self) -> None:
        for name in (*RECONSTRUCTION, "commitment", *ADVERSARIAL, "distillation"):
            check_option(getattr(self, name) >= 0, f"losses.{name}", getattr(self, name), "0 (off) or more")
        if not any(getattr(self, name) for name in RECONSTRUCTION + ADVERSARIAL):
            raise ValueError("Every loss on the audio is 0. Give one of losses.mel, losses.adversarial, … a weight.")
        if self.adversarial_start and not any(getattr(self, name) for name in RECONSTRUCTION):
            raise ValueError(
                f"losses.adversarial_start={self.adversarial_start} leaves the first steps without any loss on the"
                " audio. Give losses.mel, or another one, a weight, or set it to 0."
            )
        if self.distillation and not self.teacher:
            raise ValueError("losses.distillation needs losses.teacher: a speech model, such as microsoft/wavlm-large.")
        refuse_unknown(self.discriminator, _parameters_of(MimiDiscriminatorConfig), "losses.discriminator")
        check_option(self.floor > 0, "losses.floor", self.floor, "above 0")
        check_option(self.adversarial_start >= 0, "losses.adversarial_start", self.adversarial_start, "0 or more")

    @property
    def uses_discriminator(self) -> bool:
        """Whether any loss needs a discriminator."""
        return any(getattr(self, name) > 0 for name in ADVERSARIAL)


RECONSTRUCTION = tuple(RECONSTRUCTION_WEIGHTS)
ADVERSARIAL = ("adversarial", "feature_matching")
_NO_RECONSTRUCTION = dict.fromkeys(RECONSTRUCTION, 0.0)
LOSS_PRESETS = {
    "reconstruction": {},
    "adversarial": {**_NO_RECONSTRUCTION, "adversarial": 4.0, "feature_matching": 4.0, "balance": True},
    "both": {"adversarial": 1.0, "feature_matching": 2.0},
}


@dataclass(frozen=True)
class QuantizerOptions:
    """How the codebooks are made and trained.

    unquantized_steps: the first steps of a new model train without a quantizer. Then k-means on the latents makes the
        codebooks. Must be 0 with `model.start`, which has codebooks.
    decay: decay per step of the moving averages that the codebooks are.
    dead_threshold: an entry used less than this share of the average entry is replaced by a latent of the batch. 0
        replaces none.
    kmeans_iterations: iterations of k-means when the codebooks are made.
    quantizer_dropout: share of crops that use only their first n codebooks. n is drawn, from the number of semantic
        codebooks to all.
    unquantized: share of crops whose latents reach the decoder unquantized.
    """

    unquantized_steps: int = 0
    decay: float = 0.99
    dead_threshold: float = QuantizerTraining.dead_threshold
    kmeans_iterations: int = QuantizerTraining.kmeans_iterations
    quantizer_dropout: float = 0.5
    unquantized: float = 0.5

    def __post_init__(self) -> None:
        check_option(self.unquantized_steps >= 0, "quantizer.unquantized_steps", self.unquantized_steps, "0 or more")
        self.training_options(True, True)

    def training_options(self, enabled: bool, update: bool) -> QuantizerTraining:
        """Return these options as the quantizer takes them.

        Args:
            enabled: quantize at all.
            update: let the codebooks learn.
        """
        names = ("decay", "dead_threshold", "kmeans_iterations", "quantizer_dropout", "unquantized")
        return QuantizerTraining(enabled=enabled, update=update, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and its schedule.

    steps: optimizer steps of the whole run.
    learning_rate: the highest learning rate.
    final_learning_rate: the last learning rate, as a share of `learning_rate`, which falls to it along a cosine.
    warmup_steps: steps over which the learning rate rises from 0.
    kind: muon (Muon for matrices, AdamW for the rest) or adamw.
    betas: of AdamW. momentum: of Muon. weight_decay: of both.
    discriminator_learning_rate: of the discriminator's AdamW. Its schedule begins at `losses.adversarial_start`.
    accumulation: batches per optimizer step.
    max_norm: clip the norm of the gradient to this. 0 does not clip.
    ema_decay: decay per step of the exponential moving average of the weights, which is what is saved. 0 saves the
        weights of the last step.
    """

    steps: int
    learning_rate: float = 3e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    kind: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.95
    weight_decay: float = 0.0
    discriminator_learning_rate: float = 3e-4
    accumulation: int = 1
    max_norm: float = 0.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation"):
            check_option(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "discriminator_learning_rate"):
            check_option(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "above 0")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "max_norm"):
            check_option(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more")
        for name, value in (("ema_decay", self.ema_decay), ("momentum", self.momentum)):
            check_option(0 <= value < 1, f"optimizer.{name}", value, "at least 0 and below 1")
        check_option(len(self.betas) == 2, "optimizer.betas", list(self.betas), "two numbers")
        check_option(self.kind in ("muon", "adamw"), "optimizer.kind", self.kind, "muon or adamw")

    def factor(self, step: int, start: int = 0) -> float:
        """Return the factor of the learning rate at a step, 0 to 1, in a schedule that begins at step `start`."""
        step, steps = step - start, max(1, self.steps - start)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        part = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        low = self.final_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


@dataclass(frozen=True)
class RunOptions:
    """Where the run writes, where it computes, and how often it reports.

    output: the folder of the run: checkpoints, logs and the model. The same command goes on from the last checkpoint.
        These options may change in between: all of run except seed and metric; data.augmentation, data.validation,
        data.validation_seconds and data.cache; optimizer.steps, max_norm, warmup_steps and the learning rates.
    seed: of all random numbers.
    precision: bf16 or fp32, for matrix products. Weights are kept in fp32.
    device: cpu or cuda. By default a GPU if there is one.
    checkpoint_every, log_every, validate_every: every how many steps.
    keep_checkpoints: how many checkpoints to keep; older ones are removed.
    metric: which metric of `mimi-hf evaluate` decides which model is the best.
    """

    output: str
    seed: int = 0
    precision: str = "bf16"
    device: str | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    validate_every: int = 1000
    metric: str = "mel_distance"

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints", "log_every", "validate_every"):
            check_option(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        check_option(self.precision in ("bf16", "fp32"), "run.precision", self.precision, "bf16 or fp32")
        rule = "cpu or cuda; CUDA_VISIBLE_DEVICES chooses one GPU of several"
        check_option(self.device in (None, "cpu", "cuda"), "run.device", self.device, rule)


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a run of `mimi-hf train`, in groups."""

    run: RunOptions
    data: DataOptions
    optimizer: OptimizerOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    quantizer: QuantizerOptions = field(default_factory=QuantizerOptions)

    def __post_init__(self) -> None:
        unquantized, steps = self.quantizer.unquantized_steps, self.optimizer.steps
        if self.model.start:
            check_option(
                unquantized == 0, "quantizer.unquantized_steps", unquantized, "0 with model.start, which has codebooks"
            )
        rule = f"below optimizer.steps={steps}: the codebooks of a new model are made after them"
        check_option(unquantized < steps, "quantizer.unquantized_steps", unquantized, rule)

    @classmethod
    def from_dict(cls, content: dict) -> "TrainingConfig":
        """Build the options from nested dictionaries, as YAML gives them.

        Args:
            content: fields by group and name. `losses.preset` names one of [`LOSS_PRESETS`] to begin from.

        Raises:
            ValueError, TypeError: for an unknown field, or a value that it cannot have.
        """
        if isinstance(content, dict):
            # A group with nothing in it, or with comments alone, is None in YAML.
            content = {name: {} if group is None else group for name, group in content.items()}
            if isinstance(content.get("losses"), dict):
                losses = dict(content["losses"])
                preset = losses.pop("preset", "reconstruction")
                check_option(preset in [*LOSS_PRESETS], "losses.preset", preset, " or ".join(LOSS_PRESETS))
                content["losses"] = {**LOSS_PRESETS[preset], **losses}
        return build_dataclass(cls, content, "")

    @classmethod
    def from_yaml(cls, path: str | Path, changes: dict | None = None) -> "TrainingConfig":
        """Read the options from a file.

        Args:
            path: the YAML file.
            changes: values that replace those of the file, by dotted name (`optimizer.steps`).

        Raises:
            OSError: the file cannot be read.
            ValueError, TypeError: it is no YAML, or as [`from_dict`].
        """
        try:
            content = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from error
        if changes and not isinstance(content, dict | None):
            raise TypeError(f"{path} is {content!r}, but must be a mapping of names to values.")
        content = content or {}
        for name, value in (changes or {}).items():
            group = content
            *groups, last = name.split(".")
            for part in groups:
                if group.get(part) is None:
                    group[part] = {}
                group = group[part]
                if not isinstance(group, dict):
                    raise TypeError(f"{name} cannot be set: {part} is {group!r}, and no group of fields.")
            group[last] = value
        return cls.from_dict(content)

    def to_dict(self) -> dict:
        """Return nested dictionaries, which [`from_dict`] takes."""
        return to_plain(dataclasses.asdict(self))


def _parameters_of(kind: type) -> list[str]:
    """Return the names of the fields of a configuration of transformers."""
    found = inspect.signature(kind.__init__).parameters.values()
    return [one.name for one in found if one.kind is not one.VAR_KEYWORD and one.name != "self"]
