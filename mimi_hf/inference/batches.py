"""Many recordings through the model: sorted by length into batches, each filled up to a total of padded audio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

# Padded seconds of a batch. On a CPU a recording of a few seconds fills the cores by itself, and a batch of them is no
# faster; only shorter ones gain from a batch. A GPU wants a thousand rows for its products.
BATCH_SECONDS = {"cpu": 8.0, "cuda": 600.0}

Item = TypeVar("Item")


def default_batch_seconds(model: MimiModel) -> float:
    """Padded seconds of audio that make a good batch on the device of `model`."""
    return BATCH_SECONDS.get(model.device.type, BATCH_SECONDS["cuda"])


def check_batch_seconds(batch_seconds: float | None) -> None:
    """Check an option `batch_seconds`.

    Raises:
        ValueError: it is not positive. `None`, for the default of the device, is allowed.
    """
    if batch_seconds is not None and not batch_seconds > 0:
        raise ValueError(
            f"batch_seconds={batch_seconds!r} must be positive: the padded seconds of audio in a batch. Leave it out"
            " for what suits the device."
        )


def code_dtype(codebook_size: int) -> np.dtype:
    """The integers that store codes: uint16, enough for Mimi's 2048 entries, or uint32 above 65536 entries."""
    return np.dtype(np.uint16 if codebook_size <= 2**16 else np.uint32)


def group_in_order(
    items: Iterable[Item], size: Callable[[Item], float], limit: float, max_items: int | None = None
) -> Iterator[list[Item]]:
    """Cut a sequence into groups: each ends with the item that brings its total size to `limit`.

    Args:
        items: are taken as they are needed, one group at a time.
        size: of an item; infinity ends the group with this item.
        limit: the total size that ends a group.
        max_items: a group ends at this many items, whatever their sizes.

    Yields:
        list: the next items, in order; never empty.

    Example:
        >>> list(group_in_order([1, 1, 9, 2, 3], size=float, limit=4))
        [[1, 1, 9], [2, 3]]
    """
    group: list[Item] = []
    total = 0.0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit or len(group) == max_items:
            yield group
            group, total = [], 0.0
    if group:
        yield group


def cut_batches(lengths: Sequence[int], limit: float) -> list[list[int]]:
    """Sort items by length, the longest first, and cut them into batches.

    Args:
        lengths: of each item.
        limit: the total length of a batch, padding included; a longer item makes a batch of its own.

    Returns:
        Lists of indices into `lengths`. Deterministic: items of the same length stay in order.

    Example:
        >>> cut_batches([3, 9, 4, 30], limit=10)
        [[3], [1], [2, 0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def map_batches(
    function: Callable[[Tensor], Tensor],
    items: Sequence[np.ndarray],
    limit: float,
    output_length: Callable[[int], int],
) -> list[Tensor]:
    """Send arrays of different lengths through a function that takes padded batches.

    No mask is needed: the codec looks at the past alone, so padding at the end changes nothing before it, and what the
    padding itself becomes is cut off.

    Args:
        function: Tensor, shape = (B, C, T) -> Tensor, shape = (B, D, S). It moves the batch to its device.
        items: arrays of shape (C, T), with the same C and dtype; the codec pads them with zeros as well.
        limit: the total T of a batch, padding included.
        output_length: the S that belongs to a T.

    Returns:
        For each item its tensor of shape (D, S), on the CPU, computed without gradients.
    """
    lengths = [item.shape[-1] for item in items]
    results: list[Tensor] = [torch.empty(0)] * len(items)
    for batch in cut_batches(lengths, limit):
        rows = torch.from_numpy(np.ascontiguousarray(items[batch[0]]))[None]  # alone it may be long: it is not copied
        if len(batch) > 1:
            rows = rows.new_zeros(len(batch), *rows.shape[1:])
            for row, index in enumerate(batch):
                rows[row, :, : lengths[index]] = torch.from_numpy(items[index])
        with torch.no_grad():
            outputs = function(rows).cpu()
        for row, index in enumerate(batch):
            results[index] = outputs[row, :, : output_length(lengths[index])].clone()  # not a view of the whole batch
    return results


def encode_batches(
    model: MimiModel,
    audio: Sequence[np.ndarray],
    encode: Callable[[Tensor], Tensor],
    batch_seconds: float | None = None,
) -> list[Tensor]:
    """Encode recordings of any lengths with a function of a batch, such as one that gives latents.

    Args:
        model: a [`MimiModel`].
        audio: arrays of shape (C, N), float32, at the model's rate.
        encode: Tensor, shape = (B, C, N) -> Tensor, shape = (B, K or D, F), both on the model's device.
        batch_seconds: padded audio in a batch; by default what suits the device.

    Returns:
        For each recording its tensor of shape (K or D, F), on the CPU. It does not depend on the other recordings.
    """
    config = model.config
    limit = (batch_seconds or default_batch_seconds(model)) * config.sampling_rate
    return map_batches(
        lambda batch: encode(batch.to(model.device)), audio, limit, lambda samples: -(-samples // config.frame_size)
    )


def encode_all(
    model: MimiModel,
    audio: Sequence[np.ndarray],
    num_quantizers: int | None = None,
    batch_seconds: float | None = None,
) -> list[np.ndarray]:
    """Encode recordings of any lengths into codes.

    Args:
        model: a [`MimiModel`].
        audio: arrays of shape (C, N), float, at the model's rate.
        num_quantizers: codebooks to use; all by default.
        batch_seconds: padded audio in a batch; by default what suits the device.

    Returns:
        For each recording its codes: np.ndarray of shape (K, F), uint16 (uint32 where V > 65536). They do not depend
        on the other recordings.

    Raises:
        ValueError, TypeError: as [`MimiModel.encode`], for audio that is empty or not finite.
    """

    def encode(batch: Tensor) -> Tensor:
        return model.encode(batch, num_quantizers=num_quantizers, use_streaming=False, return_dict=False)[0]

    dtype = code_dtype(model.config.codebook_size)
    encoded = encode_batches(model, [np.asarray(item, np.float32) for item in audio], encode, batch_seconds)
    return [codes.numpy().astype(dtype) for codes in encoded]


def decode_all(
    model: MimiModel,
    codes: Sequence[np.ndarray],
    num_quantizers: int | None = None,
    batch_seconds: float | None = None,
) -> list[np.ndarray]:
    """Decode codes of any lengths and numbers of codebooks, the counterpart of [`encode_all`].

    Args:
        model: a [`MimiModel`].
        codes: arrays of shape (K, F), integers. Those with the same K share batches.
        num_quantizers: codebooks to use of those that an array has; all by default.
        batch_seconds: as for [`encode_all`].

    Returns:
        For each its audio: np.ndarray of shape (C, F * frame_size), float32.

    Raises:
        ValueError, TypeError: as [`MimiModel.decode`], for codes of another shape, type or range.
    """
    config = model.config
    limit = (batch_seconds or default_batch_seconds(model)) * config.frame_rate

    def decode(batch: Tensor) -> Tensor:
        batch = batch.to(model.device)
        return model.decode(batch, use_streaming=False, use_cache=False, return_dict=False)[0].float()

    decoded: list[np.ndarray] = [np.empty(0)] * len(codes)
    for count in sorted({len(item) for item in codes}):
        indices = [index for index, item in enumerate(codes) if len(item) == count]
        rows = [codes[index][:num_quantizers].astype(np.int64) for index in indices]
        audio = map_batches(decode, rows, limit, lambda frames: frames * config.frame_size)
        for index, recording in zip(indices, audio, strict=True):
            decoded[index] = recording.numpy()
    return decoded
