"""Optimizers of a training run: Muon for matrices, AdamW for the rest; and the moving average of the weights."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.training.config import OptimizerOptions

# Coefficients of the quintic iteration that drives singular values towards 1 (Jordan et al. 2024, "Muon").
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan et al. 2024), as large as those of AdamW.

    The scale is that of Liu et al. 2025 (arXiv:2502.16982, section 2.2). Kernels of convolutions are matrices of
    (out, in * taps).

    Args:
        params: parameters of two or more dimensions, or groups of them.
        lr: the learning rate.
        momentum: of the gradients, in Nesterov's form.
        weight_decay: decoupled, as in AdamW.
        dtype: dtype to orthogonalise in; by default that of the parameters. bfloat16 is enough, and several times
            faster where the processor has it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 3e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters by their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same_shape = defaultdict(list)  # orthogonalised together
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[(parameter.shape, parameter.dtype)].append(parameter)
            for parameters in same_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient: Any = parameter.grad
            state["momentum"].lerp_(gradient, 1 - momentum)
            directions.append(gradient.lerp(state["momentum"], momentum).flatten(1))
        updates = orthogonalize(torch.stack(directions), dtype=self._dtype)
        scale = 0.2 * max(updates.shape[1:]) ** 0.5  # the root mean square that AdamW's updates have
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-rate * scale)


def orthogonalize(matrices: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Replace the singular values of matrices by about 1.

    Args:
        matrices: Tensor, shape = (count, rows, columns).
        iterations: of the approximation.
        dtype: dtype to compute in; by default that of the matrices.

    Returns:
        Tensor of the same shape, with singular values of about 0.7 to 1.2.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    x = x.to(dtype or x.dtype)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizers(
    model: MimiModel, options: OptimizerOptions, dtype: torch.dtype | None = None
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of the parameters that require a gradient.

    Args:
        model: the model in training.
        options: which optimizers, and their options.
        dtype: see [`Muon`].
    """
    matrices, others = [], []
    # The first and the last convolution turn samples into features and back: Muon is for maps between features.
    ends = {id(getattr(model, half).layers[index].conv.weight) for half, index in (("encoder", 0), ("decoder", -1))}
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.dim() >= 2 and min(parameter.flatten(1).shape) > 1 and id(parameter) not in ends
            (matrices if matrix and options.kind == "muon" else others).append(parameter)
    rate, decay = options.learning_rate, options.weight_decay
    optimizers = []
    if matrices:
        optimizers.append(Muon(matrices, rate, options.momentum, decay, dtype))
    if others:
        optimizers.append(torch.optim.AdamW(others, rate, options.betas, weight_decay=decay, fused=False))
    return optimizers


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Make the exponential moving average of a model's weights, which starts from the weights as they are.

    After n updates it reaches back at most about n / 10 updates, so that the first weights are soon forgotten. Buffers
    are copied, not averaged.
    """

    def update(averages: Any, weights: Any, count: Any) -> None:
        n = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(model, multi_avg_fn=update)
    average.n_averaged.fill_(1)  # the copy that it starts from: otherwise, the first update would replace it
    return average
