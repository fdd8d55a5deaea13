"""The command `mimi-hf`: parse, check, one call of the library."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from .audio_io import WRITABLE
from .conversion.command import convert
from .files import written_beside

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
    _check_dtype(dtype)
    _check_writable(output, force)
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


@app.command()
def benchmark(
    model: Annotated[str, typer.Option("--model", "-m", help="A folder, or the id of a model on the Hub.")] = (
        "kyutai/mimi"
    ),
    seconds: Annotated[
        list[float] | None, typer.Option(help="Length of the recordings; repeat for more.", show_default="2, 12")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Recordings at once; repeat for more.", min=1, show_default="1, 8")
    ] = None,
    sessions: Annotated[
        list[int] | None, typer.Option(help="Live sessions at once; repeat for more.", min=1, show_default="1, 16")
    ] = None,
    num_quantizers: Annotated[
        int | None, typer.Option("--num-quantizers", "-k", help="Codebooks to use; all by default.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; as torch chooses by default.", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="Counted calls per recording; figures are medians.", min=1)] = 3,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the steps of the streams first: minutes, then faster frames.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results there, too.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace FILE if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
):
    """Measure how fast this machine encodes and decodes.

    Whole recordings, and live sessions frame by frame, beside the machine's
    own rates of matrix products (GEMM) and of reading memory. The defaults
    take a minute or two. What eight codebooks cost where two sessions share
    a stream:

        mimi-hf benchmark -k 8 --sessions 2 --json results.json
    """
    _check_dtype(dtype)
    lengths = seconds or [2.0, 12.0]
    if not all(0 < length < math.inf for length in lengths):
        raise typer.BadParameter("--seconds must be positive: the length of a recording.")
    if quiet and json_file is None:
        raise typer.BadParameter("--quiet prints no results: add --json FILE.")
    if json_file is not None:
        _check_writable(json_file, force)

    import time

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from .benchmark import benchmark as run

    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True, quiet=quiet)
    with console.status(f"Loading {model} …"):
        begin = time.perf_counter()
        codec = _load_model(model, device, dtype)
        loading = time.perf_counter() - begin
    try:
        if compiled:
            with console.status("Compiling …"):
                codec.compile_for_streaming()
        with Progress(console=console, transient=True, disable=quiet) as progress:
            task = progress.add_task("Measuring", total=1.0)
            report = run(
                codec,
                lengths,
                batch or (1, 8),
                sessions or (1, 16),
                num_quantizers,
                repeats,
                progress=lambda part: progress.update(task, completed=part),
            )
    except (ValueError, RuntimeError) as error:
        raise _fail(str(error)) from None
    results = {"model": model, "compiled": compiled, "load_seconds": loading, **report.to_dict()}
    if json_file is not None:
        try:
            with written_beside(json_file) as aside:
                aside.write_text(json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise _fail(f"{json_file} cannot be written: {error.strerror}.") from None
    if not quiet:
        _print_benchmark(report, loading)


def _print_benchmark(report, loading: float):
    from rich.console import Console
    from rich.table import Table

    console = Console()
    machine, rates = report.machine, report.roofline
    place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    console.print(f"{place}, torch {machine['versions']['torch']}")
    console.print(f"{rates.gemm[report.dtype]:.0f} GFLOP/s of GEMM in {report.dtype}, {rates.bandwidth:.1f} GB/s read")
    console.print(f"{report.num_quantizers} codebooks; the model loaded in {loading:.2f} s")
    offline = Table("", "length", "batch", "x real time", "of GEMM", title="Recordings")
    for row in report.offline:
        offline.add_row(row.task, f"{row.seconds:g} s", str(row.batch), f"{row.speed:.1f}", f"{row.gemm:.0%}")
    live = Table("", "sessions", "median", "99th percentile", "of GEMM", "of bandwidth")
    live.title = f"Live, ms per frame of {report.frame:g} ms"
    for row in report.live:
        reached = (f"{row.gemm:.0%}", f"{row.bandwidth:.0%}")
        live.add_row(row.task, str(row.sessions), f"{row.median:.1f}", f"{row.p99:.1f}", *reached)
    console.print(offline, live)


def _check_dtype(dtype: str):
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype {dtype} must be float32, bfloat16 or float16.")


def _check_writable(path: Path, force: bool):
    """Refuse a file that cannot be written, or must not be."""
    if path.exists() and not force:
        raise _fail(f"{path} exists. Name another file, or add --force to replace it.")
    if path.is_dir():
        raise _fail(f"{path} is a folder. Name a file to write.")
    if not path.parent.is_dir():
        raise _fail(f"There is no folder {path.parent} to write to. Create it first.")


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
