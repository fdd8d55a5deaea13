"""The command `mimi-hf roundtrip`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mimi_hf.audio.blocks import WRITABLE

from .common import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizersOption,
    QuietOption,
    check_dtype,
    check_writable,
    fail,
    load_model,
    loading_message,
)
from .folders import describe
from .pipes import ending_cleanly


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
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it exists.")] = False,
    quiet: QuietOption = False,
    json: Annotated[bool, typer.Option("--json", help="Report as JSON on standard output.")] = False,
):
    """Encode a recording, decode it again, and tell what it took.

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
        report = _run(source, output, model, num_quantizers, device, dtype, quiet)
        if json:
            _print_json(report)
        elif not quiet:
            _print(report)


def _run(source, output, model, num_quantizers, device, dtype, quiet):
    from rich.console import Console
    from rich.progress import Progress

    from mimi_hf.inference.round_trip import roundtrip as run

    console = Console(stderr=True, quiet=quiet)
    with console.status(loading_message(model)):
        codec = load_model(model, device, dtype)
    try:
        with Progress(console=console, transient=True, disable=quiet) as progress:
            task = progress.add_task("Encoding and decoding", total=1.0)
            return run(codec, source, output, num_quantizers, lambda part: progress.update(task, completed=part))
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise fail(describe(error)) from None


def _print_json(report):
    import json

    typer.echo(json.dumps({**dataclasses.asdict(report), "output": str(report.output)}, indent=2))


def _print(report):
    typer.echo(f"{report.output}: {report.duration:.2f} s of audio")
    codes = report.frames * report.num_quantizers
    typer.echo(f"frames    {report.frames} of {report.num_quantizers} codes, {codes} in all")
    typer.echo(f"bitrate   {report.bits_per_second / 1000:.2f} kbps")
    for name, seconds in (("encode", report.encode_seconds), ("decode", report.decode_seconds)):
        typer.echo(f"{name}    {seconds:.2f} s, {report.duration / seconds:.1f}x real time")
