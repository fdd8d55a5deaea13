"""The command `mimi-hf benchmark`."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimi_hf.utils.files import written_beside

from .console import explaining, fail, showing_progress, spinning
from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ForceOption,
    ModelOption,
    QuantizersOption,
    QuietOption,
    check_dtype,
    check_writable,
    load_model,
)

if TYPE_CHECKING:
    from mimi_hf.benchmark import BenchmarkReport


def benchmark(
    model: ModelOption = DEFAULT_MODEL,
    seconds: Annotated[
        list[float] | None, typer.Option(help="Length of the recordings; repeat for more.", show_default="2, 12")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Recordings in a batch; repeat for more.", min=1, show_default="1, 8")
    ] = None,
    sessions: Annotated[
        list[int] | None, typer.Option(help="Live sessions at once; repeat for more.", min=1, show_default="1, 16")
    ] = None,
    num_quantizers: QuantizersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="as torch chooses", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls per recording; the median is reported.", min=1)] = 3,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile streams first: takes minutes, then frames are faster.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the results to FILE.")
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how fast this machine encodes and decodes.

    Measures whole recordings, and live sessions frame by frame, and compares
    them with what the machine can do at best: its rates of matrix products
    (GEMM) and of reading memory. The defaults take a minute or two.

        mimi-hf benchmark

    What eight codebooks cost when two sessions share a stream:

        mimi-hf benchmark -k 8 --sessions 2 --json results.json

    Exit status: 0 when done; 1 it failed; 2 wrong usage.
    """
    check_dtype(dtype)
    lengths = seconds or [2.0, 12.0]
    if not all(0 < length < math.inf for length in lengths):
        raise typer.BadParameter("--seconds must be positive: the length of a recording.")
    if quiet and json_file is None:
        raise typer.BadParameter("--quiet prints no results: add --json FILE.")
    if json_file is not None:
        check_writable(json_file, force)

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.perf_counter()
    codec = load_model(model, device, dtype, quiet)
    loading = time.perf_counter() - begin

    from mimi_hf.benchmark import benchmark as run

    with explaining():
        if compiled:
            with spinning("Compiling …", quiet):
                codec.compile_for_streaming()
        with showing_progress("Measuring", quiet) as move:
            report = run(codec, lengths, batch or (1, 8), sessions or (1, 16), num_quantizers, repeats, progress=move)
    results = {"model": model, "compiled": compiled, "load_seconds": loading, **report.to_dict()}
    if json_file is not None:
        try:
            with written_beside(json_file) as aside:
                aside.write_text(json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise fail(f"{json_file} cannot be written: {error.strerror}.") from None
    if not quiet:
        _print_benchmark(report, loading)


def _print_benchmark(report: "BenchmarkReport", loading: float) -> None:
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
