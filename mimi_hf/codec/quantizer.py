"""Split residual vector quantization (SoundStream, arXiv:2107.03312, section III-C; arXiv:2410.00037, section 3.3.3).

The first codebooks quantize one projection of the latents, and are distilled to carry meaning. The others quantize
another projection, each the residual of those before it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_codes, check_num_quantizers
from .codebook import EPSILON as EPSILON
from .codebook import Codebook, nearest_entries, search_offsets
from .codebook_learning import (
    Quantized,
    QuantizerTraining,
    draw,
    initialize_codebooks,
    is_recomputing,
    quantize_levels,
)
from .graphs import is_captured
from .matmul import call_convolution, is_plain, sum_of_products

if TYPE_CHECKING:
    from mimi_hf.configuration_mimi import MimiConfig


class VectorQuantization(nn.Module):
    """One level of the residual quantizer; only a name in the checkpoints."""

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.codebook = Codebook(codebook_size, codebook_dim)

    def encode(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: Tensor, shape = (B, codebook_dim, F) -> Tensor, shape = (B, F), int64."""
        return self.codebook.encode(hidden_states.transpose(1, 2))

    def decode(self, embed_ind: Tensor) -> Tensor:
        """embed_ind: Tensor, shape = (B, F), integers -> Tensor, shape = (B, codebook_dim, F)."""
        return self.codebook.decode(embed_ind).transpose(1, 2)


