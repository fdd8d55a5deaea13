"""One codebook: its buffers, and the search for the nearest of its entries."""

from typing import Any

import torch
from torch import Tensor, nn

from .matmul import sum_of_products

EPSILON = 1e-5


class Codebook(nn.Module):
    """The buffers of one codebook as the checkpoints store them: sums and counts of a moving average.

    They stay in single precision whatever the model is converted to: rounding them would change codes.
    """

    initialized: Tensor  # shape = (1,): has it been made?
    cluster_usage: Tensor  # shape = (V,): how often each entry is chosen
    embed_sum: Tensor  # shape = (V, codebook_dim)

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.ones(1, dtype=torch.float32))
        self.register_buffer("cluster_usage", torch.ones(codebook_size, dtype=torch.float32))
        self.register_buffer("embed_sum", torch.zeros(codebook_size, codebook_dim, dtype=torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> "Codebook":
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == torch.float32 else tensor.to(moved.device, torch.float32)

        return super()._apply(keep_precision, recurse)

    @property
    def embed(self) -> Tensor:
        """Tensor, shape = (V, codebook_dim): the entries."""
        return self.embed_sum.float() / self.cluster_usage.float().clamp(min=EPSILON)[:, None]

    # As transformers' own class has them

    def encode(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: Tensor, shape = (…, codebook_dim) -> Tensor, shape = (…), int64, the nearest entries."""
        entries = self.embed
        vectors = hidden_states.reshape(1, -1, entries.shape[1]).float()
        return nearest_entries(vectors, entries, search_offsets(entries)).view(hidden_states.shape[:-1])

    quantize = encode

    def decode(self, embed_ind: Tensor) -> Tensor:
        """embed_ind: Tensor, shape = (…), integers -> Tensor, shape = (…, codebook_dim), the entries."""
        return nn.functional.embedding(embed_ind, self.embed)


def search_offsets(entries: Tensor) -> Tensor:
    """-|c|²/2 of each entry, shape = (…, V), of entries, shape = (…, V, M): see [`nearest_entries`]."""
    return entries.square().sum(dim=-1) / -2


def nearest_entries(vectors: Tensor, entries: Tensor, offsets: Tensor) -> Tensor:
    """The nearest entry of each vector: argmin |x - c|² = argmax (x·c - |c|²/2), a single product.

    Args:
        vectors: Tensor, shape = (B, T, M), in single precision.
        entries: Tensor, shape = (V, M).
        offsets: Tensor, shape = (V,), their [`search_offsets`].

    Returns:
        Tensor, shape = (B, T), int64.
    """
    return sum_of_products([vectors], entries[None], offsets).argmax(dim=2)
