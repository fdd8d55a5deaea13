"""Losses of different scales, each given the share of the gradient that its weight says."""

import torch
import torch.distributed as dist
from torch import Tensor

from mimi_hf.utils.options import check_option


class GradientBalancer:
    """Balances the gradients of losses with respect to the audio that they judge (EnCodec, arXiv:2210.13438, section
    3.4).

    The gradient g_i of loss i becomes `total_norm * w_i / sum of w * g_i / n_i`, n_i a moving average of g_i's norm: a
    weight is the loss's share, whatever its scale. Norms are those of single rows, as each would be if the row were the
    whole batch, and the mean over rows: so the balance depends neither on the batch size nor on how rows are spread
    over processes, which all use the same averages.

    Args:
        weights: of each loss, positive. Only those of a step's losses count in it.
        decay: of the moving averages, per call.
        total_norm: of the gradient of a single row, where all losses pull one way.

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

    def __init__(self, weights: dict[str, float], decay: float = 0.999, total_norm: float = 1.0):
        for name, weight in weights.items():
            check_option(weight > 0, f"weights[{name!r}]", weight, "positive; leave out a loss that does not count")
        check_option(0 <= decay < 1, "decay", decay, "at least 0 and below 1")
        check_option(total_norm > 0, "total_norm", total_norm, "positive")
        self.weights, self.decay, self.total_norm = dict(weights), decay, total_norm
        # Moving averages, and how many norms each has seen.
        self._averages: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def backward(self, losses: dict[str, Tensor], output: Tensor, beside: Tensor | None = None) -> Tensor:
        """[`gradient`], sent on through `output` into what it was made of.

        Args:
            losses, output: as for [`gradient`].
            beside: the weighted sum of losses that are not balanced, as they do not go through `output`: the commitment
                loss, for example. It goes the same way, in the same pass.

        Returns:
            Tensor, of output's shape: the balanced gradient, `beside` not included.
        """
        gradient = self.gradient(losses, output)
        if beside is None:
            torch.autograd.backward([output], [gradient])
        else:
            torch.autograd.backward([output, beside], [gradient, torch.ones_like(beside)])
        return gradient

    def gradient(self, losses: dict[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient, and the averages brought up to date. The graph between losses and output is freed.

        Args:
            losses: scalars, by the names of their weights, each a mean over the batch.
            output: Tensor, shape = (B, ...), that they depend on.

        Returns:
            Tensor, of output's shape.

        Raises:
            ValueError: for a loss that has no weight, that does not depend on `output`, or if there is none.
        """
        gradients = self._gradients(losses, output)
        with torch.no_grad():
            norms = self._averaged({name: _row_norm(gradient) for name, gradient in gradients.items()})
            total = sum(self.weights[name] for name in losses)
            balanced = torch.zeros_like(output)
            for name, gradient in gradients.items():
                # Where a loss has had no gradient yet, it is 0 and stays so.
                scale = self.total_norm * self.weights[name] / total / norms[name].clamp(min=1e-20)
                balanced += scale.to(gradient.dtype) * gradient
        return balanced

    def _gradients(self, losses: dict[str, Tensor], output: Tensor) -> dict[str, Tensor]:
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
        return gradients

    def _averaged(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The moving averages of norms, these included."""
        stacked = torch.stack(list(norms.values()))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
        for name, norm in zip(norms, stacked, strict=True):
            self._counts[name] = self._counts.get(name, 0) + 1
            before = self._averages.get(name, norm).to(norm.device)
            # An average that begins at 0, corrected for that: the first norm alone, then as many as there were.
            share = (1 - self.decay) / (1 - self.decay ** self._counts[name])
            self._averages[name] = torch.lerp(before, norm, share)
        return {name: self._averages[name] for name in norms}

    def state_dict(self) -> dict:
        """What the next step depends on, as plain numbers."""
        averages = {name: float(average) for name, average in self._averages.items()}
        return {"averages": averages, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict):
        """Go on where [`state_dict`] was called."""
        self._averages = {name: torch.tensor(average) for name, average in state["averages"].items()}
        self._counts = dict(state["counts"])


def _row_norm(gradient: Tensor) -> Tensor:
    """Mean over rows of the norm of what each row would get alone: Tensor, shape = (B, ...) -> Tensor, shape = ()."""
    # A loss that is a mean over the batch gives each row a B-th of that.
    return gradient.float().flatten(1).norm(dim=1).sum()
