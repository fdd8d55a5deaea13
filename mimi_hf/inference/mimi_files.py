"""Audio to .mimi and back, files and live pipes, in constant memory.

One function for each direction: where its output is a path, a file appears there whole or not at all; where it is a
file object, everything goes out at once, frame by frame as the input comes.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mimi_hf.audio import PCM, AudioBlocks, write_blocks
from mimi_hf.audio.blocks import TOO_LONG
from mimi_hf.audio.pcm import PCMWriter
from mimi_hf.bitstream import BitstreamError, BitstreamReader, BitstreamWriter, Header
from mimi_hf.utils.files import printable, written_beside

_PUSH_SECONDS = 20.0  # of a file at once
_LIVE_SECONDS = 1.0  # of a pipe at once, at most: what waits longer is as well coded together
# Of frames decoded before the first one that is wanted, in windows of attention. One leaves errors 60 dB below the
# audio, two leave 100 dB, less than the rounding of 16-bit samples (a seeded model of the published size).
_CONTEXT_WINDOWS = 2
_CONTEXT_FRAMES = 8  # besides: what the convolutions reach back


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode.

    num_quantizers: K, codebooks to use; all where None.
    stereo: keep the channels, each a stream of its own; otherwise they are mixed.
    entropy: code the codes again, which is slower and smaller (extra `entropy`).
    metadata: a JSON object for the file, besides what is known about the source.
    pcm: what a source without a header is made of.
    """

    num_quantizers: int | None = None
    stereo: bool = False
    entropy: bool = False
    metadata: dict = field(default_factory=dict)
    pcm: PCM | None = None


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode.

    num_quantizers: K, the first codebooks of the file; all where None.
    start, duration: the part to decode, in seconds; what lies past the end is left out.
    any_model: decode with codebooks that are not those of the file, too.
    sample_format, header: of what goes into a pipe, see [`PCM`]; with a WAV header or without.
    """

    num_quantizers: int | None = None
    start: float = 0.0
    duration: float | None = None
    any_model: bool = False
    sample_format: str = "s16le"
    header: bool = True

    def __post_init__(self):
        PCM(sample_format=self.sample_format)  # refuses unknown ones
        for name, value, lowest in (("start", self.start, 0), ("duration", self.duration, 1e-9)):
            if value is not None and not lowest <= value < TOO_LONG:
                rule = "0 or more" if lowest == 0 else "more than 0"
                raise ValueError(f"{name}={value!r} must be seconds, {rule} and below {TOO_LONG:g}.")


@dataclass(frozen=True)
class EncodeReport:
    """What was encoded.

    source, output: names, "-" for a pipe.
    duration: seconds of audio.
    frames, channels, num_quantizers: F, streams of codes, and K of each.
    num_bytes, bits_per_second: size of the file, all in all; of the codes alone for a pipe.
    seconds: that it took.
    """

    source: str
    output: str
    duration: float
    frames: int
    channels: int
    num_quantizers: int
    num_bytes: int | None
    bits_per_second: float
    seconds: float


@dataclass(frozen=True)
class DecodeReport:
    """What was decoded.

    source, output: names, "-" for a pipe.
    duration: seconds of audio written.
    channels, sampling_rate: of the audio.
    num_quantizers: K that were used.
    complete: False where the source was cut short, and the audio ends with its last whole block.
    seconds: that it took.
    """

    source: str
    output: str
    duration: float
    channels: int
    sampling_rate: int
    num_quantizers: int
    complete: bool
    seconds: float


def encode_file(
    model,
    source,
    output,
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
        options: how; the defaults of [`EncodeOptions`] where None.
        digest: `model.codebook_digest` where it is known already, as it takes a moment.
        progress: called with the part done, from 0 to 1, where the length is known.

    Raises:
        OSError, ValueError, TypeError: as [`AudioBlocks`]; for audio that is not finite, and options that do not fit.

    Example:

        >>> from mimi_hf.inference.mimi_files import EncodeOptions, encode_file
        >>> report = encode_file(model, "speech.flac", "speech.mimi", EncodeOptions(num_quantizers=8))  # doctest: +SKIP
    """
    begin, options, config = time.perf_counter(), options or EncodeOptions(), model.config
    live = hasattr(output, "write")
    if options.stereo and config.audio_channels != 1:
        raise ValueError(f"stereo=True splits channels for mono models; this one has {config.audio_channels} itself.")
    channels = None if options.stereo else config.audio_channels
    seconds = _LIVE_SECONDS if live else _PUSH_SECONDS
    with AudioBlocks(source, config.sampling_rate, channels, seconds, pcm=options.pcm) as blocks:
        streams = blocks.channels // config.audio_channels
        stream = model.encoder_stream(streams, options.num_quantizers)
        if live:
            _warm_up(model.encoder_stream(streams, options.num_quantizers), (streams, config.audio_channels))
        header = _make_header(model, blocks, stream, options, source, digest or model.codebook_digest)
        with _binary_output(output) as file, BitstreamWriter(file, header) as writer:
            num_samples = 0
            for codes, num_samples in _encoded(stream, blocks, _name(source)):
                writer.write(codes.cpu().numpy())
                if live:
                    writer.flush()
                if progress is not None and blocks.duration:
                    progress(min(1.0, num_samples / (blocks.duration * blocks.sampling_rate)))
            writer.close(num_samples)
    if progress is not None:
        progress(1.0)
    duration = num_samples / config.sampling_rate
    size = None if live else os.path.getsize(output)
    bits = header.bits_per_second if size is None else 8 * size / duration
    shape = (writer.num_frames, streams, stream.num_quantizers)
    return EncodeReport(_name(source), _name(output), duration, *shape, size, bits, time.perf_counter() - begin)


