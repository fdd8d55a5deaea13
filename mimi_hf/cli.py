"""The command `mimi-hf`: parse, check, one call of the library."""

from pathlib import Path
from typing import Annotated

import typer

from .audio_io import WRITABLE
from .conversion.command import convert

app = typer.Typer(
    name="mimi-hf",
    help="Kyutai's Mimi speech codec: 24 kHz speech to 12.5 frames of codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(convert)


@app.callback()
def _commands():
    """With a callback, one command alone would still be called by its name."""


@app.command()
def roundtrip(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Audio file: wav, flac, ogg, mp3, … of any rate.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .wav, .flac or .ogg.", show_default=False)
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A folder, or the id of a model on the Hub.")] = (
        "kyutai/mimi"
    ),
    num_quantizers: Annotated[
        int | None,
        typer.Option("--num-quantizers", "-k", help="Codebooks to use; all by default. 8 make 1.1 kbps.", min=1),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
):
    """Encode a recording, decode it again, and tell what it took.

    Listen to what a number of codebooks does to a voice:

        mimi-hf roundtrip speech.wav back.wav --num-quantizers 8
    """
    if output.suffix.lower() not in WRITABLE:
        raise typer.BadParameter(f"OUT is {output.name!r}, but must end in one of {', '.join(WRITABLE)}.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype {dtype} must be float32, bfloat16 or float16.")
    if output.exists() and not force:
        raise _fail(f"{output} exists. Name another file, or add --force to replace it.")
    if output.is_dir():
        raise _fail(f"{output} is a folder. Name a file to write.")
    if not output.parent.is_dir():
        raise _fail(f"There is no folder {output.parent} to write to. Create it first.")
    if not source.is_file():
        raise _fail(f"{source} is no file. Name the recording to encode.")

    from rich.console import Console
    from rich.progress import Progress

    from .roundtrip import roundtrip as run

    console = Console(stderr=True, quiet=quiet)
    with console.status(f"Loading {model} …"):
        codec = _load_model(model, device, dtype)
    try:
        with Progress(console=console, transient=True, disable=quiet) as progress:
            task = progress.add_task("Encoding and decoding", total=1.0)
            report = run(codec, source, output, num_quantizers, lambda part: progress.update(task, completed=part))
    except (ValueError, OSError) as error:
        raise _fail(str(error)) from None
    if not quiet:
        _print(report)


def _print(report):
    typer.echo(f"{report.output}: {report.duration:.2f} s of audio")
    codes = report.frames * report.num_quantizers
    typer.echo(f"frames    {report.frames} of {report.num_quantizers} codes, {codes} in all")
    typer.echo(f"bitrate   {report.bits_per_second / 1000:.2f} kbps")
    for name, seconds in (("encode", report.encode_seconds), ("decode", report.decode_seconds)):
        typer.echo(f"{name}    {seconds:.2f} s, {report.duration / seconds:.1f}x real time")


def _load_model(name: str, device: str | None, dtype: str):
    """The model, or one message that says how to get it."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import logging

    from . import MimiModel

    logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "mimi":
            raise ValueError(f"it is of type {kind!r}, not 'mimi'. Name a Mimi model.")
        return MimiModel.from_pretrained(name, dtype=getattr(torch, dtype)).to(device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if Path(name).is_dir() or isinstance(error, ValueError | RuntimeError | SafetensorError):
            raise _fail(f"The model {name} cannot be loaded: {error}") from None
        raise _fail(
            f"The model {name} is neither a folder here nor in the cache, and could not be fetched from the Hub.\n"
            f"  Online:   hf download {name}\n"
            "  Offline:  fetch it on a machine with a network, copy the folder here, and give --model FOLDER\n"
            "            (or copy that machine's Hugging Face cache and set HF_HOME).\n"
            "  A file of Kyutai's original format:  mimi-hf convert FILE FOLDER"
        ) from None


def _fail(message: str) -> typer.Exit:
    """An exit with status 1, its reason printed."""
    typer.echo(f"Error: {message}", err=True)
    return typer.Exit(1)


def main():
    app()


if __name__ == "__main__":
    main()
