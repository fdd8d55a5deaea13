"""The command `mimi-hf decode`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_hf.audio.blocks import WRITABLE

from .options import (
    DEFAULT_MODEL,
    AnyModelOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JobsOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SampleFormatOption,
    check_dtype,
)
from .transcode import Transcoding

if TYPE_CHECKING:
    from mimi_hf.inference.mimi_files import DecodeReport


def decode(
    source: Annotated[
        str, typer.Argument(metavar="IN", help=".mimi file, a folder of them, or - (a pipe).", show_default=False)
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="File .wav, .flac or .ogg, a folder, or -.", show_default=False)
    ],
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: Annotated[
        int | None, typer.Option("--num-quantizers", "-k", help="Use only this many codebooks; all by default.", min=1)
    ] = None,
    start: Annotated[float, typer.Option(help="Second to begin at.", min=0)] = 0.0,
    duration: Annotated[float | None, typer.Option(help="Seconds to decode.", show_default="to the end")] = None,
    any_model: AnyModelOption = False,
    format_: Annotated[
        str, typer.Option("--format", help="Format of the files in a folder: wav, flac or ogg.")
    ] = "wav",
    raw: Annotated[bool, typer.Option("--raw", help="Write samples without a WAV header into a pipe.")] = False,
    sample_format: SampleFormatOption = "s16le",
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    jobs: JobsOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Decode .mimi to audio, exactly as long as what was encoded.

        mimi-hf decode speech.mimi speech.wav
        mimi-hf decode compressed/ audio/ --format flac

    In a folder, a.wav.mimi becomes a.wav.flac, and a.wav with --format wav.

    Decode a part, without reading what is before it. (Decoding begins some
    seconds earlier, as far as the model looks back. The difference from
    decoding everything is below the rounding of the samples.)

        mimi-hf decode talk.mimi quote.wav --start 3600 --duration 12

    From pipe to pipe, each frame is heard as soon as it arrives:

        nc -l 4000 | mimi-hf decode --raw - - | aplay -f S16_LE -r 24000 -c 1 -t raw
        mimi-hf decode talk.mimi - | aplay

    A file that was cut short is decoded up to its last whole block.

    Reports go to standard output, or to standard error if OUT is -.

    Exit status: 0 all is well; 1 something failed; 2 wrong usage; 130, 143,
    141: ended by Ctrl-C, SIGTERM, a closed pipe.
    """
    check_dtype(dtype)
    if (raw or sample_format != "s16le") and output != "-":
        raise typer.BadParameter("--raw and --sample-format are for a pipe: OUT must be -.")
    if f".{format_}" not in WRITABLE:
        raise typer.BadParameter(f"--format {format_} must be wav, flac or ogg.")
    to_file = output != "-" and not Path(source).is_dir() and not Path(output).is_dir()
    if to_file and Path(output).suffix.lower() not in WRITABLE:
        raise typer.BadParameter(f"OUT is {output!r}, but must end in one of {', '.join(WRITABLE)}, or be -.")

    from mimi_hf.inference import DecodeOptions, decode_file

    try:
        options = DecodeOptions(num_quantizers, start, duration, any_model, sample_format, not raw)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    Transcoding(
        "decode",
        decode_file,
        options,
        extensions={".mimi"},
        extension=f".{format_}",
        describe=_describe,
        model=model,
        device=device,
        dtype=dtype,
        force=force,
        quiet=quiet,
        json=json,
    ).run(source, output, jobs)


def _describe(report: "DecodeReport") -> str:
    cut = "" if report.complete else "; the source was cut short"
    return f"{report.output}: {report.duration:.2f} s, {report.duration / report.seconds:.1f}x real time{cut}"
