"""The command `mimi-hf evaluate`."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    EXPECTED,
    describe,
    ending_cleanly,
    explaining,
    fail,
    print_json,
    showing_progress,
    spinning,
)
from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    check_dtype,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mimi_hf.corpus.sources import Source
    from mimi_hf.evaluation.report import FileResult
    from mimi_hf.loading import ModelChoice

_FAILURES_TOLD = 20


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Recordings: a file, a folder, a manifest, parquet files, a data set of the Hub, …, as for"
            " `mimi-hf tokenize`.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to make for all results.", show_default=False)
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: Annotated[
        str | None,
        typer.Option(
            "--num-quantizers",
            "-k",
            metavar="K,K,…",
            help="Numbers of codebooks to evaluate.",
            show_default="those of 1,2,4,8 that the model has",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Metrics: stoi, pesq, visqol, dnsmos, mel_distance, si_sdr.",
            show_default="all installed",
        ),
    ] = None,
    agree_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OTHER",
            help="Compare codes and audio with those of another model, precision or engine instead; repeat for more.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of each recording to take, from its start.", show_default="all")
    ] = None,
    limit_files: Annotated[
        int | None, typer.Option(help="Take only this many recordings, the first.", min=1, show_default="all")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", help="Processes for the metrics.", min=1, show_default="half of the cores"),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how good a model is on recordings, at several bitrates.

        mimi-hf evaluate recordings/ results/ -k 1,2,4,8

    shows intelligibility (STOI), quality (PESQ-WB, ViSQOL, DNSMOS), distances
    (mel, SI-SDR), how evenly the codebooks are used, and the speed. It writes
    to results/: report.json, files.csv (a row for each file and bitrate),
    quality.png (against bitrate) and spectrogram.png (of the first file).
    The packages of the metrics come with the extra eval. Files that can't be
    read are reported, and the others are evaluated.

    Is a precision good enough? Count the codes that change, and measure how
    far the audio of the same codes is off:

        mimi-hf evaluate recordings/ --agree-with bfloat16 --agree-with int8

    OTHER is float32, bfloat16, float16, int8 (8-bit weights); stream (frame
    by frame), compiled (the same, compiled), native (transformers' own Mimi);
    or another model.

    Exit status: 0 all is well; 1 something failed, even one file; 2 wrong
    usage; 130, 143: ended by Ctrl-C, SIGTERM, and OUT is as it was.
    """
    check_dtype(dtype)
    levels = _parse_levels(num_quantizers)
    if seconds is not None and not 0 < seconds < math.inf:
        raise typer.BadParameter("--seconds must be positive: how much of each recording.")
    if agree_with and metrics:
        raise typer.BadParameter("--agree-with compares codes and audio, without --metrics. Run the command twice.")
    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    work = _Work(source, output, model, levels, names, seconds, limit_files, jobs, device, dtype, force, quiet, json)
    with ending_cleanly():
        with explaining():
            work.check(pictures=not agree_with)
            failures, count, lost = work.compare(agree_with) if agree_with else work.measure()
        for file in failures[:_FAILURES_TOLD]:
            typer.echo(f"{file.id}: {file.reason}", err=True)
        if failures:
            more = f", {_FAILURES_TOLD} of which are named" if len(failures) > _FAILURES_TOLD else ""
            failed = len({file.id for file in failures})
            lost.append(f"{failed} of {count} recordings failed{more}; the figures are of the others.")
        if lost:
            raise fail("\n".join(lost))


