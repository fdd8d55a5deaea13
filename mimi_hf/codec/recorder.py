"""What users may ask to see of a pass through a transformer."""

from typing import NamedTuple

from torch import Tensor


class Recorder(NamedTuple):
    """Lists that a transformer fills while it takes a whole recording in one step; None for what nobody asked for.

    hidden_states: Tensors, each of shape (B, T, D): what the first layer took, and what each layer gave.
    attentions: Tensors, each of shape (B, H, T, T), the weights in each layer.
    """

    hidden_states: list[Tensor] | None
    attentions: list[Tensor] | None

    def outputs(self) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Both as tuples, as an output of transformers holds them."""
        return (
            None if self.hidden_states is None else tuple(self.hidden_states),
            None if self.attentions is None else tuple(self.attentions),
        )
