"""What a step is trained for: the losses of a run, weighed, and the discriminator that some of them need."""

import torch
from torch import Tensor, nn

from mimi_hf.codec.losses import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    reconstruction_losses,
)
from mimi_hf.training.config import ADVERSARIAL, RECONSTRUCTION, LossOptions

from .balancer import GradientBalancer
from .discriminator import MimiDiscriminator, MimiDiscriminatorConfig
from .distillation import SemanticTeacher, distillation_loss

_ON_AUDIO = RECONSTRUCTION + ADVERSARIAL


class Objective:
    """The losses of a run, with what is learnt for their sake.

    discriminator: [`MimiDiscriminator`], or None where no loss needs one.
    projection: from semantic latents to what the teacher says, or None without one.
    balancer: [`GradientBalancer`], or None.

    Args:
        options: which losses, and their weights.
        config: [`MimiConfig`] of the model.
        device: where the run takes place.
        accumulation: batches of a step, whose gradients add up.
    """

    def __init__(self, options: LossOptions, config, device, accumulation: int = 1):
        self.options, self.sampling_rate, self.accumulation = options, config.sampling_rate, accumulation
        self.discriminator = self.projection = self.balancer = self._teacher = None
        if options.uses_discriminator:
            self.discriminator = _make_discriminator(options, config).to(device)
        if options.balance:
            weights = {name: getattr(options, name) for name in _ON_AUDIO if getattr(options, name)}
            self.balancer = GradientBalancer(weights, total_norm=1 / accumulation)
        if options.distillation:
            self._teacher = SemanticTeacher(options.teacher, config.sampling_rate, config.frame_size, device)
            self.projection = nn.Linear(config.hidden_size, self._teacher.width, bias=False).to(device)

    def discriminates(self, step: int) -> bool:
        """Whether the discriminator takes part in a step."""
        return self.discriminator is not None and step >= self.options.adversarial_start

    def losses(self, target: Tensor, estimate: Tensor, output, step: int) -> dict[str, Tensor]:
        """The losses of a step, before their weights.

        Args:
            target, estimate: Tensors, shape = (B, 1, N), at the level of the data.
            output: [`MimiTrainingOutput`].
        """
        losses = {}
        if any(getattr(self.options, name) for name in RECONSTRUCTION):
            losses = reconstruction_losses(target, estimate, self.sampling_rate, floor=self.options.floor)
        if self.discriminates(step):
            losses |= self._adversarial_losses(target, estimate)
        losses["commitment"] = output.commitment_loss
        if self._teacher is not None:
            losses["distillation"] = distillation_loss(output.semantic_latents, self._teacher(target), self.projection)
        return {name: loss for name, loss in losses.items() if getattr(self.options, name)}

    def _adversarial_losses(self, target: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            real = self.discriminator(target)
        fake = self.discriminator(estimate)
        self.discriminator.requires_grad_(True)
        return {
            "adversarial": hinge_generator_loss(fake.logits),
            "feature_matching": feature_matching_loss(real.features, fake.features),
        }

    def backward(self, losses: dict[str, Tensor], estimate: Tensor):
        """Leave the gradients of the weighed losses in all that they were made of.

        Args:
            losses, estimate: of [`losses`].
        """
        on_audio = {name: loss for name, loss in losses.items() if name in _ON_AUDIO}
        rest = sum(self._weighed(name, loss) for name, loss in losses.items() if name not in on_audio)
        # Without an encoder that learns, there is nothing to commit.
        rest = rest if isinstance(rest, Tensor) and rest.requires_grad else None
        if self.balancer is not None:
            self.balancer.backward(on_audio, estimate, rest)
            return
        total = sum(self._weighed(name, loss) for name, loss in on_audio.items())
        (total if rest is None else total + rest).backward()

    def _weighed(self, name: str, loss: Tensor) -> Tensor:
        return getattr(self.options, name) * loss / self.accumulation


def discriminator_loss(discriminator, target: Tensor, estimate: Tensor) -> Tensor:
    """The hinge loss of telling real audio from the model's. discriminator: a module, maybe wrapped for processes."""
    count = len(target)
    logits = discriminator(torch.cat([target, estimate.detach()])).logits  # one call: one reduction of gradients
    return hinge_discriminator_loss([part[:count] for part in logits], [part[count:] for part in logits])


def _make_discriminator(options: LossOptions, config) -> MimiDiscriminator:
    if options.discriminator_start:
        return MimiDiscriminator.from_pretrained(options.discriminator_start)
    fields = {"sampling_rate": config.sampling_rate, **options.discriminator}
    return MimiDiscriminator(MimiDiscriminatorConfig(**fields))
