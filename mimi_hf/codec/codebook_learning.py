"""How the codebooks of a residual quantizer learn: by moving averages of the latents that choose each entry.

Straight-through gradients and the commitment loss are those of VQ-VAE (arXiv:1711.00937, section 3.2), the moving
averages those of its appendix A.1, k-means initialisation and the replacement of dead entries those of SoundStream
(arXiv:2107.03312, section III-C); that some sequences stay unquantized is Mimi's (arXiv:2410.00037, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .codebook import Codebook, nearest_entries, search_offsets

_LEAST_USAGE = 1e-3  # of an entry


@dataclass(frozen=True)
class QuantizerTraining:
    """What the quantizer does in training mode. Its draws come from torch's global generator.

    decay: of the moving averages, per step.
    dead_threshold: an entry that is used less than this share of the average entry is replaced by a latent of the
        batch. 0 replaces none.
    kmeans_iterations: of the initialisation.
    quantizer_dropout: the share of sequences that use their first n codebooks alone, n evenly from the semantic ones
        to all.
    unquantized: the share of sequences whose latents the decoder gets unquantized.
    update: whether codebooks learn from a pass that records gradients. Where they do not, existing codes stay valid.
        None, the default, lets them learn where all parameters of the quantizer are trained, or, where it has no
        projections, all of the encoder. So they stay where these are frozen, as adapters of peft freeze them.
    enabled: where False, latents stay unquantized and codebooks do not change: the start of a new model.

    Raises:
        ValueError: for a value out of its range.
    """

    decay: float = 0.99
    dead_threshold: float = 0.1
    kmeans_iterations: int = 10
    quantizer_dropout: float = 0.5
    unquantized: float = 0.5
    update: bool | None = None
    enabled: bool = True

    def __post_init__(self) -> None:
        for name in ("decay", "dead_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and below 1.")
        for name in ("quantizer_dropout", "unquantized"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is a share, and must be from 0 to 1.")
        if not isinstance(self.kmeans_iterations, int) or self.kmeans_iterations < 1:
            raise ValueError(f"kmeans_iterations={self.kmeans_iterations!r} must be an integer of at least 1.")


class Quantized(NamedTuple):
    """The output of a quantizer in training mode.

    latents: Tensor, shape = (B, F, D), for the decoder.
    semantic: Tensor, shape = (B, F, D), the latents that the semantic codebooks alone give, all frames quantized.
    codes: Tensor, shape = (B, K, F), int64.
    commitment: Tensor, shape = (), the mean square of the residual behind each codebook.
    """

    latents: Tensor
    semantic: Tensor
    codes: Tensor
    commitment: Tensor


class Draws(NamedTuple):
    """What is drawn for each sequence. levels: Tensor, shape = (B,), codebooks in use. raw: Tensor, (B,), bool."""

    levels: Tensor
    raw: Tensor


def draw(options: QuantizerTraining, batch: int, fewest: int, most: int, device: torch.device) -> Draws:
    """Codebooks in use of each sequence, and whether it stays unquantized."""
    levels = torch.randint(fewest, most + 1, (batch,), device=device)
    dropped = torch.rand(batch, device=device) < options.quantizer_dropout
    raw = torch.rand(batch, device=device) < options.unquantized
    return Draws(torch.where(dropped, levels, most), raw)


def is_recomputing() -> bool:
    """Whether this is a part of a backward pass: activation checkpointing computes a forward pass again there."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def quantize_levels(
    codebooks: Sequence[Codebook], latents: Tensor, levels: Tensor, mask: Tensor, options: QuantizerTraining
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One residual quantizer, between its projections.

    Args:
        codebooks: [`Codebook`]s, of which the first `max(levels)` or all are used.
        latents: Tensor, shape = (B, F, codebook_dim), in single precision.
        levels: Tensor, shape = (B,), how many of the codebooks each sequence uses.
        mask: Tensor, shape = (B, F), bool, True for real frames: the others teach nothing.
        options: their `update` says whether the codebooks learn; None means no.

    Returns:
        The sum of the entries, shape of the latents, whose gradient is passed on to the latents where a codebook is
        used; the codes, shape (B, K, F); and the mean square errors, summed over frames and codebooks in use, with
        their number.
    """
    residual, total = latents, torch.zeros_like(latents)
    codes = torch.zeros(len(latents), len(codebooks), latents.shape[1], dtype=torch.int64, device=latents.device)
    error, count = latents.new_zeros(()), latents.new_zeros(())
    for level, codebook in enumerate(codebooks):
        entries = codebook.embed
        vectors = residual.detach()
        code = nearest_entries(vectors, entries, search_offsets(entries))
        chosen = F.embedding(code, entries)
        if options.update:
            update_codebook(codebook, vectors[mask], code[mask], options)
        used = (level < levels)[:, None] & mask  # (B, F)
        error = error + (residual - chosen).square().mean(dim=2).mul(used).sum()
        count = count + used.sum()
        total = total + chosen * (level < levels)[:, None, None]
        residual = residual - chosen
        codes[:, level] = code
    # Sequences that use no codebook here give zeros, and get no gradient.
    passed = torch.where((levels > 0)[:, None, None], latents + (total - latents).detach(), total)
    return passed, codes, error, count


@torch.no_grad()
def update_codebook(codebook: Codebook, vectors: Tensor, codes: Tensor, options: QuantizerTraining) -> None:
    """Move a codebook towards the vectors, shape = (n, codebook_dim), that chose its entries, of all processes."""
    size, width = codebook.embed_sum.shape
    moments = torch.zeros(size, 1 + width, device=vectors.device)
    moments.index_add_(0, codes, F.pad(vectors, (1, 0), value=1.0))
    if _many():
        dist.all_reduce(moments)
    counts, sums = moments[:, 0], moments[:, 1:]
    codebook.cluster_usage.lerp_(counts, 1 - options.decay)
    codebook.embed_sum.lerp_(sums, 1 - options.decay)
    # An entry that nothing chooses stays where it is: both averages stop falling before they vanish.
    raised = (_LEAST_USAGE / codebook.cluster_usage).clamp(min=1)
    codebook.cluster_usage.mul_(raised)
    codebook.embed_sum.mul_(raised[:, None])
    mean = codebook.cluster_usage.mean()
    dead = codebook.cluster_usage < options.dead_threshold * mean
    if dead.any() and len(candidates := _of_all(vectors)):
        fresh = _same_everywhere(_pick(candidates, size))
        codebook.cluster_usage.masked_fill_(dead, float(mean))
        codebook.embed_sum.copy_(torch.where(dead[:, None], fresh * mean, codebook.embed_sum))


@torch.no_grad()
def initialize_codebooks(codebooks: Sequence[Codebook], vectors: Tensor, iterations: int, batches: int) -> None:
    """Make codebooks by k-means, each from what its predecessors leave over of the vectors.

    Args:
        vectors: Tensor, shape = (n, codebook_dim), those of this process; they are gathered.
        batches: how many training steps give as many vectors: an entry's usage is what it has of them in one step.

    Raises:
        ValueError: where no process has any.
    """
    residual = _of_all(vectors)
    if not len(residual):
        raise ValueError("No latents to make codebooks from: all frames are padding, or not finite.")
    for codebook in codebooks:
        size = codebook.embed_sum.shape[0]
        centres, counts = kmeans(residual, size, iterations)
        usage = (counts / batches).clamp(min=_LEAST_USAGE)
        codebook.cluster_usage.copy_(_same_everywhere(usage))
        codebook.embed_sum.copy_(_same_everywhere(centres * usage[:, None]))
        codebook.initialized.fill_(1.0)
        entries = codebook.embed
        residual = residual - F.embedding(_nearest(residual, entries), entries)


def kmeans(vectors: Tensor, size: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random vectors; clusters that run empty begin anew.

    Args:
        vectors: Tensor, shape = (n, width). Where n is below `size`, they are repeated with a little noise.

    Returns:
        The centres, shape = (size, width), and how many vectors each has, shape = (size,), a part of one where they
        are repeated.
    """
    repeats = max(1, -(-size // len(vectors)))
    if repeats > 1:
        vectors = vectors.repeat(repeats, 1)
        vectors = vectors + 1e-3 * vectors.std().clamp(min=1e-6) * torch.randn_like(vectors)
    centres = vectors[torch.randperm(len(vectors), device=vectors.device)[:size]].clone()
    for _ in range(iterations):
        codes = _nearest(vectors, centres)
        counts = torch.bincount(codes, minlength=size).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        empty = (counts == 0)[:, None]
        centres = torch.where(empty, _pick(vectors, size), sums / counts.clamp(min=1)[:, None])
    counts = torch.bincount(_nearest(vectors, centres), minlength=size)
    return centres, counts.to(vectors.dtype) / repeats


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """[`nearest_entries`] of vectors, shape = (n, width), some thousand at a time."""
    offsets = search_offsets(entries)
    return torch.cat([nearest_entries(part[None], entries, offsets)[0] for part in vectors.split(4096)])


def _pick(vectors: Tensor, count: int) -> Tensor:
    """Vectors drawn at random."""
    return vectors[torch.randint(len(vectors), (count,), device=vectors.device)]


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all(vectors: Tensor) -> Tensor:
    """The vectors of all processes, in their order; each may have another number of them, or none."""
    if not _many():
        return vectors
    lengths = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=vectors.device)
    lengths[dist.get_rank()] = len(vectors)
    dist.all_reduce(lengths)
    padded = F.pad(vectors, (0, 0, 0, int(lengths.max()) - len(vectors)))
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)])


def _same_everywhere(tensor: Tensor) -> Tensor:
    """What the first process has."""
    if _many():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor
