"""What a step is trained for: the losses of a run, weighed, and the discriminator that some of them need."""

from typing import Any

import torch
from torch import Tensor, nn

from .balancer import GradientBalancer
from .config import ADVERSARIAL, RECONSTRUCTION, LossOptions
from .discriminator import MimiDiscriminator, MimiDiscriminatorConfig
from .distillation import SemanticTeacher, distillation_loss
from .losses import feature_matching_loss, hinge_discriminator_loss, hinge_generator_loss, reconstruction_losses


class Objective(nn.Module):
    """The losses of a run, with what is learnt for their sake.

    Args:
        options: which losses, and their weights.
        config: [`MimiConfig`] of the model.
        device: where the run takes place.
    """

    def __init__(self, options: LossOptions, config, device):
        super().__init__()
        self.options, self.sampling_rate = options, config.sampling_rate
        self.discriminator = self.projection = None
        if options.uses_discriminator:
            self.discriminator = _make_discriminator(options, config).to(device)
        self.balancer = GradientBalancer(_weights(options, RECONSTRUCTION + ADVERSARIAL)) if options.balance else None
        self._teacher: Any = None
        if options.distillation:
            self._teacher = SemanticTeacher(options.teacher, config.sampling_rate, config.frame_size, device)
            self.projection = nn.Linear(config.hidden_size, self._teacher.width, bias=False).to(device)

    def discriminates(self, step: int) -> bool:
        """Whether the discriminator takes part in a step."""
        return self.discriminator is not None and step >= self.options.adversarial_start

    def backward(self, target: Tensor, output, estimate: Tensor, step: int, divide: int) -> dict[str, Tensor]:
        """Leave the gradients of the step in the model's parameters.

        Args:
            target, estimate: Tensors, shape = (B, 1, N), at the level of the data.
            output: [`MimiTrainingOutput`].
            divide: the gradients by this, the number of batches of a step.

        Returns:
            dict[str, Tensor]: each loss before its weight.
        """
        audio_losses = self._audio_losses(target, estimate, step)
        others = {"commitment": output.commitment_loss} if output.commitment_loss is not None else {}
        if self._teacher is not None:
            others["distillation"] = distillation_loss(output.semantic_latents, self._teacher(target), self.projection)
        rest = sum(getattr(self.options, name) * loss for name, loss in others.items()) / divide
        has_rest = isinstance(rest, Tensor) and rest.requires_grad
        if self.balancer is None:
            total = sum(getattr(self.options, name) * loss for name, loss in audio_losses.items()) / divide
            (total + rest if has_rest else total).backward()
        else:
            gradient = self.balancer.gradient(audio_losses, estimate) / divide
            torch.autograd.backward(
                [estimate, rest] if has_rest else [estimate], [gradient, None] if has_rest else [gradient]
            )
        return {name: loss.detach() for name, loss in {**audio_losses, **others}.items()}

    def _audio_losses(self, target: Tensor, estimate: Tensor, step: int) -> dict[str, Tensor]:
        losses = {}
        if any(getattr(self.options, name) for name in RECONSTRUCTION):
            parts = reconstruction_losses(target, estimate, self.sampling_rate, floor=self.options.floor)
            losses = {name: parts[name] for name in RECONSTRUCTION if getattr(self.options, name)}
        if self.discriminates(step):
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                real = self.discriminator(target)
            fake = self.discriminator(estimate)
            if self.options.adversarial:
                losses["adversarial"] = hinge_generator_loss(fake.logits)
            if self.options.feature_matching:
                losses["feature_matching"] = feature_matching_loss(real.features, fake.features)
            self.discriminator.requires_grad_(True)
        return losses


def discriminator_loss(discriminator, target: Tensor, estimate: Tensor) -> Tensor:
    """The hinge loss of telling real audio from the model's. discriminator: a module, maybe wrapped for processes."""
    count = len(target)
    logits = discriminator(torch.cat([target, estimate.detach()])).logits  # one call: one reduction of gradients
    return hinge_discriminator_loss([part[:count] for part in logits], [part[count:] for part in logits])


def _weights(options: LossOptions, names) -> dict[str, float]:
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def _make_discriminator(options: LossOptions, config) -> MimiDiscriminator:
    if options.discriminator_start:
        return MimiDiscriminator.from_pretrained(options.discriminator_start)
    fields = {"sampling_rate": config.sampling_rate, **options.discriminator}
    return MimiDiscriminator(MimiDiscriminatorConfig(**fields))
