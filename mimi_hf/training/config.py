"""What a training run is made of: frozen options, read from YAML, each checked once."""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from mimi_hf.codec.losses import FLOOR, RECONSTRUCTION_WEIGHTS
from mimi_hf.codec.quantizer import QuantizerTraining
from mimi_hf.configuration_mimi import MimiConfig

from .checks import check
from .data.augmentation import Augmentation
from .objective.discriminator import MimiDiscriminatorConfig

PARTS = ("encoder", "quantizer", "decoder")


@dataclass(frozen=True)
class ModelOptions:
    """Which model is trained.

    start: a folder or Hub id to go on from, or `mimi-tiny`; without one, a new model is made from `config`.
    config: fields of [`MimiConfig`], for a new model.
    train: which of encoder, quantizer and decoder learn. Codes that were made before stay valid, and bit-equal, where
        only the decoder does; with the encoder in training and the quantizer fixed, old codes still decode, but the
        same audio encodes to other ones; with the quantizer in training, old codes lose their meaning.
    lora_rank: above 0, the transformers of the trained parts learn through low-rank adapters of this rank
        (arXiv:2106.09685), which are merged into the weights that are saved; all else stays fixed, the codebooks, too.
        0 trains in full.
    audio_scale: audio is multiplied by this before a new model, and divided after it, so that layers of unit variance
        fit it. What is saved has it folded into the first and the last convolution. 1 with `start`.
    """

    start: str | None = None
    config: dict = field(default_factory=dict)
    train: tuple[str, ...] = PARTS
    lora_rank: int = 0
    audio_scale: float = 10.0

    def __post_init__(self):
        if self.start and self.config:
            raise ValueError(
                "model.start and model.config are both given: a model that was begun has its config. Drop one."
            )
        if not self.train or set(self.train) - set(PARTS):
            raise ValueError(f"model.train={list(self.train)} must name one or more of {', '.join(PARTS)}.")
        if not self.start and set(self.train) != set(PARTS):
            raise ValueError("model.train leaves parts out, but a new model learns as a whole. Name model.start, too.")
        check(self.lora_rank >= 0, "model.lora_rank", self.lora_rank, "0 (off) or more")
        check(not self.lora_rank or self.start, "model.lora_rank", self.lora_rank, "0 for a new model")
        if self.lora_rank and not {"encoder", "decoder"} & set(self.train):
            raise ValueError(
                "model.lora_rank needs encoder or decoder in model.train: only their transformers learn so."
            )
        _refuse_unknown(self.config, _parameters_of(MimiConfig), "model.config")
        check(self.audio_scale > 0, "model.audio_scale", self.audio_scale, "above 0")


@dataclass(frozen=True)
class DataOptions:
    """What it learns from.

    train: folders of audio, parquet files, manifests, WebDataset tars or Hub data sets.
    weights: how often each is drawn from, in the order of `train`; by its hours where left out.
    validation: the same, never trained on: what the figures of a run and its best model are taken from.
    validation_seconds: how much of it to use.
    cache: where the audio is kept as 16-bit samples, ready to be cut, for several runs. By default inside the output,
        where what was prepared for other sources is removed.
    crop_seconds: length of a crop. A multiple of 0.08 s wastes nothing.
    batch_size: crops in a step of one process.
    augmentation: see [`Augmentation`]; leave out for none.
    """

    train: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    validation: tuple[str, ...] = ()
    validation_seconds: float = 60.0
    cache: str | None = None
    crop_seconds: float = 1.0
    batch_size: int = 8
    augmentation: Augmentation | None = None

    def __post_init__(self):
        check(self.train, "data.train", list(self.train), "one source or more")
        if self.weights is not None:
            fits = len(self.weights) == len(self.train) and all(weight > 0 for weight in self.weights)
            check(fits, "data.weights", list(self.weights), "a positive number for each source of data.train")
        check(self.crop_seconds >= 0.2, "data.crop_seconds", self.crop_seconds, "at least 0.2")
        check(self.batch_size >= 1, "data.batch_size", self.batch_size, "at least 1")
        check(self.validation_seconds > 0, "data.validation_seconds", self.validation_seconds, "above 0")


