"""Balances losses of different scales: each gets the share of the gradient that its weight says."""

import torch
import torch.distributed as dist
from torch import Tensor

from mimi_hf.utils.option_checks import check_option


class GradientBalancer:
    """Balances the gradients of losses on the same audio (EnCodec, arXiv:2210.13438, section 3.4).

    The gradient g_i of loss i becomes `total_norm * w_i / sum of w * g_i / n_i`, where n_i is a moving average of the
    norm of g_i. So a weight is the loss's share, whatever its scale. The norm is the mean over rows of the norm that
    each row would have as a batch of its own. So the balance depends neither on the batch size nor on how rows are
    spread over processes. All processes use the same averages.

    Args:
        weights: of each loss, positive. A loss that is absent from a step does not count in it.
        decay: of the moving averages, per call.
        total_norm: norm of the balanced gradient of a single row, if all losses pull the same way.

    Raises:
        ValueError: for a weight, decay or norm out of range.

    Example:
        >>> import torch
        >>> from mimi_hf.training.objective.balancer import GradientBalancer
        >>> audio = torch.randn(2, 1, 100, requires_grad=True)
        >>> losses = {"near": audio.square().mean(), "small": 1e3 * audio.abs().mean()}
        >>> GradientBalancer({"near": 3.0, "small": 1.0}).backward(losses, audio).shape
        torch.Size([2, 1, 100])
    """

    def __init__(self, weights: dict[str, float], decay: float = 0.999, total_norm: float = 1.0) -> None:
        for name, weight in weights.items():
            check_option(weight > 0, f"weights[{name!r}]", weight, "positive; leave out a loss that does not count")
        check_option(0 <= decay < 1, "decay", decay, "at least 0 and below 1")
        check_option(total_norm > 0, "total_norm", total_norm, "positive")
        self.weights, self.decay, self.total_norm = dict(weights), decay, total_norm
        # Moving averages, and how many norms went into each.
        self._averages: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def backward(self, losses: dict[str, Tensor], output: Tensor, beside: Tensor | None = None) -> Tensor:
        """Balance the gradient, and propagate it from `output` to the model's parameters.

        Args:
            losses, output: as for [`gradient`].
            beside: the weighted sum of losses that are not balanced because they do not depend on `output`, such as the
                commitment loss. Their gradients are computed in the same pass.

        Returns:
            Tensor, of output's shape: the balanced gradient, without `beside`.
        """
        gradient = self.gradient(losses, output)
        if beside is None:
            torch.autograd.backward([output], [gradient])
        else:
            torch.autograd.backward([output, beside], [gradient, torch.ones_like(beside)])
        return gradient

    def gradient(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """Compute the balanced gradient, and update the averages. The graph between losses and output is freed.

        Args:
            losses: scalars by name, each a mean over the batch.
            output: Tensor, shape = (B, ...), that they depend on.

        Returns:
            Tensor, of output's shape.

        Raises:
            ValueError: for a loss that has no weight, that does not depend on `output`, or if there is none.
        """
        if not losses:
            raise ValueError("There is no loss to balance. Give one or more.")
        unknown = sorted(set(losses) - set(self.weights))
        if unknown:
            raise ValueError(f"The loss {unknown[0]!r} has no weight. There are weights for {', '.join(self.weights)}.")
        gradients = {}
        for index, (name, loss) in enumerate(losses.items()):
            more = index < len(losses) - 1
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=more, allow_unused=True)
            if gradient is None:
                raise ValueError(f"The loss {name!r} does not depend on the output. Add it beside the balancer.")
            gradients[name] = gradient
        with torch.no_grad():
            # A loss is a mean over the batch, so a row's gradient is a B-th of what it would be alone.
            norms = {name: gradient.float().flatten(1).norm(dim=1).sum() for name, gradient in gradients.items()}
            norms = self._update_averages(norms)
            total = sum(self.weights[name] for name in losses)
            balanced = torch.zeros_like(output)
            for name, gradient in gradients.items():
                # A loss without any gradient so far has norm 0.
                scale = self.total_norm * self.weights[name] / total / norms[name].clamp(min=1e-20)
                balanced += scale.to(gradient.dtype) * gradient
        return balanced

    def _update_averages(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take norms into the moving averages, and return these."""
        stacked = torch.stack(list(norms.values()))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
        for name, norm in zip(norms, stacked, strict=True):
            self._counts[name] = self._counts.get(name, 0) + 1
            before = self._averages.get(name, norm).to(norm.device)
            # The bias correction of an average that begins at 0: the first norm counts fully.
            share = (1 - self.decay) / (1 - self.decay ** self._counts[name])
            self._averages[name] = torch.lerp(before, norm, share)
        return {name: self._averages[name] for name in norms}

    def state_dict(self) -> dict:
        """Return the averages as plain numbers."""
        averages = {name: float(average) for name, average in self._averages.items()}
        return {"averages": averages, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict) -> None:
        """Restore what [`state_dict`] returned."""
        self._averages = {name: torch.tensor(average) for name, average in state["averages"].items()}
        self._counts = dict(state["counts"])
