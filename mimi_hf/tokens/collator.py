"""Codes as speech language models take them: padded to a batch, delayed by codebook, flattened in the order of time.

Letters for shapes: B batch, K codebooks, F frames, V codebook size. Every function here has its inverse beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mimi_hf.utils.arrays import to_numpy

IGNORED = -100  # label of what the loss leaves out, as everywhere in transformers


def apply_delay(codes: Tensor, delay: Sequence[int], fill: int) -> Tensor:
    """Shift each codebook in time, as MusicGen (`range(K)`) and Moshi (`[0, 1, 1, …]`) do.

    Args:
        codes: Tensor, shape = (…, K, F).
        delay: frames by which each of the K codebooks comes later, not negative.
        fill: what stands where a codebook has not begun, or has ended.

    Returns:
        Tensor, shape = (…, K, F + max(delay)).

    Example:

        >>> apply_delay(torch.tensor([[1, 2, 3], [4, 5, 6]]), delay=[0, 1], fill=9)
        tensor([[1, 2, 3, 9],
                [9, 4, 5, 6]])
    """
    delay = _check_delay(delay, codes.shape[-2])
    frames = codes.shape[-1]
    delayed = codes.new_full((*codes.shape[:-1], frames + max(delay)), fill)
    for codebook, shift in enumerate(delay):
        delayed[..., codebook, shift : shift + frames] = codes[..., codebook, :]
    return delayed


def undo_delay(codes: Tensor, delay: Sequence[int]) -> Tensor:
    """The inverse of [`apply_delay`]; of a sequence that is still being generated, the frames that are whole.

    Args:
        codes: Tensor, shape = (…, K, F).
        delay: as for [`apply_delay`].

    Returns:
        Tensor, shape = (…, K, F - max(delay)), or without frames where there are fewer.
    """
    delay = _check_delay(delay, codes.shape[-2])
    frames = max(0, codes.shape[-1] - max(delay))
    return torch.stack([codes[..., k, shift : shift + frames] for k, shift in enumerate(delay)], dim=-2)


def flatten_codes(codes: Tensor, offset: int = 0) -> Tensor:
    """One sequence, frame by frame, each with its K codes.

    Args:
        codes: Tensor, shape = (…, K, F).
        offset: k * offset is added to codebook k; V makes the ids of all codebooks disjoint.

    Returns:
        Tensor, shape = (…, F * K).

    Example:

        >>> flatten_codes(torch.tensor([[1, 2, 3], [4, 5, 6]]), offset=10)
        tensor([ 1, 14,  2, 15,  3, 16])
    """
    return (codes + _offsets(codes, offset)).transpose(-1, -2).flatten(-2)


def unflatten_codes(ids: Tensor, num_quantizers: int, offset: int = 0) -> Tensor:
    """The inverse of [`flatten_codes`].

    Args:
        ids: Tensor, shape = (…, F * K).
        num_quantizers: K.
        offset: as for [`flatten_codes`].

    Returns:
        Tensor, shape = (…, K, F).

    Raises:
        ValueError: the sequence is not made of whole frames.
    """
    if ids.shape[-1] % num_quantizers:
        raise ValueError(
            f"A sequence of {ids.shape[-1]} ids is not made of whole frames of {num_quantizers} codes. Cut it to"
            f" {ids.shape[-1] // num_quantizers * num_quantizers}."
        )
    codes = ids.unflatten(-1, (ids.shape[-1] // num_quantizers, num_quantizers)).transpose(-1, -2)
    return codes - _offsets(codes, offset)


@dataclass(frozen=True)
class AudioCodesCollator:
    """Makes batches of the codes of a data set, as `collate_fn` of a `DataLoader` or `data_collator` of a `Trainer`.

    A batch is a dictionary of

    - `audio_codes`: Tensor, shape = (B, K, F), int64, padded on the right with `pad_id`; or, with `flatten`,
      `input_ids`: Tensor, shape = (B, F * K);
    - `attention_mask`: Tensor, shape = (B, F), or (B, F * K), int64: 1 where the example is, its delays included;
    - `labels`, on request: a copy with -100 wherever there is no code. Models of transformers shift them themselves.

    F is the longest example, and the largest delay more. [`restore`] gives back the codes of each example.

    Args:
        codes_column: where an example has its codes, (K, F): lists, an array or a tensor.
        codebook_size: V.
        num_quantizers: codebooks to use, the first ones; all by default.
        delay: frames by which each codebook comes later: a list; or a number for all but the first, as Moshi has it.
        flatten: one sequence in the order of time, frame by frame.
        offset: with `flatten`, give codebook k the ids from k * V, so that those of all are disjoint.
        pad_id: what stands where there is no code; by default the first id that no code has: V, or K * V with `offset`.
        labels: add `labels`.

    Raises:
        ValueError: for arguments that contradict each other.

    Example:

        >>> examples = [{"audio_codes": [[1, 2], [3, 4]]}, {"audio_codes": [[5], [6]]}]
        >>> batch = AudioCodesCollator(codebook_size=8, delay=1)(examples)
        >>> batch["audio_codes"].tolist()
        [[[1, 2, 8], [8, 3, 4]], [[5, 8, 8], [8, 6, 8]]]
        >>> batch["attention_mask"].tolist()
        [[1, 1, 1], [1, 1, 0]]
    """

    codes_column: str = "audio_codes"
    codebook_size: int = 2048
    num_quantizers: int | None = None
    delay: int | Sequence[int] | None = None
    flatten: bool = False
    offset: bool = False
    pad_id: int | None = None
    labels: bool = False

    def __post_init__(self):
        if self.offset and not self.flatten:
            raise ValueError(
                "offset=True needs flatten=True: codebooks that lie apart have their own ids. Leave it out."
            )
        if self.num_quantizers is not None and self.num_quantizers < 1:
            raise ValueError(f"num_quantizers={self.num_quantizers!r} must be at least 1, or None for all.")
        if isinstance(self.delay, Iterable):
            object.__setattr__(self, "delay", _check_delay(self.delay, len(list(self.delay))))
        elif self.delay is not None:
            _check_delay([self.delay], 1)

    def __call__(self, examples: Sequence[Mapping]) -> dict[str, Tensor]:
        """The batch of some examples.

        Raises:
            ValueError, TypeError: for codes that are none, or of different numbers of codebooks, naming the example.
        """
        rows = [self._read(index, example) for index, example in enumerate(examples)]
        if not rows:
            raise ValueError("There are no examples, but a batch needs at least one.")
        quantizers = {len(row) for row in rows}
        if len(quantizers) > 1:
            raise ValueError(
                f"The examples have {', '.join(map(str, sorted(quantizers)))} codebooks, but a batch needs one number."
                f" Give num_quantizers={min(quantizers)}."
            )
        count = quantizers.pop()
        delay, pad_id = self._delay_of(count), self._pad_id_of(count)
        lengths = torch.tensor([row.shape[1] for row in rows])
        codes = torch.full((len(rows), count, int(lengths.max())), -1)
        for row, into in zip(rows, codes, strict=True):
            into[:, : row.shape[1]] = row
        codes = apply_delay(codes, delay, fill=-1)  # (B, K, F), -1 where there is no code
        # An example without frames has no delay either.
        ends = torch.where(lengths > 0, lengths + max(delay), 0)
        mask = (torch.arange(codes.shape[2]) < ends[:, None]).long()
        absent = codes < 0
        if self.flatten:
            codes, absent = flatten_codes(codes, self._offset), flatten_codes(absent.long()).bool()
            mask = mask.repeat_interleave(count, dim=1)
        batch = {
            "input_ids" if self.flatten else "audio_codes": codes.masked_fill(absent, pad_id),
            "attention_mask": mask,
        }
        if self.labels:
            batch["labels"] = codes.masked_fill(absent, IGNORED)
        return batch

    def restore(self, batch: Mapping[str, Tensor], num_quantizers: int | None = None) -> list[Tensor]:
        """The inverse: the codes of each example, for example to decode what was predicted.

        Args:
            batch: as made here.
            num_quantizers: K, which a flattened batch does not tell, where the collator was not told either.

        Returns:
            For each example Tensor, shape = (K, F), int64.

        Raises:
            ValueError: for a flattened batch of an unknown number of codebooks.
        """
        codes, mask = batch["input_ids" if self.flatten else "audio_codes"], batch["attention_mask"]
        if self.flatten:
            listed = len(self.delay) if isinstance(self.delay, list) else None
            num_quantizers = num_quantizers or self.num_quantizers or listed
            if num_quantizers is None:
                raise ValueError("A flattened batch does not tell how many codebooks it has. Give num_quantizers.")
            codes, mask = unflatten_codes(codes, num_quantizers, self._offset), mask[:, ::num_quantizers]
        delay = self._delay_of(codes.shape[1])
        return [undo_delay(row[:, : int(real.sum())], delay) for row, real in zip(codes, mask, strict=True)]

    @property
    def _offset(self) -> int:
        return self.codebook_size if self.offset else 0

    def _read(self, index: int, example: Mapping) -> Tensor:
        """The codes of an example: Tensor, shape = (K, F), int64."""
        if self.codes_column not in example:
            raise ValueError(
                f"Example {index} has no {self.codes_column!r}, but {', '.join(map(repr, example))}. Give codes_column;"
                " for a Trainer, remove_unused_columns=False."
            )
        value = example[self.codes_column]
        codes = to_numpy(value)
        if codes.ndim != 2 or not len(codes) or (codes.size and codes.dtype.kind not in "iu"):
            raise TypeError(
                f"The codes of example {index} are {codes.dtype} of shape {codes.shape}, but integers, (codebooks,"
                " frames), are needed."
            )
        codes = torch.from_numpy(codes.astype("int64"))
        low, high = (int(extreme) for extreme in codes.aminmax()) if codes.numel() else (0, 0)
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"The codes of example {index} are from {low} to {high}, but entries are 0 to {self.codebook_size - 1}."
                " Give codebook_size, or leave out padding."
            )
        if self.num_quantizers is not None and len(codes) < self.num_quantizers:
            raise ValueError(
                f"The codes of example {index} are of {len(codes)} codebooks, fewer than"
                f" num_quantizers={self.num_quantizers}."
            )
        return codes[: self.num_quantizers]

    def _delay_of(self, count: int) -> list[int]:
        """The delay of each of `count` codebooks."""
        if isinstance(self.delay, list):
            return _check_delay(self.delay, count)
        return [0] + [self.delay or 0] * (count - 1)

    def _pad_id_of(self, count: int) -> int:
        free = self.codebook_size * (count if self.offset else 1)
        if self.pad_id is None:
            return free
        if 0 <= self.pad_id < free:
            raise ValueError(f"pad_id={self.pad_id} is also a code: these are 0 to {free - 1}. Give {free}, or None.")
        return self.pad_id


def _check_delay(delay: Iterable[int], codebooks: int) -> list[int]:
    delay = list(delay)
    if any(isinstance(shift, bool) or not isinstance(shift, int) or shift < 0 for shift in delay):
        raise ValueError(f"delay={delay} must be made of whole numbers of frames, not negative.")
    if len(delay) != codebooks:
        raise ValueError(f"delay={delay} is of {len(delay)} codebooks, but there are {codebooks}. Give one for each.")
    return delay


def _offsets(codes: Tensor, offset: int) -> Tensor:
    """What is added to each codebook: Tensor, shape = (K, 1)."""
    return torch.arange(codes.shape[-2], device=codes.device)[:, None] * offset


__all__ = ["AudioCodesCollator", "apply_delay", "flatten_codes", "undo_delay", "unflatten_codes"]
