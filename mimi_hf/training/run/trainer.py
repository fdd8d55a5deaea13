"""Training of Mimi, from scratch or from a published model: on one or many devices, resumable, seeded."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mimi_hf.loading import default_device
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.data.audio_cache import AudioCache
from mimi_hf.training.data.crops import Crops
from mimi_hf.training.data.preparation import prepare
from mimi_hf.training.objective.weighted_losses import Objective, discriminator_loss
from mimi_hf.utils.files import written_beside

from .checkpoints import Checkpoints
from .initialization import initialize
from .optimizers import average_weights, make_optimizers
from .run_log import RunLog
from .trained_model import TrainedModel
from .validation import NEVER, Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_LATENT_BATCHES = 16  # batches from whose latents the codebooks of a new model are made


class TrainingFailedError(RuntimeError):
    """A loss or a gradient was NaN or infinite. Nothing since the last checkpoint is saved."""


class Trainer:
    """A training run.

    Args:
        config: the run's options.
        report: called on the main process with a dictionary of news: `prepared`, the share of the audio that is
            prepared; `data`, the report of the audio; `step` with losses and `speed`, in seconds of audio per second;
            or `step` with `validation`.

    Attributes:
        step: how many steps are done.
        trained: the model in training.
        average: the moving average of its weights.
        objective: the losses.
        crops: the batches.
        checkpoints: of this run.
        best: the badness of the best model so far, see [`ValidationResult`].
        rank, world: the number of this process, and how many there are.

    Raises:
        OSError, ValueError: the data, the model or the last checkpoint cannot be used; or the output folder holds
            another run.
    """

    def __init__(self, config: TrainingConfig, report: Callable[[dict], None] = lambda figures: None) -> None:
        self.config, self._report = config, report
        self.output = Path(config.run.output)
        self.accelerator = _accelerator(config)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.run.keep_checkpoints)
        self._claim_output()
        self.step: int = 0
        torch.manual_seed(config.run.seed)
        self.trained = TrainedModel(config, self.device)
        self.crops = self._make_crops()
        self.objective = Objective(config.losses, self.trained.model.config, self.device, config.optimizer.accumulation)
        saved = self.checkpoints.load()
        if saved is None and config.model.start is None:
            initialize(self.trained.model, self._audio(self.crops.batch(0)) * self.trained.scale)
        half = torch.bfloat16 if config.run.precision == "bf16" else None
        self._optimizers = make_optimizers(self.trained.model, config.optimizer, half)
        if self.objective.projection is not None:
            self._optimizers[-1].add_param_group({"params": list(self.objective.projection.parameters())})
        self._discriminator_optimizer: torch.optim.AdamW | None = None
        if self.objective.discriminator is not None:
            self._discriminator_optimizer = torch.optim.AdamW(
                self.objective.discriminator.parameters(),
                config.optimizer.discriminator_learning_rate,
                betas=(0.5, 0.9),
                weight_decay=0.0,
            )
        self.average = average_weights(self.trained.model, config.optimizer.ema_decay)
        self.best: tuple[float, float] = NEVER
        self._validation = None
        if config.data.validation and self.accelerator.is_main_process:
            self._validation = Validation(config, self._cache("validation", config.data.validation))
        if saved is not None:
            self._restore(*saved)
        self._model = self.accelerator.prepare_model(self.trained.model)
        self._discriminator: torch.nn.Module | None = None
        if self.objective.discriminator is not None:
            self._discriminator = self.accelerator.prepare_model(self.objective.discriminator)
        self._log = RunLog(self.output, self.accelerator.is_main_process, self.step)

    # Preparation

    def _claim_output(self) -> None:
        """Write the config into the output folder. Refuse a folder that holds a checkpoint of another run."""
        path, content = self.output / "config.json", self.config.to_dict()
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            if path.exists() and self.checkpoints.steps():
                _refuse_changes(json.loads(path.read_text(encoding="utf-8")), content, self.output)
            with written_beside(path) as aside:
                aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _cache(self, name: str, sources: Iterable[str]) -> AudioCache:
        folder = Path(self.config.data.cache or self.output / "audio") / name

        def report(_seconds: float, share: float) -> None:
            if self.accelerator.is_main_process:
                self._report({"prepared": share})

        rate, shared = self.trained.model.config.sampling_rate, self.config.data.cache is not None
        return prepare(list(sources), folder, rate, progress=report, keep_others=shared)

    def _make_crops(self) -> Crops:
        data = self.config.data
        cache = self._cache("train", data.train)
        if self.accelerator.is_main_process:
            self._report({"data": cache.report})
        weights = None if data.weights is None else dict(zip(data.train, data.weights, strict=True))
        return Crops(cache, data.crop_seconds, data.batch_size, self.config.run.seed, data.augmentation, weights)

    # Checkpoints

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds besides the model, by name: each has a state_dict."""
        parts = {f"optimizer {number}": one for number, one in enumerate(self._optimizers)}
        parts |= {"average": self.average, "discriminator optimizer": self._discriminator_optimizer}
        parts |= {name: getattr(self.objective, name) for name in ("discriminator", "balancer", "projection")}
        return {name: part for name, part in parts.items() if part is not None}

    def _restore(self, model: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.trained.model.load_state_dict(model)
        self.step = state["step"]
        if self._validation is not None and state["validated_on"] == self._validation.identity:
            self.best = tuple(state["best"])  # on other recordings it would mean nothing
        if state["processes"] != self.world:
            logger.warning(
                "The steps up to %d were of %d processes, the next ones are of %d, each with its own batches: data and"
                " losses differ from those of a run that keeps the number of processes.",
                self.step,
                state["processes"],
                self.world,
            )
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])

    def save_checkpoint(self) -> None:
        """Save the state of the run, so that the same command goes on from here."""
        if self.accelerator.is_main_process:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            validated_on = None if self._validation is None else self._validation.identity
            state = {"step": self.step, "best": list(self.best), "validated_on": validated_on}
            state |= {"processes": self.world, "parts": parts}
            self.checkpoints.save(self.step, self.trained.model.state_dict(), state)
        self.accelerator.wait_for_everyone()

    def _save_model(self, name: str) -> None:
        """Save the model with averaged weights into a folder of the output, for `from_pretrained`."""
        with written_beside(self.output / name) as aside:
            self.trained.save(aside, self.average)

    # The run

    def run(self) -> None:
        """Train from the last checkpoint to the last step, and save the model.

        Raises:
            TrainingFailedError: a loss or a gradient was not finite. The message says at which step.
        """
        config, steps = self.config, self.config.optimizer.steps
        accumulation = config.optimizer.accumulation
        batches = self.crops.iterate(
            self.step * accumulation, (steps - self.step) * accumulation, self.rank, self.world
        )
        self.trained.model.train()
        begun, sums = time.perf_counter(), []
        try:
            while self.step < steps:
                figures = self._take_step([next(batches) for _ in range(accumulation)])
                sums.append(figures)
                self.step += 1
                if self.step % config.run.log_every == 0 or self.step == steps:
                    self._log_step(sums, time.perf_counter() - begun)
                    begun, sums = time.perf_counter(), []
                if self.step % config.run.validate_every == 0 or self.step == steps:
                    self._validate()
                if self.step % config.run.checkpoint_every == 0 or self.step == steps:
                    self.save_checkpoint()
            if self.accelerator.is_main_process:
                self._save_model("model")
                if self.objective.discriminator is not None:
                    with written_beside(self.output / "discriminator") as aside:
                        self.objective.discriminator.save_pretrained(aside)
            self.accelerator.wait_for_everyone()
        finally:
            batches.close()
            self._log.close()

    def _take_step(self, batches: list[Tensor]) -> dict[str, Tensor]:
        """Take an optimizer step. Its random numbers depend only on the seed, the step and the process."""
        seeds = np.random.SeedSequence([self.config.run.seed, self.step, self.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        rate = self.config.optimizer.learning_rate * self.config.optimizer.factor(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        quantized = self.step >= self.config.quantizer.unquantized_steps
        if quantized and not self.trained.quantizes:
            self._make_codebooks()
        self.trained.prepare_step(quantized)
        figures: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        for index, batch in enumerate(batches):
            audio = self._audio(batch)
            with self._summed_at_last(self._model, index, batches):
                losses, estimate = self._backward(audio)
            pairs.append((audio, estimate))
            for name, loss in losses.items():
                figures[name] = figures.get(name, 0) + loss.detach() / len(batches)
        if self.objective.projection is not None and self.world > 1:
            # The model's gradients are averaged over processes by its wrapper, which the projection does not have.
            for parameter in self.objective.projection.parameters():
                gradient: Any = self.accelerator.reduce(parameter.grad, "mean")
                parameter.grad = gradient
        figures["gradient_norm"] = self._clip(self._optimizers)
        self._refuse_nonfinite(figures)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.trained.model)
        if self._discriminator is not None and self.objective.discriminates(self.step):
            figures["discriminator"] = self._train_discriminator(self._discriminator, pairs)
        return figures

    def _audio(self, batch: Tensor) -> Tensor:
        return batch.to(self.device, non_blocking=True)

    def _summed_at_last(self, model: torch.nn.Module, index: int, batches: Sequence[Any]) -> AbstractContextManager:
        """Sum gradients over processes only in the last batch of a step."""
        return self.accelerator.no_sync(model) if index < len(batches) - 1 else nullcontext()

    def _backward(self, audio: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch and their gradients. Returns the losses and the model's audio."""
        scale = self.trained.scale
        with self.accelerator.autocast():
            output = self._model(audio * scale, return_loss=False)
            estimate = output.audio_values.float() / scale
            losses = self.objective.losses(audio, estimate, output, self.step)
        self.objective.backward(losses, estimate)
        return losses, estimate.detach()

    def _clip(self, optimizers: list[torch.optim.Optimizer]) -> Tensor:
        """Clip the gradient of the optimizers' parameters. Returns its norm before, the same in all processes."""
        parameters = [item for optimizer in optimizers for group in optimizer.param_groups for item in group["params"]]
        norm = torch.nn.utils.get_total_norm([item.grad for item in parameters if item.grad is not None])
        if self.config.optimizer.max_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.max_norm, norm)
        return norm

    def _train_discriminator(self, discriminator: torch.nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Take an optimizer step of the discriminator, on pairs of real audio and the model's. Returns its loss."""
        options, optimizer = self.config.optimizer, self._discriminator_optimizer
        assert optimizer is not None  # made with the discriminator
        rate = options.factor(self.step, self.config.losses.adversarial_start)
        optimizer.param_groups[0]["lr"] = options.discriminator_learning_rate * rate
        total = torch.zeros((), device=self.device)
        for index, (audio, estimate) in enumerate(pairs):
            with self._summed_at_last(discriminator, index, pairs):
                with self.accelerator.autocast():
                    loss = discriminator_loss(discriminator, audio, estimate) / len(pairs)
                loss.backward()
            total = total + loss.detach()
        norm = self._clip([optimizer])
        self._refuse_nonfinite({"discriminator": total, "discriminator_gradient_norm": norm})
        optimizer.step()
        optimizer.zero_grad()
        return total

    @torch.no_grad()
    def _make_codebooks(self) -> None:
        """Make the codebooks of a new model from its latents, by k-means."""
        latents = []
        for index in range(_LATENT_BATCHES):
            audio = self._audio(self.crops.batch(self.step + index, self.rank, self.world))
            with self.accelerator.autocast():
                latents.append(self.trained.model.encode_latents(audio * self.trained.scale).mT.float())
        self.trained.model.quantizer.initialize(torch.cat(latents), batches=_LATENT_BATCHES)

    def _refuse_nonfinite(self, figures: dict[str, Tensor]) -> None:
        if torch.stack(list(figures.values())).isfinite().all():
            return
        options = self.config.optimizer
        facts = ", ".join(f"{name} {float(value):g}" for name, value in figures.items())
        raise TrainingFailedError(
            f"Step {self.step} (seed {self.config.run.seed}, process {self.rank}) is not finite: {facts}; learning rate"
            f" {options.learning_rate * options.factor(self.step):g}. The last checkpoint"
            f" is of step {(self.checkpoints.steps() or ['none'])[-1]}. Lower optimizer.learning_rate, set"
            " optimizer.max_norm, or use run.precision: fp32; each may change for the same run."
        )

    # Reports

    def _log_step(self, sums: list[dict[str, Tensor]], seconds: float) -> None:
        seen = {name: [one[name] for one in sums if name in one] for name in sums[-1]}
        figures = {name: float(sum(values) / len(values)) for name, values in seen.items()}
        audio = len(sums) * self.config.optimizer.accumulation * self.config.data.batch_size
        figures["learning_rate"] = self.config.optimizer.learning_rate * self.config.optimizer.factor(self.step - 1)
        figures["speed"] = audio * self.world * self.config.data.crop_seconds / seconds
        self._log.write_figures(self.step, figures)
        if self.accelerator.is_main_process:
            self._report({"step": self.step, "seconds": seconds, **figures})

    def _validate(self) -> None:
        if self._validation is not None and self.trained.quantizes:
            model = self.trained.export(self.average)
            result = self._validation.run(model.to(self.device))
            self._log.write_figures(self.step, result.figures, "validation")
            self._log.write_audio(self.step, result)
            self._report({"step": self.step, "validation": result.figures})
            if result.badness < self.best:
                self.best = result.badness
                self._save_model("best")
        self.accelerator.wait_for_everyone()


def _accelerator(config: TrainingConfig) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    device = config.run.device or default_device()
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device is cuda, but torch finds no GPU here. Leave it out to train on the CPU.")
    # The quantizer itself keeps the codebooks of all processes equal.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    precision = "bf16" if config.run.precision == "bf16" else "no"
    return Accelerator(mixed_precision=precision, cpu=device == "cpu", kwargs_handlers=[ddp])


# Options that may differ when a run goes on: where it runs, how fast and how far, its augmentation and its reports.
_MAY_CHANGE = {
    "run": {"output", "device", "precision", "checkpoint_every", "keep_checkpoints", "log_every", "validate_every"},
    "optimizer": {
        "steps",
        "learning_rate",
        "final_learning_rate",
        "warmup_steps",
        "discriminator_learning_rate",
        "max_norm",
    },
    "data": {"validation", "validation_seconds", "cache", "augmentation"},
}


def _refuse_changes(before: dict[str, dict], now: dict[str, dict], output: Path) -> None:
    for group, options in now.items():
        for name, value in options.items():
            old = before.get(group, {}).get(name)
            if old != value and name not in _MAY_CHANGE.get(group, ()):
                raise ValueError(
                    f"{output} holds a run with {group}.{name}={old!r}, not {value!r}. Name another run.output, or undo"
                    " the change to go on with that run."
                )