class ResidualVectorQuantizer(nn.Module):
    """`num_quantizers` codebooks, each quantizing the residual of those before, between two projections."""

    def __init__(self, config: "MimiConfig", num_quantizers: int) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.codebook_size = config.codebook_size
        width, inner = config.hidden_size, config.vector_quantization_hidden_dimension
        self.layers = nn.ModuleList(
            [VectorQuantization(config.codebook_size, config.codebook_dim) for _ in range(num_quantizers)]
        )
        self.input_proj = nn.Conv1d(width, inner, 1, bias=False) if inner != width else None
        self.output_proj = nn.Conv1d(inner, width, 1, bias=False) if inner != width else None
        self._tables: tuple[list, Tensor, Tensor] | None = None

    @property
    def codebooks(self) -> list[Codebook]:
        """Those of the layers, in their order."""
        return [cast(VectorQuantization, layer).codebook for layer in self.layers]

    def train(self, mode: bool = True) -> "ResidualVectorQuantizer":
        self._tables = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tables": None}

    def _apply(self, fn: Any, recurse: bool = True) -> "ResidualVectorQuantizer":
        self._tables = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._tables = None
        super()._load_from_state_dict(*arguments)

    def tables(self) -> tuple[Tensor, Tensor]:
        """The codebooks ready for use, derived from the buffers whenever these have changed.

        Changes through `.data`, which torch does not count, are seen in training mode, and by a call of `train` or
        `eval`. An exported graph keeps the codebooks of its making, a compiled one those of the last [`prepare`] or
        `load_state_dict`.

        Returns:
            Tensor, shape = (num_quantizers, V, codebook_dim), and -|c|²/2 of each entry, shape = (num_quantizers, V).
        """
        codebooks = self.codebooks
        if is_captured():
            if self._tables is not None and not self.training:
                return self._tables[1:]
            entries = torch.stack([codebook.embed for codebook in codebooks])
            return entries, search_offsets(entries)
        buffers = [buffer for codebook in codebooks for buffer in (codebook.embed_sum, codebook.cluster_usage)]
        # The buffers themselves are kept: one that is alive cannot lend its identity to a new one.
        key = [(buffer, 0 if buffer.is_inference() else buffer._version) for buffer in buffers]
        if self.training or self._tables is None or not _same(self._tables[0], key):
            with torch.inference_mode(False), torch.no_grad():
                entries = torch.stack([codebook.embed for codebook in codebooks])
                self._tables = (key, entries, search_offsets(entries))
        return self._tables[1:]

    def search(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """Nearest entries, found in single precision.

        Args:
            latents: Tensor, shape = (B, F, D).

        Returns:
            Tensor, shape = (B, num_quantizers, F), int64.
        """
        with torch.autocast(latents.device.type, enabled=False):
            residual = _project(self.input_proj, latents).float()  # (B, F, codebook_dim)
            codes = []
            for entries, offsets in zip(*(table[:num_quantizers] for table in self.tables()), strict=True):
                code = nearest_entries(residual, entries, offsets)
                residual = residual - F.embedding(code, entries)
                codes.append(code)
            return torch.stack(codes, dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The sums of the entries that the codes name: all codebooks in one lookup.

        Args:
            codes: Tensor, shape = (B, K, F), integers, K up to `num_quantizers`.

        Returns:
            Tensor, shape = (B, F, D), in single precision where there is no projection.
        """
        batch, levels, frames = codes.shape
        entries, _ = self.tables()
        offsets = self.codebook_size * torch.arange(levels, device=codes.device)
        rows = (codes + offsets[:, None]).transpose(1, 2).reshape(batch * frames, levels)
        sums = F.embedding_bag(rows, entries.flatten(0, 1), mode="sum").view(batch, frames, -1)
        return _project(self.output_proj, sums)

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        """[`search`] in transformers' native layout: Tensor, shape = (B, D, F) -> Tensor, shape = (K, B, F), int64."""
        count = check_num_quantizers(num_quantizers, 1, self.num_quantizers)
        return self.search(embeddings.transpose(1, 2), count).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """[`lookup`] in transformers' native layout: Tensor, shape = (B, K, F) -> Tensor, shape = (B, D, F)."""
        return self.lookup(check_codes(codes, self.codebook_size, 1, self.num_quantizers)).transpose(1, 2)


def _same(old_key: list, key: list) -> bool:
    return len(old_key) == len(key) and all(
        old[0] is new[0] and old[1] == new[1] for old, new in zip(old_key, key, strict=True)
    )


def _project(projection: nn.Conv1d | None, x: Tensor) -> Tensor:
    if projection is None:
        return x
    if not is_plain(projection):
        return call_convolution(projection, x.to(next(projection.parameters()).dtype))
    weight = projection.weight.squeeze(2)
    return sum_of_products([x.to(weight.dtype)], weight[None], None)


class SplitResidualVectorQuantizer(nn.Module):
    """A semantic and an acoustic residual quantizer of the same latents, their outputs summed."""

    def __init__(self, config: "MimiConfig") -> None:
        super().__init__()
        self.num_semantic_quantizers = config.num_semantic_quantizers
        self.max_num_quantizers = config.num_quantizers
        self.semantic_residual_vector_quantizer = ResidualVectorQuantizer(config, config.num_semantic_quantizers)
        self.acoustic_residual_vector_quantizer = ResidualVectorQuantizer(
            config, config.num_quantizers - config.num_semantic_quantizers
        )
        self.training_options = QuantizerTraining()

    def prepare(self) -> None:
        """Derive the codebooks where they have changed: a compiled graph takes them as they are."""
        for residual, _ in self.halves():
            residual.tables()

    def search(self, latents: Tensor, num_quantizers: int) -> Tensor:
        """latents: Tensor, shape = (B, F, D) -> Tensor, shape = (B, num_quantizers, F), int64."""
        semantic = self.num_semantic_quantizers
        codes = self.semantic_residual_vector_quantizer.search(latents, semantic)
        if num_quantizers > semantic:
            acoustic = self.acoustic_residual_vector_quantizer.search(latents, num_quantizers - semantic)
            codes = torch.cat([codes, acoustic], dim=1)
        return codes

    def lookup(self, codes: Tensor) -> Tensor:
        """codes: Tensor, shape = (B, K, F), integers -> Tensor, shape = (B, F, D)."""
        semantic = self.num_semantic_quantizers
        latents = self.semantic_residual_vector_quantizer.lookup(codes[:, :semantic])
        if codes.shape[1] > semantic:
            latents = latents + self.acoustic_residual_vector_quantizer.lookup(codes[:, semantic:])
        return latents

    # In training

    def halves(self) -> Iterator[tuple[ResidualVectorQuantizer, int]]:
        """Both residual quantizers, each with the number of codebooks before its own."""
        yield self.semantic_residual_vector_quantizer, 0
        yield self.acoustic_residual_vector_quantizer, self.num_semantic_quantizers

    @property
    def initialized(self) -> bool:
        """Whether the codebooks have been made."""
        return bool(self.semantic_residual_vector_quantizer.codebooks[0].initialized)

    def reset_codebooks(self) -> None:
        """Forget the codebooks.

        The next training step that they learn from, or [`initialize`], makes new ones by k-means.
        """
        for half, _ in self.halves():
            for codebook in half.codebooks:
                codebook.initialized.zero_()

    def initialize(self, latents: Tensor, batches: int = 1, mask: Tensor | None = None) -> None:
        """Make the codebooks from latents, by k-means.

        Args:
            latents: Tensor, shape = (B, F, D), of this process; all processes share theirs. More latents make better
                codebooks.
            batches: the number of training steps that they come from.
            mask: Tensor, shape = (B, F), bool, True for the frames to use. None means all.

        Raises:
            ValueError: where there are none.
        """
        iterations = self.training_options.kmeans_iterations
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            for half, _ in self.halves():
                vectors = _project(half.input_proj, latents).float()
                vectors = vectors.flatten(0, 1) if mask is None else vectors[mask]
                initialize_codebooks(half.codebooks, vectors, iterations, batches)

    def learns(self, encoder: Iterable[nn.Parameter] = ()) -> bool:
        """Whether [`quantize`] moves the codebooks now: see [`QuantizerTraining`].

        Args:
            encoder: the parameters of what makes the latents. They count where the quantizer has no parameters.
        """
        options = self.training_options
        if not (self.training and options.enabled and torch.is_grad_enabled()):
            return False
        if options.update is not None:
            return options.update
        return all(parameter.requires_grad for parameter in [*self.parameters()] or encoder)

    def quantize(self, latents: Tensor, mask: Tensor, num_quantizers: int, learns: bool | None = None) -> Quantized:
        """[`search`] and [`lookup`] in one for training: with gradients, while the codebooks learn.

        In evaluation mode (`model.quantizer.eval()`) they do not learn, and nothing is drawn.

        Args:
            latents: Tensor, shape = (B, F, D).
            mask: Tensor, shape = (B, F), bool, True for real frames.
            num_quantizers: the most codebooks that a sequence uses.
            learns: whether the codebooks learn from these latents. None asks [`learns`].

        Raises:
            RuntimeError: the codebooks would learn from the same latents again, in a recomputation for gradients.
        """
        learns = self.learns() if learns is None else learns
        if learns and is_recomputing():
            raise RuntimeError(
                "The quantizer runs in a backward pass, as activation checkpointing around it does: its codebooks would"
                " learn twice from a batch. Recompute layers of the encoder and the decoder alone"
                " (model.gradient_checkpointing_enable()), or set QuantizerTraining(update=False)."
            )
        options, fewest = replace(self.training_options, update=learns), self.num_semantic_quantizers
        if not self.training:
            options = replace(options, quantizer_dropout=0.0, unquantized=0.0)
        # A latent that is not finite shows in the loss. In a codebook it would stay for good.
        mask = mask & latents.isfinite().all(dim=2)
        if learns and not self.initialized:
            self.initialize(latents, mask=mask)
        levels, raw = draw(options, len(latents), fewest, num_quantizers, latents.device)
        outputs, codes = [], []
        error, count = torch.zeros((), device=latents.device), torch.zeros((), device=latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            for half, before in self.halves():
                x = _project(half.input_proj, latents).float()
                if options.enabled:
                    codebooks = half.codebooks[: max(0, num_quantizers - before)]
                    y, code, half_error, half_count = quantize_levels(codebooks, x, levels - before, mask, options)
                    # An unquantized latent passes both projections too. It is the limit that ever finer codebooks
                    # approach, so that the decoder sees one space.
                    error, count = error + half_error, count + half_count
                    codes.append(code)
                    outputs.append((half, torch.where(raw[:, None, None], x, y), y))
                else:
                    outputs.append((half, x, x))
            semantic_part, acoustic_part = (_project(half.output_proj, mixed) for half, mixed, _ in outputs)
            latents = semantic_part + acoustic_part
            semantic = _project(outputs[0][0].output_proj, outputs[0][2])
        if not options.enabled:
            codes = [latents.new_zeros(len(latents), num_quantizers, latents.shape[1], dtype=torch.int64)]
            count, error = latents.new_ones(()), latents.new_zeros(())
        return Quantized(latents, semantic, torch.cat(codes, dim=1), error / count.clamp(min=1))

    def check_num_quantizers(self, num_quantizers: int | None) -> int:
        """The number of codebooks to use: all if None.

        Raises:
            TypeError, ValueError: if it is not an integer from `num_semantic_quantizers` to `num_quantizers`.
        """
        return check_num_quantizers(num_quantizers, self.num_semantic_quantizers, self.max_num_quantizers)

    def check_codes(self, codes: Tensor) -> Tensor:
        """The codes as int64.

        Raises:
            TypeError, ValueError: if they are not integers of shape (B, K, F), or out of range.
        """
        size = self.semantic_residual_vector_quantizer.codebook_size
        return check_codes(codes, size, self.num_semantic_quantizers, self.max_num_quantizers)

    def encode(self, latents: Tensor, num_quantizers: int | None = None) -> Tensor:
        """[`search`] in transformers' native layout: Tensor, shape = (B, D, F) -> Tensor, shape = (K, B, F), int64."""
        return self.search(latents.transpose(1, 2), self.check_num_quantizers(num_quantizers)).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """[`lookup`] in transformers' native layout: Tensor, shape = (B, K, F) -> Tensor, shape = (B, D, F)."""
        codes = self.check_codes(codes)
        return self.lookup(codes).transpose(1, 2)
