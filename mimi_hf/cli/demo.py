"""The command `mimi-hf demo`."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_hf.loading import MIMI_TINY

from .console import ending_cleanly, explaining, fail, print_json, spinning
from .options import DeviceOption, ForceOption, JsonOption, ModelOption, QuantizersOption, QuietOption, load_model

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    from mimi_hf.demo import DemoReport

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "12345678"


def demo(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[IN]", help="Audio file; a sentence that comes with the package by default.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("mimi-demo"),
    model: ModelOption = MIMI_TINY,
    num_quantizers: QuantizersOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """See and hear what the codec does, offline, in seconds.

    Encodes a sentence, shows its tokens, writes them as a .mimi file, decodes
    them, draws both spectrograms and measures the quality:

        mimi-hf demo

        mimi-hf demo my-voice.wav --out my-demo

    mimi-tiny, the model that comes with the package, is for demonstrations
    and tests: 2.6 million parameters, trained on four hours of speech, far
    from Mimi's quality. --model kyutai/mimi is Mimi itself.

    Exit status: 0 all is well; 1 it failed; 2 wrong usage; 130, 143: ended
    by Ctrl-C, SIGTERM, and the folder is as it was.
    """
    if source is not None and not source.is_file():
        raise fail(f"{source} is no file. Name a recording.")
    with ending_cleanly(), explaining():
        with spinning(f"Loading {model} …", quiet):
            from mimi_hf.demo import FILES, run_demo, speech_path
            from mimi_hf.utils.files import check_replaceable
        check_replaceable(output, set(FILES), force)
        codec = load_model(model, device, "float32", quiet)
        report = run_demo(codec, source or speech_path(), output, num_quantizers, force)
        if json:
            content = {"model": model, **dataclasses.asdict(report)}
            print_json(content | {"output": str(report.output), "codes": report.codes.tolist()})
        elif not quiet:
            _print(report, model)


def _print(report: "DemoReport", model: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from mimi_hf.demo import FILES, LONGEST

    console = Console(highlight=False, markup=False)
    count, frames = report.codes.shape
    shown = min(frames, max(1, console.width - 2))
    cut = f" (here the first {shown})" if shown < frames else ""
    console.print(
        f"\n{report.duration:.1f} s of speech as {frames} frames of {count} tokens{cut}, a row for each codebook:\n"
    )
    console.print(_draw(report.codes[:, :shown], report.codebook_size, console.encoding))
    console.print(_tabulate(report))
    console.print(f"\n{report.output}: {', '.join(FILES)}", soft_wrap=True)
    if report.duration > LONGEST:
        console.print(f"Quality and pictures are of the first {LONGEST:g} s.")
    if model == MIMI_TINY:
        console.print(
            "\nmimi-tiny is a demonstration and test model: 2.6 million parameters, trained on four hours of speech,"
            " far from Mimi's quality."
        )
    if report.missing:
        console.print(f"pip install 'mimi_hf[eval]' adds {' and '.join(report.missing)}.")
    console.print("\nNext:")
    for command in (
        shlex.join(["mimi-hf", "info", str(report.output / "speech.mimi")]),
        "mimi-hf demo your-recording.wav --out your-demo",
        "mimi-hf roundtrip your-recording.wav back.wav -k 8      # with Mimi itself, from the Hub",
        "mimi-hf tokenize your-recordings your-codes --model mimi-tiny",
    ):
        console.print(Text(f"  {command}"), soft_wrap=True)


def _draw(codes: "np.ndarray", size: int, encoding: str) -> "Text":
    """Codes, shape = (K, f), as bars coloured by code; as digits where a terminal knows no bars."""
    from rich.text import Text

    from mimi_hf.utils.png import wheel_colors

    bars, text = _BARS if encoding.startswith("utf") else _PLAIN_BARS, Text()
    for row, colors in zip(codes.tolist(), wheel_colors(codes / size).tolist(), strict=True):
        text.append("  ")
        for code, (red, green, blue) in zip(row, colors, strict=True):
            text.append(bars[len(bars) * code // size], style=f"rgb({red},{green},{blue})")
        text.append("\n")
    return text


def _tabulate(report: "DemoReport") -> "Table":
    from rich.table import Table

    from mimi_hf.evaluation.metrics import METRICS

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_row("bitrate", f"{report.bits_per_second / 1000:.2f} kbps")
    table.add_row("size", f"{report.num_bytes} bytes ({report.original_bytes} as 16-bit samples)")
    for name, seconds in (("encoded", report.encode_seconds), ("decoded", report.decode_seconds)):
        table.add_row(name, f"{report.duration / seconds:.0f}x real time")
    for name, value in report.scores.items():
        metric = METRICS[name]
        better = "higher is better" if metric.higher_is_better else "lower is better"
        table.add_row(metric.label, "-" if value is None else f"{value:.2f} {metric.unit}".rstrip() + f" ({better})")
    return table
