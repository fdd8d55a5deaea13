"""What `encode` and `decode` have in common: one file, a folder, or a pipe."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import check_writable, fail, load_model, loading_message, looking_at
from .folders import FileTask, describe, mirror, name_output, run
from .pipes import LiveSource, ending_cleanly, standard_input, standard_output

ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace what exists.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Processes for a folder.", show_default="one for four cores; 1 on a GPU"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Report as JSON on standard output (on standard error where that carries data).")
]
SampleFormatOption = Annotated[
    str, typer.Option(help="Of raw audio: s16le, s24le, s32le, f32le, … or arecord's S16_LE, S24_3LE, ….")
]


@dataclasses.dataclass(frozen=True)
class Transcoding:
    """One command.

    function: `function(model, source, output, options, digest=…, progress=…)`.
    extensions: of the files that are taken from a folder.
    extension: of what is written.
    describe: the line to print of a report.
    """

    name: str
    function: Callable
    options: Any
    extensions: set[str]
    extension: str
    describe: Callable[[Any], str]
    model: str
    device: str | None
    dtype: str
    force: bool
    quiet: bool
    json: bool

    def run(self, source: str, output: str, jobs: int | None):
        """Do it, print what there is to tell, and exit with the status."""
        with looking_at(Path(source)):
            is_folder = source != "-" and Path(source).is_dir()
        with looking_at(Path(output)):
            is_absent = output.endswith("/") and not Path(output).is_dir()
        if "-" in (source, output):
            self._pipe(source, output)
        elif is_folder:
            with ending_cleanly():
                self._folder(Path(source), Path(output), jobs)
        elif is_absent:
            raise fail(f"There is no folder {output} to write to. Create it first.")
        else:
            with ending_cleanly():
                self._file(Path(source), Path(output))

    def _file(self, source: Path, output: Path):
        with looking_at(output):
            if output.is_dir():
                output = output / name_output(source.name, self.extension)
        check_writable(output, self.force)
        if not source.exists():
            raise fail(f"{source} does not exist. Name a file or a folder.")

        from rich.markup import escape
        from rich.progress import Progress

        codec = self._load()
        with Progress(console=self._console(), transient=True, disable=self.quiet) as progress:
            task = progress.add_task(escape(source.name), total=1.0)
            report = self._one(codec, source, output, lambda part: progress.update(task, completed=part))
        self._tell([report], [], 0)

    def _pipe(self, source: str, output: str):
        if output != "-":
            check_writable(Path(output), self.force)
        origin = standard_input() if source == "-" else Path(source)
        target = standard_output() if output == "-" else Path(output)
        with ending_cleanly(origin if isinstance(origin, LiveSource) else None):
            report = self._one(self._load(), origin, target, None)
            self._tell([report], [], 0, err=output == "-")

    def _folder(self, source: Path, output: Path, jobs: int | None):
        if output.exists() and not output.is_dir():
            raise fail(f"{output} is a file, but {source} a folder: name a folder to write to.")
        try:
            pairs = mirror(source, output, self.extensions, self.extension)
        except ValueError as error:
            raise fail(str(error)) from None
        if not pairs:
            raise fail(f"{source} holds no file that ends in {', '.join(sorted(self.extensions))}.")
        left = [pair for pair in pairs if self.force or not pair[1].exists()]
        reports, failed = [], []
        if left:
            begin = time.perf_counter()
            for path, report, reason in self._progress(left, jobs):
                if reason is None:
                    reports.append(report)
                else:
                    failed.append((path, reason))
            self._tell(reports, failed, len(pairs) - len(left), seconds=time.perf_counter() - begin)
        else:
            self._tell([], [], len(pairs))
        if failed:
            raise typer.Exit(1)

    def _progress(self, pairs, jobs: int | None):
        """What [`run`] gives, with a bar of what is done."""
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        codec = self._load()
        jobs = min(_default_jobs(codec) if jobs is None else jobs, len(pairs))
        task = FileTask(self.function, self.options, self.model, self.device, self.dtype, codec.codebook_digest)
        codec = codec if jobs == 1 else None
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console(), transient=True, disable=self.quiet) as progress:
            yield from progress.track(run(task, codec, pairs, jobs), total=len(pairs), description=self.name)

    def _one(self, codec, source, output, progress):
        try:
            return self.function(codec, source, output, self.options, progress=progress)
        except BrokenPipeError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            raise fail(describe(error)) from None

    def _console(self):
        from rich.console import Console

        return Console(stderr=True, quiet=self.quiet)

    def _load(self):
        with self._console().status(loading_message(self.model)):
            return load_model(self.model, self.device, self.dtype)

    def _tell(self, reports, failed, skipped: int, seconds: float | None = None, err: bool = False):
        """Print what was done: one line for a file, a summary of a folder."""
        for path, reason in failed:
            typer.echo(f"Error: {path}: {reason}", err=True)
        if self.json:
            files = [dataclasses.asdict(report) for report in reports]
            failures = [{"source": str(path), "reason": reason} for path, reason in failed]
            typer.echo(json.dumps({"files": files, "failed": failures, "skipped": skipped}, indent=2), err=err)
            return
        if self.quiet:
            return
        if len(reports) == 1 and not failed and not skipped and seconds is None:
            typer.echo(self.describe(reports[0]), err=err)
            return
        duration = sum(report.duration for report in reports)
        speed = f", {duration / seconds:.1f}x real time" if seconds and duration else ""
        typer.echo(
            f"{len(reports)} done ({duration / 3600:.2f} h of audio{speed}), {skipped} were there already,"
            f" {len(failed)} failed"
        )


def _default_jobs(codec) -> int:
    import torch

    return 1 if codec.device.type == "cuda" else max(1, torch.get_num_threads() // 4)
