"""The interface of `rustymimi`: numpy in, numpy out, in steps or in background threads. Streams here never end."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mimi_hf.audio import write_audio
from mimi_hf.codec.streaming import DecoderStream, EncoderStream
from mimi_hf.modeling_mimi import MimiModel

from .moshi import get_mimi

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class _Loaded:
    """What both tokenizers are made with."""

    def __init__(
        self,
        path: str | Path,
        *,
        num_codebooks: int = 8,
        dtype: str = "f32",
        max_seq_len: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = _load(path, num_codebooks, dtype, device)
        self.num_codebooks = num_codebooks
        self._begin()

    def _begin(self) -> None:
        """Make the streams."""
        raise NotImplementedError


class Tokenizer(_Loaded):
    """Mimi with the interface of `rustymimi.Tokenizer`.

    Args:
        path: as for [`get_mimi`].
        num_codebooks: K, codebooks to encode with.
        dtype: "f32", "f16" or "bf16".
        max_seq_len: ignored. There a stream ends after that many steps, here it does not end.
        device: where to run.

    Raises:
        FileNotFoundError, OSError, ValueError: as [`get_mimi`]; or another dtype.

    Example:
        >>> import numpy as np
        >>> from mimi_hf.kyutai import Tokenizer
        >>> tokenizer = Tokenizer("mimi-tiny", num_codebooks=4)
        >>> codes = tokenizer.encode(np.zeros((1, 1, 4000), dtype=np.float32))
        >>> codes.shape, codes.dtype, tokenizer.decode(codes).shape
        ((1, 4, 3), dtype('uint32'), (1, 1, 5760))
    """

    def reset(self) -> None:
        """Begin both streams again. The next steps say how many rows they have."""
        self._begin()

    def _begin(self) -> None:
        self._encoder: EncoderStream | None = None
        self._decoder: DecoderStream | None = None

    def encode(self, pcm_data: ArrayLike) -> NDArray[np.uint32]:
        """Encode a whole recording. The streams of the steps do not notice.

        Args:
            pcm_data: (B, C, N), floating point, about -1 to 1.

        Returns:
            (B, K, F), uint32, the last frame padded with zeros.

        Raises:
            TypeError, ValueError: for audio of another type or shape, or that is not finite.
        """
        audio = _to_tensor(pcm_data, 3, np.floating)
        codes = self.model.encode(audio, num_quantizers=self.num_codebooks, use_streaming=False, return_dict=True)
        return _to_codes(codes.audio_codes)

    @torch.no_grad()
    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Decode all codes of a recording. The streams of the steps do not notice.

        Args:
            codes: (B, K, F), integers.

        Returns:
            (B, C, F * frame_size), float32.

        Raises:
            TypeError, ValueError: for codes of another type, shape or range.
        """
        audio = self.model.decode(_to_tensor(codes, 3, np.integer), use_streaming=False, return_dict=True)
        return _to_audio(audio.audio_values)

    def encode_step(self, pcm_data: ArrayLike) -> NDArray[np.uint32] | None:
        """Encode the next samples of a stream.

        Args:
            pcm_data: (B, C, n), floating point. B is that of the first step.

        Returns:
            (B, K, f), uint32, the frames that are whole now; None where there are none.

        Raises:
            TypeError, ValueError: as [`encode`], or for another B.
        """
        audio = _to_tensor(pcm_data, 3, np.floating)
        if self._encoder is None:
            self._encoder = self.model.encoder_stream(len(audio), self.num_codebooks)
        codes = self._encoder.push(audio)
        return _to_codes(codes) if codes.shape[2] else None

    def decode_step(self, codes: ArrayLike) -> NDArray[np.float32] | None:
        """Decode the next frames of a stream.

        Args:
            codes: (B, K, f), integers. B is that of the first step.

        Returns:
            (B, C, f * frame_size), float32; None where f is 0.

        Raises:
            TypeError, ValueError: as [`decode`], or for another B.
        """
        frames = _to_tensor(codes, 3, np.integer)
        if self._decoder is None:
            self._decoder = self.model.decoder_stream(len(frames))
        audio = self._decoder.push(frames)
        return _to_audio(audio) if audio.shape[2] else None


