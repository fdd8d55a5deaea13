"""The command `mimi-hf encode`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .folders import AUDIO
from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JobsOption,
    JsonOption,
    ModelOption,
    QuantizersOption,
    QuietOption,
    SampleFormatOption,
    check_dtype,
)
from .transcode import Transcoding

if TYPE_CHECKING:
    from mimi_hf.inference.mimi_files import EncodeReport


def encode(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="Audio of any rate: a file, a folder, or - (a pipe).", show_default=False),
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help=".mimi file, folder, or -.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: QuantizersOption = None,
    stereo: Annotated[
        bool,
        typer.Option(
            "--stereo", help="Keep the channels and code each by itself, which multiplies the bits. Default: mix them."
        ),
    ] = False,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Smaller files, coded more slowly; needs the extra entropy.")
    ] = False,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Text to store in the file; repeat for more.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="IN is samples without a header: see --rate, --channels, --sample-format.")
    ] = False,
    rate: Annotated[int | None, typer.Option(help="Sampling rate of raw audio.", min=1, show_default="24000")] = None,
    channels: Annotated[
        int | None, typer.Option(help="Channels of raw audio.", min=1, max=1024, show_default="1")
    ] = None,
    sample_format: SampleFormatOption = "s16le",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    jobs: JobsOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Compress audio to .mimi: 1.1 kbps with 8 codebooks.

        mimi-hf encode speech.wav speech.mimi -k 8

    A folder is mirrored, a.wav to a.wav.mimi. Files that exist are left
    alone, so the same command goes on where it was stopped. Files that
    cannot be read are reported at the end, and the others are done:

        mimi-hf encode recordings/ compressed/ -k 8 --jobs 4

    A pipe carries WAV or, with --raw, samples alone. Each frame of 80 ms
    is written as soon as it is complete (resampling adds 20 to 40 ms).
    A live call, on the sending and on the receiving side:

        arecord -f S16_LE -r 24000 -c 1 -t raw | mimi-hf encode --raw -k 8 - - | nc host 4000
        nc -l 4000 | mimi-hf decode --raw - - | aplay -f S16_LE -r 24000 -c 1 -t raw

    Ctrl-C ends a live recording and keeps what it has recorded:

        arecord -f S16_LE -r 24000 -t wav | mimi-hf encode -k 8 - talk.mimi

    Reports go to standard output, or to standard error if OUT is -.

    Exit status: 0 all is well; 1 something failed; 2 wrong usage; 130, 143,
    141: ended by Ctrl-C, SIGTERM, a closed pipe.
    """
    check_dtype(dtype)
    if not raw and (rate is not None or channels is not None or sample_format != "s16le"):
        raise typer.BadParameter("--rate, --channels and --sample-format describe raw audio: add --raw.")
    if raw and Path(source).is_dir():
        raise typer.BadParameter("--raw is for a pipe or one file, but IN is a folder.")

    from mimi_hf.audio import PCM
    from mimi_hf.inference import EncodeOptions, encode_file

    try:
        pcm = PCM(24_000 if rate is None else rate, channels or 1, sample_format) if raw else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    options = EncodeOptions(num_quantizers, stereo, entropy, _parse_metadata(metadata or ()), pcm)
    Transcoding(
        "encode",
        encode_file,
        options,
        extensions=AUDIO,
        extension=".mimi",
        describe=_describe,
        model=model,
        device=device,
        dtype=dtype,
        force=force,
        quiet=quiet,
        json=json,
    ).run(source, output, jobs)


def _parse_metadata(pairs: Iterable[str]) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair or pair.startswith("=")]
    if wrong:
        raise typer.BadParameter(f"--metadata {wrong[0]!r} must have the form KEY=VALUE.")
    return dict(pair.split("=", 1) for pair in pairs)


def _describe(report: "EncodeReport") -> str:
    size = "" if report.num_bytes is None else f"{report.num_bytes} bytes, "
    codes = f"{report.frames} frames of {report.channels * report.num_quantizers} codes"
    return (
        f"{report.output}: {report.duration:.2f} s in {codes}, {size}{report.bits_per_second / 1000:.2f} kbps,"
        f" {report.duration / report.seconds:.1f}x real time"
    )
