"""The weighted losses of a run, and the discriminator and the teacher that some of them need."""

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from mimi_hf.codec.losses import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    reconstruction_losses,
)
from mimi_hf.codec.outputs import MimiTrainingOutput
from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.training.config import ADVERSARIAL, RECONSTRUCTION, LossOptions

from .balancer import GradientBalancer
from .discriminator import MimiDiscriminator, MimiDiscriminatorConfig
from .distillation import SemanticTeacher, distillation_loss

_ON_AUDIO = RECONSTRUCTION + ADVERSARIAL


class Objective:
    """The weighted losses of a run, and the modules that only they need.

    discriminator: [`MimiDiscriminator`], or None where no loss needs one.
    projection: from semantic latents to the teacher's features, or None without a teacher.
    balancer: [`GradientBalancer`], or None where losses are not balanced.

    Args:
        options: which losses, and their weights.
        config: of the model.
        device: where the run takes place.
        accumulation: batches per step, whose gradients add up.

    Raises:
        OSError, ValueError: the discriminator or the teacher cannot be loaded.
    """

    def __init__(
        self, options: LossOptions, config: MimiConfig, device: torch.device | str, accumulation: int = 1
    ) -> None:
        self.options, self.sampling_rate, self.accumulation = options, config.sampling_rate, accumulation
        self.discriminator: MimiDiscriminator | None = None
        self.balancer: GradientBalancer | None = None
        self.projection: nn.Linear | None = None
        self._teacher: SemanticTeacher | None = None
        if options.discriminator_start and options.uses_discriminator:
            self.discriminator = MimiDiscriminator.from_pretrained(options.discriminator_start)
        elif options.uses_discriminator:
            fields = {"sampling_rate": config.sampling_rate, **options.discriminator}
            self.discriminator = MimiDiscriminator(MimiDiscriminatorConfig(**fields))
        if self.discriminator is not None:
            nn.Module.to(self.discriminator, device)
        if options.balance:
            weights = {name: getattr(options, name) for name in _ON_AUDIO if getattr(options, name)}
            self.balancer = GradientBalancer(weights, total_norm=1 / accumulation)
        if options.distillation and options.teacher:
            self._teacher = SemanticTeacher(options.teacher, config.sampling_rate, config.frame_size, device)
            self.projection = nn.Linear(config.hidden_size, self._teacher.width, bias=False).to(device)

    def discriminates(self, step: int) -> bool:
        """Return whether the discriminator is used and trained at a step."""
        return self.discriminator is not None and step >= self.options.adversarial_start

    def losses(self, target: Tensor, estimate: Tensor, output: MimiTrainingOutput, step: int) -> dict[str, Tensor]:
        """Compute the losses of a step, without their weights.

        Args:
            target: Tensor, shape = (B, 1, N), the audio of the data.
            estimate: Tensor, shape = (B, 1, N), the model's, as loud as the data.
            output: of the model.
            step: the step, from 0.
        """
        losses = {}
        if any(getattr(self.options, name) for name in RECONSTRUCTION):
            losses = reconstruction_losses(target, estimate, self.sampling_rate, floor=self.options.floor)
        if self.discriminator is not None and self.discriminates(step):
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                real = self.discriminator(target)
            fake = self.discriminator(estimate)
            self.discriminator.requires_grad_(True)
            losses["adversarial"] = hinge_generator_loss(fake.logits)
            losses["feature_matching"] = feature_matching_loss(real.features, fake.features)
        losses["commitment"] = output.commitment_loss
        if self._teacher is not None and self.projection is not None:
            losses["distillation"] = distillation_loss(output.semantic_latents, self._teacher(target), self.projection)
        return {name: loss for name, loss in losses.items() if getattr(self.options, name)}

    def backward(self, losses: dict[str, Tensor], estimate: Tensor) -> None:
        """Compute the gradients of the weighted losses.

        Args:
            losses: what [`losses`] returned.
            estimate: the audio that [`losses`] was given.
        """
        weighted = {name: getattr(self.options, name) * loss / self.accumulation for name, loss in losses.items()}
        # Without an encoder in training, the commitment loss has no gradient.
        rest = [loss for name, loss in weighted.items() if name not in _ON_AUDIO and loss.requires_grad]
        beside: Tensor | None = reduce(add, rest) if rest else None
        if self.balancer is not None:
            on_audio = {name: loss for name, loss in losses.items() if name in _ON_AUDIO}
            self.balancer.backward(on_audio, estimate, beside)
            return
        total: Tensor = reduce(add, (loss for name, loss in weighted.items() if name in _ON_AUDIO))
        (total if beside is None else total + beside).backward()


def discriminator_loss(discriminator: nn.Module, target: Tensor, estimate: Tensor) -> Tensor:
    """Compute the hinge loss of a discriminator that tells real audio from the model's.

    Args:
        discriminator: a [`MimiDiscriminator`], or one wrapped for several processes.
        target: Tensor, shape = (B, C, N), real audio.
        estimate: Tensor, shape = (B, C, N), the model's. It gets no gradient.

    Returns:
        Tensor, shape = ().
    """
    count = len(target)
    logits = discriminator(torch.cat([target, estimate.detach()])).logits  # one call: one reduction of gradients
    return hinge_discriminator_loss([scale[:count] for scale in logits], [scale[count:] for scale in logits])
