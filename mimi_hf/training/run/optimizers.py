"""Optimizers of a training run: Muon for matrices, AdamW for the rest; and the moving average of weights."""

from collections import defaultdict

import torch
from torch import Tensor, nn

# Of the quintic iteration that drives singular values towards 1 (Jordan et al. 2024, "Muon").
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024), scaled to the size of AdamW's updates
    (Liu et al. 2025, arXiv:2502.16982, section 2.2). Kernels of convolutions are matrices of (out, in * taps).

    Args:
        params: of two or more dimensions.
        momentum: of the gradients, in Nesterov's form.
        weight_decay: decoupled, as in AdamW.
        dtype: what matrices are orthogonalised in, their own by default. bfloat16 is enough, and where the processor
            has it several times faster.
    """

    def __init__(
        self,
        params,
        lr: float = 3e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
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

    def _update(self, parameters: list[Tensor], group: dict):
        momentum, rate = group["momentum"], group["lr"]
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            directions.append(parameter.grad.lerp(state["momentum"], momentum).flatten(1))
        updates = orthogonalize(torch.stack(directions), dtype=self._dtype)
        scale = 0.2 * max(updates.shape[1:]) ** 0.5  # the root mean square that AdamW's updates have
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-rate * scale)


def orthogonalize(matrices: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """About U @ V.T of each matrix U @ S @ V.T.

    Args:
        matrices: Tensor, shape = (count, rows, columns).
        dtype: to compute in; that of the matrices by default.

    Returns:
        Tensor of the same shape, singular values about 0.7 to 1.2.
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


def make_optimizers(model: nn.Module, options, dtype: torch.dtype | None = None) -> list[torch.optim.Optimizer]:
    """For the parameters that require a gradient.

    Args:
        model: a [`MimiModel`].
        options: [`OptimizerOptions`].
        dtype: see [`Muon`].
    """
    matrices, others = [], []
    # The first and the last convolution turn samples to features and back: no maps between features.
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
        optimizers.append(torch.optim.AdamW(others, rate, tuple(options.betas), weight_decay=decay, fused=False))
    return optimizers


class WeightAverage:
    """The exponential moving average of the parameters that learn.

    It is young at first: after `n` updates its memory is at most about `n / 10` steps long.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self._parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
        self.average = {name: item.detach().clone() for name, item in self._parameters.items()}

    @torch.no_grad()
    def update(self):
        """Take in the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.average.values()), [item.detach() for item in self._parameters.values()], 1 - decay
        )

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict):
        self.updates = state["updates"]
        for name, average in self.average.items():
            average.copy_(state["average"][name])