@dataclass(frozen=True)
class LossOptions:
    """What it is trained for. A weight of 0 leaves a loss out.

    preset: where the weights begin: `reconstruction` (the default: as they stand below); `adversarial` (Moshi's,
        arXiv:2410.00037, section 3.3: adversarial and feature_matching 4, balanced, and no other on the audio); `both`
        (adversarial 1, feature_matching 2, and reconstruction).
    mel: log-mel distance at five resolutions. spectral_convergence, log_magnitude: of the STFT. waveform: L1.
    floor: added to magnitudes before their logarithm: white noise of this RMS is about as loud.
    commitment: of latents to their codebook entries.
    adversarial, feature_matching: of a multi-scale STFT discriminator, from `adversarial_start` on.
    adversarial_start: the step at which the discriminator comes in.
    discriminator: fields of [`MimiDiscriminatorConfig`]; discriminator_start: a folder or Hub id to go on from.
    distillation: of the semantic codebook to `teacher`, a speech model in a folder or on the Hub.
    balance: give each loss on the audio the share of the gradient that its weight says (EnCodec, arXiv:2210.13438,
        section 3.4); otherwise weights simply multiply.
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

    def __post_init__(self):
        for name in (*RECONSTRUCTION, "commitment", *ADVERSARIAL, "distillation"):
            check(getattr(self, name) >= 0, f"losses.{name}", getattr(self, name), "0 (off) or more")
        if not any(getattr(self, name) for name in RECONSTRUCTION + ADVERSARIAL):
            raise ValueError("Every loss on the audio is 0. Give one of losses.mel, losses.adversarial, … a weight.")
        if self.adversarial_start and not any(getattr(self, name) for name in RECONSTRUCTION):
            raise ValueError(
                f"losses.adversarial_start={self.adversarial_start} leaves the first steps without any loss on the"
                " audio. Give losses.mel, or another one, a weight, or begin at 0."
            )
        if self.distillation and not self.teacher:
            raise ValueError("losses.distillation needs losses.teacher: a speech model, such as microsoft/wavlm-large.")
        _refuse_unknown(self.discriminator, _parameters_of(MimiDiscriminatorConfig), "losses.discriminator")
        check(self.floor > 0, "losses.floor", self.floor, "above 0")
        check(self.adversarial_start >= 0, "losses.adversarial_start", self.adversarial_start, "0 or more")

    @property
    def uses_discriminator(self) -> bool:
        """Whether there is a discriminator at all."""
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
    """How codebooks come about.

    unquantized_steps: steps at the beginning that leave latents as they are; the codebooks of a new model are made
        from the latents then, by k-means. 0 with `model.start`, which has codebooks.
    decay: of the moving averages that codebooks are, per step.
    dead_threshold: an entry that is used less than this share of the average entry is replaced by a latent of the
        batch. 0 replaces none.
    kmeans_iterations: of the initialisation.
    quantizer_dropout: the share of crops that use their first n codebooks alone, n drawn from the semantic ones to all.
    unquantized: the share of crops whose latents the decoder gets unquantized.
    """

    unquantized_steps: int = 0
    decay: float = 0.99
    dead_threshold: float = QuantizerTraining.dead_threshold
    kmeans_iterations: int = QuantizerTraining.kmeans_iterations
    quantizer_dropout: float = 0.5
    unquantized: float = 0.5

    def __post_init__(self):
        check(self.unquantized_steps >= 0, "quantizer.unquantized_steps", self.unquantized_steps, "0 or more")
        self.training_options(True, True)

    def training_options(self, enabled: bool, update: bool) -> QuantizerTraining:
        """As the quantizer takes them."""
        names = ("decay", "dead_threshold", "kmeans_iterations", "quantizer_dropout", "unquantized")
        return QuantizerTraining(enabled=enabled, update=update, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class OptimizerOptions:
    """How it learns.

    steps: optimizer steps of the whole run.
    learning_rate: at its highest; rises over `warmup_steps`, then falls along a cosine to `final_learning_rate` of it.
    kind: muon (momentum orthogonalised, for matrices, with AdamW for the rest) or adamw.
    betas, weight_decay: of AdamW; the decay is used by both. momentum: of Muon.
    discriminator_learning_rate: of the discriminator's AdamW, with the same schedule from its beginning on.
    accumulation: batches per optimizer step. max_norm: of the gradient; 0 does not clip.
    ema_decay: of the average of the weights that is saved; 0 saves the weights of the last step.
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

    def __post_init__(self):
        for name in ("steps", "accumulation"):
            check(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "discriminator_learning_rate"):
            check(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "above 0")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "max_norm"):
            check(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more")
        for name, value in (("ema_decay", self.ema_decay), ("momentum", self.momentum)):
            check(0 <= value < 1, f"optimizer.{name}", value, "at least 0 and below 1")
        check(len(self.betas) == 2, "optimizer.betas", list(self.betas), "two numbers")
        check(self.kind in ("muon", "adamw"), "optimizer.kind", self.kind, "muon or adamw")

    def factor(self, step: int, start: int = 0) -> float:
        """What the learning rate of a step is multiplied by, where the schedule begins at `start`."""
        step, steps = step - start, max(1, self.steps - start)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        part = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        low = self.final_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


@dataclass(frozen=True)
class RunOptions:
    """What it leaves behind.

    output: the folder of the run: checkpoints, logs, the model. The same command goes on from the last checkpoint. What
        may change on the way: run but for seed and metric, data.augmentation, data.validation, data.validation_seconds,
        data.cache, optimizer.steps, max_norm, warmup_steps and the learning rates.
    seed: of everything that is drawn.
    precision: bf16 or fp32, of the products; weights are kept in fp32.
    device: cpu or cuda; by default a GPU where there is one.
    checkpoint_every, log_every, validate_every: in steps. keep_checkpoints: how many of the newest stay.
    metric: mel_distance, or another one of `mimi-hf evaluate`, which decides which model is the best.
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

    def __post_init__(self):
        for name in ("checkpoint_every", "keep_checkpoints", "log_every", "validate_every"):
            check(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        check(self.precision in ("bf16", "fp32"), "run.precision", self.precision, "bf16 or fp32")
        rule = "cpu or cuda; CUDA_VISIBLE_DEVICES chooses one GPU of several"
        check(self.device in (None, "cpu", "cuda"), "run.device", self.device, rule)


@dataclass(frozen=True)
class TrainingConfig:
    """A run of `mimi-hf train`: one group of options for each question."""

    run: RunOptions
    data: DataOptions
    optimizer: OptimizerOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    quantizer: QuantizerOptions = field(default_factory=QuantizerOptions)

    def __post_init__(self):
        unquantized, steps = self.quantizer.unquantized_steps, self.optimizer.steps
        if self.model.start:
            check(
                unquantized == 0, "quantizer.unquantized_steps", unquantized, "0 with model.start, which has codebooks"
            )
        rule = f"below optimizer.steps={steps}: the codebooks of a new model are made after them"
        check(unquantized < steps, "quantizer.unquantized_steps", unquantized, rule)

    @classmethod
    def from_dict(cls, content: dict) -> "TrainingConfig":
        """From nested dictionaries, as YAML gives them. `losses.preset` names one of [`LOSS_PRESETS`] to begin from.

        Raises:
            ValueError, TypeError: for a field that there is not, or a value that it cannot have.
        """
        if isinstance(content, dict):
            # A group with nothing in it, or with comments alone, is None in YAML.
            content = {name: {} if group is None else group for name, group in content.items()}
            if isinstance(content.get("losses"), dict):
                losses = dict(content["losses"])
                preset = losses.pop("preset", "reconstruction")
                check(preset in [*LOSS_PRESETS], "losses.preset", preset, " or ".join(LOSS_PRESETS))
                content["losses"] = {**LOSS_PRESETS[preset], **losses}
        return _build(cls, content, "")

    @classmethod
    def from_yaml(cls, path: str | Path, changes: dict | None = None) -> "TrainingConfig":
        """From a file; `changes` maps dotted names (`optimizer.steps`) to values that replace the file's.

        Raises:
            OSError, ValueError, TypeError: the file cannot be read, or says what it cannot.
        """
        import yaml

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
        """The reverse of [`from_dict`]."""
        return _plain(dataclasses.asdict(self))


def parse_yaml(text: str):
    """What YAML's safe loader gives, but 3e-4 is a number, as everywhere else."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.load(text, Loader)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(kind, content, path: str):
    """An instance of the dataclass, from a dictionary of what its fields' types say."""
    where = path or "the configuration"
    if not isinstance(content, dict):
        raise TypeError(f"{where} is {content!r}, but must be a mapping of names to values.")
    hints, fields = typing.get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}
    values = {}
    _refuse_unknown(content, fields, where)
    for name, value in content.items():
        values[name] = _convert(hints[name], value, f"{path}.{name}".lstrip("."))
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"{path}.{name} is missing.".lstrip(".") + " It has no default.")
    return kind(**values)


def _refuse_unknown(content, fields, where: str):
    """Raise ValueError for a name that is none of the fields."""
    for name in content:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1)
            raise ValueError(
                f"{where} has no field {name!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" Its fields: {', '.join(fields)}."
            )


def _parameters_of(kind: type) -> list[str]:
    """The names that a configuration of transformers is made from."""
    found = inspect.signature(kind.__init__).parameters.values()
    return [one.name for one in found if one.kind is not one.VAR_KEYWORD and one.name != "self"]


def _convert(hint, value, path: str):
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(item, one, path) for one in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    if wrong:
        raise TypeError(f"{path}={value!r} must be of type {hint.__name__}.")
    return value