def _parse_levels(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise typer.BadParameter(f"-k {text} must be numbers of codebooks with commas between them, like 1,2,4,8.")
    return levels


# The recordings that failed, the number of all, and what else failed.
_Outcome = tuple[list["FileResult"], int, list[str]]


@dataclass(frozen=True)
class _Work:
    """What is to be done, as the options say."""

    source: str
    output: Path | None
    model: str
    levels: list[int] | None
    metrics: list[str] | None
    seconds: float | None
    limit_files: int | None
    jobs: int | None
    device: str | None
    dtype: str
    force: bool
    quiet: bool
    json: bool

    def check(self, pictures: bool) -> None:
        """Refuse what cannot go well, before anything heavy begins."""
        from mimi_hf.evaluation.metrics import choose_metrics
        from mimi_hf.evaluation.picture import check_installed
        from mimi_hf.evaluation.results import check_folder

        if self.metrics is not None:
            try:
                choose_metrics(self.metrics)
            except ValueError as error:
                raise typer.BadParameter(f"--metrics: {error}") from None
        if self.output is not None:
            check_folder(self.output, self.force)
            if pictures:
                check_installed()

    def measure(self) -> _Outcome:
        """Evaluate the model."""
        with spinning(f"Loading {self.model} …", self.quiet):
            from mimi_hf.evaluation.evaluate import evaluate as run
            from mimi_hf.evaluation.tables import quality_tables

            source, choice = self._open()
            model = choice.load(self.device)
        with self._progress("Evaluating") as update:
            report = run(
                model, source, self.levels, self.metrics, self.seconds, self.limit_files, self.jobs, progress=update
            )
        facts = {"model": self.model, "source": self.source}
        if self.output is not None:
            from mimi_hf.evaluation.results import write_evaluation

            write_evaluation(self.output, report, **facts)
        self._tell({**facts, **report.to_dict()}, quality_tables(report, told_all=self.metrics is not None))
        return report.failures, len(report.files), []

    def compare(self, others: list[str]) -> _Outcome:
        """Compare the model with others."""
        with spinning(f"Loading {self.model} …", self.quiet):
            from mimi_hf.evaluation.agreement import compare
            from mimi_hf.evaluation.tables import agreement_tables
            from mimi_hf.evaluation.variants import open_variant

            source, choice = self._open()
            first = open_variant("eager", choice, self.device)
            first.name = f"{self.model} in {choice.dtype}"
        reports, lost = [], []
        for other in others:
            try:
                with spinning(f"Loading {other} …", self.quiet):
                    second = open_variant(other, choice, self.device)
                with self._progress(f"Comparing with {other}") as update:
                    most = None if self.levels is None else max(self.levels)
                    reports.append(compare(first, second, source, most, self.seconds, self.limit_files, update))
            except EXPECTED as error:
                if len(others) == 1:
                    raise
                lost.append(f"{other}: {describe(error)}")  # what the others give is not lost
        if not reports:
            raise ValueError("\n".join(lost))
        facts = {"model": self.model, "source": self.source, "dtype": choice.dtype}
        if self.output is not None:
            from mimi_hf.evaluation.results import write_agreement

            write_agreement(self.output, reports, **facts)
        self._tell({**facts, "agreement": [report.to_dict() for report in reports]}, agreement_tables(reports))
        # A recording that cannot be read fails with each of them, for one reason.
        failures = {(file.id, file.reason): file for report in reports for file in report.failures}
        return [*failures.values()], len(reports[0].files), lost

    def _open(self) -> "tuple[Source, ModelChoice]":
        from mimi_hf.corpus.sources import open_source
        from mimi_hf.loading import ModelChoice

        leave_out = None if self.output is None else str(self.output)
        return open_source(self.source, leave_out=leave_out), ModelChoice(self.model, self.dtype)

    def _progress(self, title: str) -> AbstractContextManager[Callable[..., None]]:
        """Show a bar over recordings."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        return showing_progress(title, self.quiet, *columns, total=None)

    def _tell(self, content: dict[str, Any], tables: "Sequence[RenderableType]") -> None:
        if self.json:
            print_json(content)
        elif not self.quiet:
            from rich.console import Console

            console = Console(highlight=False)
            for table in tables:
                console.print(table)
            if self.output is not None:
                names = ", ".join(sorted(path.name for path in self.output.iterdir()))
                console.print(f"{self.output}: {names}", soft_wrap=True)
