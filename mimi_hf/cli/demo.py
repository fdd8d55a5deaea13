"""The command `mimi-hf demo`."""

from pathlib import Path
from typing import Annotated

import typer

from ..loading import MIMI_TINY
from .batch import describe
from .common import DeviceOption, ModelOption, QuantizersOption, QuietOption, fail, load_model
from .pipes import ending_cleanly

_BARS = "▁▂▃▄▅▆▇█"


def demo(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[IN]", help="Audio file; a sentence that comes along by default.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("mimi-demo"),
    model: ModelOption = MIMI_TINY,
    num_quantizers: QuantizersOption = None,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the folder if it exists.")] = False,
    quiet: QuietOption = False,
    json: Annotated[bool, typer.Option("--json", help="Report as JSON on standard output.")] = False,
):
    """See and hear what the codec does, offline, in seconds.

    Encodes a sentence, shows its tokens, writes them as a .mimi file, decodes
    them, draws both spectrograms and measures what is left:

        mimi-hf demo

        mimi-hf demo my-voice.wav --out my-demo

    mimi-tiny, the model that comes with the package, is for demonstrations
    and tests: small, trained on little speech, far from Mimi's quality.
    --model kyutai/mimi is Mimi itself.

    Exit status: 0 all is well; 1 it failed; 2 wrong usage; 130, 143: ended
    by Ctrl-C, SIGTERM, and the folder is as it was.
    """
    if output.exists() and not force:
        raise fail(f"{output} exists. Name another folder with --out, or add --force to replace it.")
    if output.exists() and not output.is_dir():
        raise fail(f"{output} is a file. Name a folder to write to.")
    if source is not None and not source.is_file():
        raise fail(f"{source} is no file. Name a recording.")
    with ending_cleanly():
        report = _run(source, output, model, num_quantizers, device)
        if json:
            _print_json(report)
        elif not quiet:
            _print(report, model)


def _run(source, output, model, num_quantizers, device):
    codec = load_model(model, device, "float32")
    from ..demo import run_demo, speech_path

    try:
        return run_demo(codec, source or speech_path(), output, num_quantizers)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise fail(describe(error)) from None


def _print_json(report):
    import dataclasses
    import json

    content = dataclasses.asdict(report)
    content |= {"output": str(report.output), "codes": report.codes.tolist()}
    typer.echo(json.dumps(content, indent=1))


def _print(report, model: str):
    from rich.console import Console
    from rich.table import Table

    from ..demo import FILES
    from ..evaluation.metrics import METRICS

    console = Console()
    count, frames = report.codes.shape
    console.print(
        f"\n{report.duration:.1f} s of speech as {frames} frames of {count} tokens, a row for each codebook:\n"
    )
    console.print(_tokens(report, console.width))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    ratio = report.original_bytes / report.num_bytes
    table.add_row("bitrate", f"{report.bits_per_second / 1000:.2f} kbps")
    table.add_row("size", f"{report.num_bytes} bytes, {ratio:.0f} times smaller than 16-bit samples")
    for name, seconds in (("encoded", report.encode_seconds), ("decoded", report.decode_seconds)):
        table.add_row(name, f"{report.duration / seconds:.0f}x real time")
    for name, value in report.scores.items():
        metric = METRICS[name]
        better = "higher is better" if metric.higher_is_better else "lower is better"
        table.add_row(metric.label, "-" if value is None else f"{value:.2f} {metric.unit}".rstrip() + f" ({better})")
    console.print(table)
    console.print(f"\n{report.output}: {', '.join(FILES)}", highlight=False)
    if model == MIMI_TINY:
        console.print(
            "\nmimi-tiny is a demonstration and test model: small, trained on little speech, far from Mimi's quality.",
            highlight=False,
        )
    if report.missing:
        console.print(f"pip install 'mimi_hf[eval]' adds {' and '.join(report.missing)}.", markup=False)
    console.print("\nNext:", highlight=False)
    for command in (
        f"mimi-hf info {report.output}/speech.mimi",
        "mimi-hf demo your-recording.wav --out your-demo",
        "mimi-hf roundtrip your-recording.wav back.wav -k 8      # with Mimi itself, from the Hub",
        "mimi-hf tokenize your-recordings your-codes --model mimi-tiny",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _tokens(report, width: int):
    """The codes as coloured bars, as many frames as there is room for."""
    from rich.text import Text

    from ..png import wheel_colors

    codes, text = report.codes[:, : width - 2], Text()
    for row, colors in zip(codes.tolist(), wheel_colors(codes / report.codebook_size).tolist(), strict=True):
        text.append("  ")
        for code, (red, green, blue) in zip(row, colors, strict=True):
            text.append(_BARS[len(_BARS) * code // report.codebook_size], style=f"rgb({red},{green},{blue})")
        text.append("\n")
    return text
