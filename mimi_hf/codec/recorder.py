"""What users may ask to see of a pass through a transformer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Recorder(NamedTuple):
    """Lists that a transformer fills while it takes a whole recording in one step; None for what nobody asked for.

    hidden_states: Tensors, each of shape (B, T, D): what the first layer took, and what each layer gave.
    attentions: Tensors, each of shape (B, H, T, T), the weights in each layer.
    """

    hidden_states: list[Tensor] | None
    attentions: list[Tensor] | None

    @classmethod
    def wanted(cls, codec: Any, hidden_states: bool | None, attentions: bool | None) -> Recorder | None:
        """The recorder of a call of `codec`, whose config has the defaults; None where nothing is asked for.

        Raises:
            ValueError: the codec can show neither.
        """
        hidden_states = getattr(codec.config, "output_hidden_states", False) if hidden_states is None else hidden_states
        attentions = getattr(codec.config, "output_attentions", False) if attentions is None else attentions
        if not hidden_states and not attentions:
            return None
        if not codec.records:
            raise ValueError(f"{type(codec).__name__} shows no hidden states or attentions. Ask MimiModel for them.")
        return cls([] if hidden_states else None, [] if attentions else None)


def outputs_of(recorder: Recorder | None) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """Hidden states and attentions as an output of transformers holds them."""
    hidden_states, attentions = (None, None) if recorder is None else recorder
    return (
        None if hidden_states is None else tuple(hidden_states),
        None if attentions is None else tuple(attentions),
    )