class StreamTokenizer(_Loaded):
    """Mimi with the interface of `rustymimi.StreamTokenizer`: one stream of each direction, each in its own thread.

    `encode` and `decode` return at once; poll `get_encoded` and `get_decoded` for what has been computed. What a call
    gives makes one result, in the order of the calls; a call that completes no frame makes none.

    Args:
        path, num_codebooks, dtype, max_seq_len, device: as for [`Tokenizer`].

    Raises:
        FileNotFoundError, OSError, ValueError: as [`Tokenizer`].

    Example:
        >>> import time
        >>> import numpy as np
        >>> from mimi_hf.kyutai import StreamTokenizer
        >>> tokenizer = StreamTokenizer("mimi-tiny")
        >>> tokenizer.encode(np.zeros(1920, dtype=np.float32))
        >>> while (codes := tokenizer.get_encoded()) is None:
        ...     time.sleep(0.001)
        >>> codes.shape
        (8, 1)
    """

    def _begin(self) -> None:
        self._encoder = _Worker(self.model.encoder_stream(1, self.num_codebooks).push)
        self._decoder = _Worker(self.model.decoder_stream(1).push)

    def encode(self, pcm_data: ArrayLike) -> None:
        """Hand over the next samples: (n,), floating point.

        Raises:
            TypeError, ValueError: for audio of another type or shape, or that is not finite.
        """
        audio = _to_tensor(pcm_data, 1, np.floating)
        if not torch.isfinite(audio).all():
            raise ValueError("pcm_data holds NaN or infinity. Encode finite audio, about -1 to 1.")
        self._encoder.put(audio[None, None])

    def get_encoded(self) -> NDArray[np.uint32] | None:
        """The next codes that are ready: (K, f), uint32; None where there are none yet.

        Raises:
            ValueError: the audio could not be encoded.
        """
        codes = self._encoder.get()
        return None if codes is None else _to_codes(codes[0])

    def decode(self, codes: ArrayLike) -> None:
        """Hand over the next frames: (f, K), integers, one frame a row.

        Raises:
            TypeError, ValueError: for codes of another type, shape or range.
        """
        frames = _to_tensor(codes, 2, np.integer)
        if frames.shape[1] != self.num_codebooks:
            raise ValueError(
                f"codes has shape {tuple(frames.shape)}, but a frame is a row of {self.num_codebooks} codes: shape"
                f" (frames, {self.num_codebooks}). Transpose it, or make the StreamTokenizer with its num_codebooks."
            )
        self._decoder.put(self.model.check_codes(frames.t()[None]))

    def get_decoded(self) -> NDArray[np.float32] | None:
        """The next audio that is ready: (f * frame_size,), float32; None where there is none yet.

        Raises:
            ValueError: the codes could not be decoded.
        """
        audio = self._decoder.get()
        return None if audio is None else _to_audio(audio[0, 0])


class _Worker:
    """A thread that applies a function to tensors, one after the other. It ends with this object."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.thread = ThreadPoolExecutor(1)
        self.results: deque[Future[Tensor]] = deque()

    def put(self, x: Tensor) -> None:
        self.results.append(self.thread.submit(self.function, x))

    def get(self) -> Tensor | None:
        """The next result that is there and holds something; it raises what the function raised."""
        while self.results and self.results[0].done():
            result = self.results.popleft().result()
            if result.numel():
                return result
        return None


def write_wav(filename: str | Path, data: ArrayLike, sample_rate: int) -> None:
    """Write mono audio as `rustymimi.write_wav` does: a WAV file of 16 bits.

    Args:
        filename: ends in `.wav`.
        data: (N,), floating point, clipped to [-1, 1].
        sample_rate: samples per second.

    Raises:
        TypeError, ValueError, OSError: as [`mimi_hf.audio.write_audio`].
    """
    write_audio(filename, np.asarray(data), sample_rate)


def _load(path: str | Path, num_codebooks: int, dtype: str, device: torch.device | str) -> MimiModel:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(_DTYPES)}.")
    return get_mimi(path, device=device, num_codebooks=num_codebooks).model.to(_DTYPES[dtype])


def _to_tensor(values: ArrayLike, dimensions: int, kind: type[np.generic]) -> Tensor:
    """A copy of an array of some dimensions, as float32 or int64."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, kind) or array.ndim != dimensions:
        wanted = f"{'floating point' if kind is np.floating else 'integers'} in {dimensions} dimensions"
        raise TypeError(
            f"The array is {array.dtype} of shape {array.shape}, but must be {wanted}. Convert or reshape it."
        )
    return torch.from_numpy(np.array(array, dtype=np.float32 if kind is np.floating else np.int64, order="C"))


def _to_codes(codes: Tensor) -> NDArray[Any]:
    return codes.cpu().numpy().astype(np.uint32)


def _to_audio(audio: Tensor) -> NDArray[Any]:
    return audio.float().cpu().numpy()


__all__ = ["StreamTokenizer", "Tokenizer", "write_wav"]
