"""Many recordings through the model: in batches of much the same length, filled up to a total of padded audio."""

from collections.abc import Sequence

import numpy as np
import torch

# Padded seconds of a batch. On a CPU a recording of a few seconds fills the cores by itself, and a batch of such is no
# faster; only shorter ones gain from company. A GPU wants a thousand rows for its products.
BATCH_SECONDS = {"cpu": 8.0, "cuda": 600.0}


def default_batch_seconds(model) -> float:
    """Padded seconds of audio that make a good batch on the device of `model`."""
    return BATCH_SECONDS.get(model.device.type, BATCH_SECONDS["cuda"])


def check_batch_seconds(batch_seconds: float | None):
    if batch_seconds is not None and not batch_seconds > 0:
        raise ValueError(f"batch_seconds={batch_seconds} must be positive: the padded seconds of audio in a batch.")


def cut_batches(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Which items go together: sorted by length, the longest first, as many as fit.

    Args:
        lengths: of each item.
        most: a batch holds at most so much, padding included; an item that is longer goes alone.

    Returns:
        Lists of indices into `lengths`. Deterministic: items of one length stay in order.

    Example:

        >>> cut_batches([3, 9, 4, 30], most=10)
        [[3], [1], [2, 0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def code_dtype(codebook_size: int) -> np.dtype:
    """The integers that codes are stored as: uint16, which holds those of Mimi's 2048 entries, or uint32."""
    return np.dtype(np.uint16 if codebook_size <= 2**16 else np.uint32)


def encode_all(
    model, audio: Sequence[np.ndarray], num_quantizers: int | None = None, batch_seconds: float | None = None
) -> list[np.ndarray]:
    """Encode recordings of any lengths; what each becomes does not depend on the others.

    Args:
        model: a [`MimiModel`].
        audio: arrays of shape (audio_channels, N), float, at the model's rate.
        num_quantizers: codebooks to use; all by default.
        batch_seconds: padded audio in a batch; by default what suits the device.

    Returns:
        For each recording its codes: np.ndarray of shape (K, F), uint16 (uint32 where V > 65536).

    Raises:
        ValueError, TypeError: as [`MimiModel.encode`], for audio that is empty or not finite.
    """
    config = model.config
    most = (batch_seconds or default_batch_seconds(model)) * config.sampling_rate
    lengths = [recording.shape[-1] for recording in audio]
    encoded: list[np.ndarray] = [np.empty(0)] * len(audio)
    for batch in cut_batches(lengths, most):
        inputs = torch.zeros(len(batch), config.audio_channels, lengths[batch[0]])
        for row, index in enumerate(batch):
            inputs[row, :, : lengths[index]] = torch.as_tensor(audio[index])
        # No mask is needed: zeros after the last sample change no frame of a row, and what they make is cut off.
        output = model.encode(
            inputs.to(model.device), num_quantizers=num_quantizers, use_streaming=False, return_dict=True
        )
        rows = output.audio_codes.cpu().numpy().astype(code_dtype(config.codebook_size))
        for row, index in enumerate(batch):
            encoded[index] = rows[row, :, : -(-lengths[index] // config.frame_size)].copy()
    return encoded


def decode_all(model, codes: Sequence[np.ndarray], batch_seconds: float | None = None) -> list[np.ndarray]:
    """Decode codes of any lengths, the counterpart of [`encode_all`].

    Args:
        model: a [`MimiModel`].
        codes: arrays of shape (K, F), integers, with one K for all.
        batch_seconds: as for [`encode_all`].

    Returns:
        For each its audio: np.ndarray of shape (audio_channels, F * frame_size), float32.

    Raises:
        ValueError, TypeError: as [`MimiModel.decode`], for codes of another shape, type or range.
    """
    config = model.config
    most = (batch_seconds or default_batch_seconds(model)) * config.frame_rate
    lengths = [item.shape[-1] for item in codes]
    decoded: list[np.ndarray] = [np.empty(0)] * len(codes)
    for batch in cut_batches(lengths, most):
        inputs = torch.zeros(len(batch), codes[batch[0]].shape[0], lengths[batch[0]], dtype=torch.int64)
        for row, index in enumerate(batch):
            inputs[row, :, : lengths[index]] = torch.as_tensor(codes[index].astype(np.int64))
        with torch.no_grad():  # nor a mask here, where the past alone counts
            output = model.decode(inputs.to(model.device), use_streaming=False, use_cache=False, return_dict=True)
        rows = output.audio_values.float().cpu().numpy()
        for row, index in enumerate(batch):
            decoded[index] = rows[row, :, : lengths[index] * config.frame_size].copy()
    return decoded