def decode_file(
    model,
    source,
    output,
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
        options: how; the defaults of [`DecodeOptions`] where None.
        digest, progress: as of [`encode_file`].

    Raises:
        BitstreamError: `source` is no .mimi file, or damaged.
        ValueError, OSError: for other codebooks, a part that is not there, or a file that cannot be written.

    Example:

        >>> from mimi_hf.inference.mimi_files import DecodeOptions, decode_file
        >>> report = decode_file(model, "speech.mimi", "part.wav", DecodeOptions(start=60))  # doctest: +SKIP
    """
    begin, options, config = time.perf_counter(), options or DecodeOptions(), model.config
    live, name = hasattr(output, "write"), _name(source)
    with _binary_input(source) as file:
        try:
            reader, seekable = BitstreamReader(file), hasattr(file, "seekable") and file.seekable()
            header = reader.header
            num_quantizers = _check_header(model, header, options, name, digest)
            span = _Span.find(reader, options, config, seekable, name)
            channels = header.channels * config.audio_channels
            stream = model.decoder_stream(header.channels)
            if live:
                _warm_up(model.decoder_stream(header.channels), (header.channels, num_quantizers))
            with _audio_output(output, config.sampling_rate, channels, span, options) as write:
                written, pieces = 0, _from_frame(reader, span.first, seekable, live)
                for audio in _decoded(stream, pieces, num_quantizers, span, reader, not live and span.end is None):
                    write(audio)
                    written += audio.shape[1]
                    if progress is not None and span.end is not None:
                        progress(min(1.0, written / max(1, span.end - span.begin)))
                if not written:
                    raise span.missing(name)
        except BitstreamError as error:
            raise BitstreamError(f"{name}: {error}") from error
    facts = (written / config.sampling_rate, channels, config.sampling_rate, num_quantizers)
    complete = reader.complete or span.complete or (span.partial and written == span.end - span.begin)
    return DecodeReport(name, _name(output), *facts, complete, time.perf_counter() - begin)


def _make_header(model, blocks, stream, options, source, digest) -> Header:
    known = {"source_sampling_rate": blocks.source_rate, "source_channels": blocks.source_channels}
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


def _encoded(stream, blocks, name) -> Iterator[tuple[torch.Tensor, int]]:
    """Codes (C, K, f), f >= 1, as they become whole, and the samples that have come until then."""
    num_samples, rows = 0, (stream.batch_size, -1)
    for block in blocks:
        if not np.isfinite(block).all():
            where = num_samples / blocks.sampling_rate
            raise ValueError(f"{name} holds NaN or infinity, near {where:.2f} s. Repair it, or leave it out.")
        num_samples += block.shape[1]
        codes = stream.push(torch.from_numpy(block).reshape(*rows, block.shape[1]))
        if codes.shape[2]:
            yield codes, num_samples
    if not num_samples:
        raise ValueError(f"{name} is too short: nothing is left of it at {blocks.sampling_rate} Hz. Leave it out.")
    codes = stream.flush().audio_codes
    if codes.shape[2]:
        yield codes, num_samples


def _check_header(model, header: Header, options: DecodeOptions, name: str, digest: str | None) -> int:
    """How many codebooks to decode; refuses a file that the model cannot decode."""
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
    return model.quantizer.check_num_quantizers(num_quantizers)


@dataclass(frozen=True)
class _Span:
    """The part of a file that is decoded.

    begin, end: in samples; `end` is None where it is not known yet.
    first: the frame from which on there is enough context for `begin`.
    partial: whether it is to end before the file does.
    complete: whether the end mark of the file was seen.
    """

    begin: int
    end: int | None
    first: int
    partial: bool
    complete: bool

    @classmethod
    def find(cls, reader: BitstreamReader, options: DecodeOptions, config, seekable: bool, name: str) -> "_Span":
        header, complete = reader.header, False
        begin, total = round(options.start * header.sampling_rate), header.num_samples
        if seekable:
            facts = reader.scan()
            total, complete = facts.num_samples, facts.complete
            total = facts.num_frames * header.frame_size if total is None else total
        end, partial = total, options.duration is not None
        if partial:
            wanted = begin + max(1, round(options.duration * header.sampling_rate))
            partial = total is None or wanted <= total
            end = wanted if partial else total
        context = _CONTEXT_WINDOWS * config.sliding_window // config.latent_stride + _CONTEXT_FRAMES
        first = max(0, begin // header.frame_size - context)
        span = cls(begin, end, first, partial, complete)
        if total is not None and begin >= total:
            raise span.missing(name)
        return span

    def missing(self, name: str) -> ValueError:
        """The error where nothing lies in it."""
        if self.begin == 0:
            return ValueError(f"{name} is empty: it holds no whole block of codes. Leave it out.")
        return ValueError(f"The start lies past the end of {name}. Start earlier; mimi-hf info tells how long it is.")


def _decoded(stream, pieces, num_quantizers: int, span: _Span, reader, trims: bool) -> Iterator[np.ndarray]:
    """Audio (C, n), n >= 1, of the span. What `trims` is one piece late, so that the end mark may shorten the last."""
    frame_size, held, stop = reader.header.frame_size, None, span.first * reader.header.frame_size
    for codes in pieces:
        audio = stream.push(torch.from_numpy(codes[:, :num_quantizers].astype(np.int64)))
        start, stop = stop, stop + codes.shape[2] * frame_size
        end = None if span.end is None else max(0, span.end - start)
        audio = audio.float().flatten(0, 1).cpu().numpy()[:, max(0, span.begin - start) : end]
        if trims:
            held, audio = audio, held
        if audio is not None and audio.shape[1]:
            yield audio
        if span.partial and stop >= span.end:
            return
    if held is not None:
        surplus = 0 if reader.num_samples is None else stop - reader.num_samples
        held = held[:, : max(0, held.shape[1] - surplus)]
        if held.shape[1]:
            yield held


def _from_frame(reader: BitstreamReader, first: int, seekable: bool, live: bool) -> Iterator[np.ndarray]:
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
def _warm_up(stream, shape: tuple[int, int]):
    """Let the first frame of a live stream be as fast as those that follow: `shape` is (B, channels or codebooks)."""
    encodes = hasattr(stream, "flush")
    for _ in range(2):
        stream.push(torch.zeros(*shape, stream.model.config.frame_size) if encodes else torch.zeros(*shape, 1).long())


@contextlib.contextmanager
def _binary_output(output):
    """`output` itself where it is a file object, otherwise a file that takes the place of the path at the end."""
    if hasattr(output, "write"):
        yield output
        return
    with written_beside(_check_output(output)) as aside, open(aside, "wb") as file:
        yield file


@contextlib.contextmanager
def _audio_output(output, sampling_rate: int, channels: int, span: _Span, options: DecodeOptions):
    """The function that takes the next block."""
    if hasattr(output, "write"):
        yield PCMWriter(output, PCM(sampling_rate, channels, options.sample_format), options.header).write
        return
    num_samples = None if span.end is None else span.end - span.begin
    with write_blocks(_check_output(output), sampling_rate, channels, num_samples) as write:
        yield write


def _check_output(path) -> Path:
    path = Path(os.fsdecode(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    return path


def _binary_input(source):
    if hasattr(source, "read"):
        return contextlib.nullcontext(source)
    path = Path(os.fsdecode(source))
    if not path.is_file() and not path.is_fifo():
        problem = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no file"
        raise FileNotFoundError(f"{path} {problem}; the path of a .mimi file is needed.")
    return open(path, "rb")


def _name(file) -> str:
    """What to call a source or an output."""
    return os.fsdecode(file) if isinstance(file, (str, os.PathLike)) else "-"
