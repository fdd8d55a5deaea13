"""Audio to `.mimi` and back, files and live pipes, in constant memory.

One function for each direction. If its output is a path, a file appears there whole or not at all. If it is a file
object, everything goes out at once, frame by frame as the input comes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mimi_hf.audio import PCM, AudioBlocks, AudioSource, write_blocks
from mimi_hf.audio.pcm import PCMWriter
from mimi_hf.bitstream import BitstreamError, BitstreamReader, BitstreamWriter, Header
from mimi_hf.codec.streaming import DecoderStream, EncoderStream
from mimi_hf.utils.files import BinaryReader, BinaryWriter, as_seekable, printable, written_beside

from .file_options import DecodeOptions, DecodeReport, EncodeOptions, EncodeReport
from .recordings import decode_codes, encode_blocks
from .span import Span

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

_PUSH_SECONDS = 20.0  # of a file at once
_LIVE_SECONDS = 1.0  # of a pipe at once, at most: audio that waits longer is as well coded together


def encode_file(
    model: MimiModel,
    source: AudioSource,
    output: str | os.PathLike | BinaryWriter,
    options: EncodeOptions | None = None,
    *,
    digest: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> EncodeReport:
    """Encode audio to .mimi.

    Args:
        model: a [`MimiModel`].
        source: a path, bytes, or a binary file object, as of [`mimi_hf.audio.blocks.AudioBlocks`].
        output: a path; or a binary file object, into which codes go as soon as there are any.
        options: how; the defaults of [`EncodeOptions`] if None.
        digest: `model.codebook_digest` where it is known already, as it takes a moment.
        progress: called with the share that is done, from 0 to 1, where the length is known.

    Raises:
        OSError, ValueError, TypeError: as [`AudioBlocks`]; for audio that is not finite, and options that do not fit.

    Example:
        >>> from mimi_hf.inference import EncodeOptions, encode_file
        >>> report = encode_file(model, "speech.flac", "speech.mimi", EncodeOptions(num_quantizers=8))  # doctest: +SKIP
    """
    begin, options, config = time.perf_counter(), options or EncodeOptions(), model.config
    live = not isinstance(output, (str, os.PathLike))
    if options.stereo and config.audio_channels != 1:
        raise ValueError(f"stereo=True splits channels for mono models; this one has {config.audio_channels} itself.")
    channels = None if options.stereo else config.audio_channels
    seconds = _LIVE_SECONDS if live else _PUSH_SECONDS
    with AudioBlocks(source, config.sampling_rate, channels, seconds, pcm=options.pcm) as blocks:
        streams = blocks.channels // config.audio_channels
        stream = model.encoder_stream(streams, options.num_quantizers)
        if live:
            frame = torch.zeros(streams, config.audio_channels, config.frame_size)
            _warm_up(model.encoder_stream(streams, options.num_quantizers), frame)
        header = _make_header(model, blocks, stream, options, source, digest or model.codebook_digest)
        with _binary_output(output) as file, BitstreamWriter(file, header) as writer:
            num_samples = 0
            for codes, num_samples in encode_blocks(stream, blocks, _name(source)):
                if codes.shape[2]:
                    writer.write(codes.cpu().numpy())
                    if live:
                        writer.flush()
                if progress is not None and blocks.duration:
                    progress(min(1.0, num_samples / (blocks.duration * blocks.sampling_rate)))
            writer.close(num_samples)
    if progress is not None:
        progress(1.0)
    duration = num_samples / config.sampling_rate
    size = None if live else Path(os.fsdecode(output)).stat().st_size
    bits = header.bits_per_second if size is None else 8 * size / duration
    shape = (writer.num_frames, streams, stream.num_quantizers)
    return EncodeReport(_name(source), _name(output), duration, *shape, size, bits, time.perf_counter() - begin)


def decode_file(
    model: MimiModel,
    source: str | os.PathLike | BinaryReader,
    output: str | os.PathLike | BinaryWriter,
    options: DecodeOptions | None = None,
    *,
    digest: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> DecodeReport:
    """Decode .mimi to audio, as long as what was encoded.

    A live stream does not know its end before it is there: into a file object, its last frame goes whole.

    Args:
        model: a [`MimiModel`] with the codebooks that the file was made with.
        source: a path, or a binary file object, which need not be seekable.
        output: a path that ends in .wav, .flac or .ogg; or a binary file object, into which WAV or raw samples go as
            soon as there are any.
        options: how; the defaults of [`DecodeOptions`] if None.
        digest, progress: as of [`encode_file`].

    Raises:
        BitstreamError: `source` is no .mimi file, or damaged.
        ValueError, OSError: for other codebooks, a part that is not there, or a file that cannot be written.

    Example:
        >>> from mimi_hf.inference import DecodeOptions, decode_file
        >>> report = decode_file(model, "speech.mimi", "part.wav", DecodeOptions(start=60))  # doctest: +SKIP
    """
    begin, options, config = time.perf_counter(), options or DecodeOptions(), model.config
    live, name = not isinstance(output, (str, os.PathLike)), _name(source)
    with _binary_input(source) as file:
        try:
            reader, seekable = BitstreamReader(file), as_seekable(file) is not None
            header = reader.header
            num_quantizers = _check_header(model, header, options, name, digest)
            span = Span.find(reader, options, config, seekable, name)
            channels = header.channels * config.audio_channels
            stream = model.decoder_stream(header.channels)
            if live:
                frame = torch.zeros(header.channels, num_quantizers, 1, dtype=torch.int64)
                _warm_up(model.decoder_stream(header.channels), frame)
            pieces = _read_pieces(reader, span.first_frame, seekable, live)
            decoded = decode_codes(stream, (codes[:, :num_quantizers] for codes in pieces))
            blocks = span.cut(decoded, header.frame_size)
            if not live and span.end is None:
                blocks = span.drop_padding(blocks, reader)
            with _audio_output(output, config.sampling_rate, channels, span.num_samples, options) as write:
                written = 0
                for audio in blocks:
                    write(audio)
                    written += audio.shape[1]
                    if progress is not None and span.num_samples is not None:
                        progress(min(1.0, written / max(1, span.num_samples)))
                if not written:
                    raise span.missing(name)
        except BitstreamError as error:
            raise BitstreamError(f"{name}: {error}") from error
    facts = (written / config.sampling_rate, channels, config.sampling_rate, num_quantizers)
    complete = reader.complete or span.complete or (span.partial and written == span.num_samples)
    return DecodeReport(name, _name(output), *facts, complete, time.perf_counter() - begin)


def _make_header(
    model: MimiModel,
    blocks: AudioBlocks,
    stream: EncoderStream,
    options: EncodeOptions,
    source: AudioSource,
    digest: str,
) -> Header:
    known: dict[str, object] = {"source_sampling_rate": blocks.source_rate, "source_channels": blocks.source_channels}
    if isinstance(source, (str, os.PathLike)):
        known["source"] = printable(Path(os.fsdecode(source)).name)
    if model.name_or_path and not os.path.exists(model.name_or_path):  # an id of the Hub; a path is nobody's business
        known["model"] = model.name_or_path
    config = model.config
    return Header(
        num_quantizers=stream.num_quantizers,
        codebook_size=config.codebook_size,
        sampling_rate=config.sampling_rate,
        frame_size=config.frame_size,
        channels=stream.batch_size,
        num_samples=blocks.num_samples,
        codebook_digest=digest,
        metadata={**known, **options.metadata},
        coding="entropy" if options.entropy else "packed",
    )


def _check_header(model: MimiModel, header: Header, options: DecodeOptions, name: str, digest: str | None) -> int:
    """The number of codebooks to decode. Refuses a file that the model cannot decode."""
    config = model.config
    for field_name in ("codebook_size", "sampling_rate", "frame_size"):
        theirs, ours = getattr(header, field_name), getattr(config, field_name)
        if theirs != ours:
            raise ValueError(f"{name} has {field_name}={theirs}, the model {ours}. Take the model that made the file.")
    if header.codebook_digest and not options.any_model:
        digest = digest or model.codebook_digest
        if header.codebook_digest != digest:
            by = f", {header.metadata['model']}," if isinstance(header.metadata.get("model"), str) else ""
            raise ValueError(
                f"{name} was made with other codebooks ({header.codebook_digest[:8]}…) than those of this model"
                f" ({digest[:8]}…): it would become noise. Take the model that made it{by} or pass any_model=True"
                " (--any-model)."
            )
    num_quantizers = header.num_quantizers if options.num_quantizers is None else options.num_quantizers
    if num_quantizers > header.num_quantizers:
        raise ValueError(f"num_quantizers={num_quantizers}, but {name} holds {header.num_quantizers}. Ask for fewer.")
    return model.check_num_quantizers(num_quantizers)


def _read_pieces(reader: BitstreamReader, first: int, seekable: bool, live: bool) -> Iterator[np.ndarray]:
    """Codes (C, K, f), f >= 1, from a frame on; in short pieces where each is to be heard at once."""
    if first and seekable:
        reader.seek(first)
        first = 0
    for codes in reader:
        skipped = min(first, codes.shape[2])
        first -= skipped
        most = max(1, int(_LIVE_SECONDS * reader.header.frame_rate)) if live else codes.shape[2]
        for start in range(skipped, codes.shape[2], most):
            yield codes[:, :, start : start + most]


@torch.no_grad()
def _warm_up(stream: EncoderStream | DecoderStream, frame: torch.Tensor) -> None:
    """Push a frame twice, so that the first one of a live stream is as fast as those that follow."""
    for _ in range(2):
        stream.push(frame)


@contextlib.contextmanager
def _binary_output(output: str | os.PathLike | BinaryWriter) -> Iterator[BinaryWriter]:
    """`output` itself where it is a file object, otherwise a file that takes the place of the path at the end."""
    if not isinstance(output, (str, os.PathLike)):
        yield output
        return
    with written_beside(_check_output(output)) as aside, open(aside, "wb") as file:
        yield file


@contextlib.contextmanager
def _audio_output(
    output: str | os.PathLike | BinaryWriter,
    sampling_rate: int,
    channels: int,
    num_samples: int | None,
    options: DecodeOptions,
) -> Iterator[Callable[[np.ndarray], None]]:
    """The function that takes the next block."""
    if not isinstance(output, (str, os.PathLike)):
        yield PCMWriter(output, PCM(sampling_rate, channels, options.sample_format), options.header).write
        return
    with write_blocks(_check_output(output), sampling_rate, channels, num_samples) as write:
        yield write


def _check_output(output: str | os.PathLike) -> Path:
    path = Path(os.fsdecode(output))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file to write.")
    return path


def _binary_input(source: str | os.PathLike | BinaryReader) -> contextlib.AbstractContextManager[BinaryReader]:
    if not isinstance(source, (str, os.PathLike)):
        return contextlib.nullcontext(source)
    path = Path(os.fsdecode(source))
    if not path.is_file() and not path.is_fifo():
        problem = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no file"
        raise FileNotFoundError(f"{path} {problem}; the path of a .mimi file is needed.")
    return open(path, "rb")


def _name(file: object) -> str:
    """What to call a source or an output."""
    return os.fsdecode(file) if isinstance(file, (str, os.PathLike)) else "-"
