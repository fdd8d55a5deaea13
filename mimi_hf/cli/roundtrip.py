"""The command `mimi-hf roundtrip`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mimi_hf.audio.blocks import WRITABLE

from .console import ending_cleanly, explaining, fail, print_json, showing_progress
from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuantizersOption,
    QuietOption,
    check_dtype,
    check_writable,
    load_model,
)


def roundtrip(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Audio file: wav, flac, ogg, mp3, … of any rate.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .wav, .flac or .ogg.", show_default=False)
    ],
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: QuantizersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Encode a recording, decode it again, and report bitrate and speed.

    Listen to what a number of codebooks does to a voice:

        mimi-hf roundtrip speech.wav back.wav --num-quantizers 8

    Exit status: 0 all is well; 1 it failed; 2 wrong usage; 130, 143: ended
    by Ctrl-C, SIGTERM, and OUT is as it was.
    """
    if output.suffix.lower() not in WRITABLE:
        raise typer.BadParameter(f"OUT is {output.name!r}, but must end in one of {', '.join(WRITABLE)}.")
    check_dtype(dtype)
    check_writable(output, force)
    if not source.is_file():
        raise fail(f"{source} is no file. Name the recording to encode.")
    with ending_cleanly():
        codec = load_model(model, device, dtype, quiet)

        from mimi_hf.inference.round_trip import roundtrip as run

        with explaining(), showing_progress("Encoding and decoding", quiet) as move:
            report = run(codec, source, output, num_quantizers, move)
        if json:
            print_json({**dataclasses.asdict(report), "output": str(report.output)})
        elif not quiet:
            typer.echo(f"{report.output}: {report.duration:.2f} s of audio")
            codes = report.frames * report.num_quantizers
            typer.echo(f"frames    {report.frames} of {report.num_quantizers} codes, {codes} in all")
            typer.echo(f"bitrate   {report.bits_per_second / 1000:.2f} kbps")
            for name, seconds in (("encode", report.encode_seconds), ("decode", report.decode_seconds)):
                typer.echo(f"{name}    {seconds:.2f} s, {report.duration / seconds:.1f}x real time")
