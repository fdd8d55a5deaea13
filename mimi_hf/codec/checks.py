"""Checks of what a codec is given. Errors name the value, the rule and the remedy."""

import numbers
from typing import Any

import torch
from torch import Tensor

from .graphs import is_captured

_INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)


def check_audio(audio: Any, channels: int) -> None:
    """Raise unless `audio` is a float tensor of shape (B, channels, N).

    Raises:
        TypeError, ValueError: with what was found and what is needed.
    """
    expected = f"a float tensor of shape (batch, {channels}, samples)"
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        found = f"dtype {audio.dtype}" if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(f"The audio is of {found}, but Mimi takes {expected}. MimiFeatureExtractor makes one.")
    if audio.dim() != 3 or audio.shape[1] != channels:
        raise ValueError(
            f"The audio has shape {tuple(audio.shape)}, but this model takes {expected}. Add or mix dimensions, or"
            " let MimiFeatureExtractor do it."
        )


def check_latents(latents: Any, width: int) -> None:
    """Raise unless `latents` is a float tensor of shape (B, width, F), F at least 1.

    Raises:
        TypeError, ValueError: with what was found and what is needed.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise TypeError("latents must be a float tensor of shape (batch, hidden_size, frames).")
    if latents.dim() != 3 or latents.shape[1] != width or latents.shape[2] == 0:
        raise ValueError(f"latents of shape {tuple(latents.shape)} must have shape (batch, {width}, frames).")


def check_num_quantizers(num_quantizers: Any, fewest: int, most: int) -> int:
    """The number of codebooks to use; `most` if None.

    Raises:
        TypeError, ValueError: if it is not an integer from `fewest`, the semantic quantizers, to `most`.
    """
    if num_quantizers is None:
        return most
    is_number = issubclass(type(num_quantizers), numbers.Real) and not isinstance(num_quantizers, bool)
    if not is_number or num_quantizers % 1 != 0:
        raise TypeError(f"num_quantizers={num_quantizers!r} must be an integer.")
    if not fewest <= num_quantizers <= most:
        raise ValueError(
            f"num_quantizers={num_quantizers}, but this model encodes with {fewest} (its semantic quantizers alone) to"
            f" {most} of them. Choose a number in that range."
        )
    return int(num_quantizers)


def check_codes(codes: Any, codebook_size: int, fewest: int, most: int) -> Tensor:
    """The codes as int64.

    Args:
        codes: Tensor, shape = (B, K, F), integers from 0 to `codebook_size - 1`, K from `fewest` to `most`.

    Raises:
        TypeError, ValueError: if they are anything else.
    """
    expected = "an integer tensor of shape (batch, num_quantizers, frames)"
    if not isinstance(codes, Tensor) or codes.dtype not in _INTEGERS:
        found = f"dtype {codes.dtype}" if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"audio_codes is of {found}, but Mimi decodes {expected}. Pass the codes of `encode`.")
    if codes.dim() != 3 or 0 in (codes.shape[0], codes.shape[1]):
        raise ValueError(f"audio_codes has shape {tuple(codes.shape)}, but Mimi decodes {expected}.")
    check_num_quantizers(int(codes.shape[1]), fewest, most)
    codes = codes.long()
    if is_captured():  # the graph itself refuses them
        fit = (codes >= 0) & (codes < codebook_size)
        torch._assert_async(fit.all(), f"audio_codes are not all in 0 to {codebook_size - 1}.")
        return codes
    low, high = (int(extreme) for extreme in codes.aminmax()) if codes.numel() else (0, 0)
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"audio_codes holds values from {low} to {high}, but this model's codebooks have entries 0 to"
            f" {codebook_size - 1}. Remove padding and special tokens before decoding."
        )
    return codes
