"""What `encode` and `decode` share: one file, a folder, or a pipe."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from .console import ending_cleanly, explaining, fail, print_json, showing_progress
from .folders import FileTask, Outcome, Pair, mirror, name_output, run
from .options import check_writable, load_model, looking_at
from .pipes import LiveSource, standard_input, standard_output


@dataclasses.dataclass(frozen=True)
class Transcoding:
    """What `encode` or `decode` is to do, as the options say.

    name: of the command.
    function: `function(model, source, output, options, digest=…, progress=…)` of `mimi_hf.inference.mimi_files`.
    options: of that function.
    extensions: of the files that are taken from a folder.
    extension: of what is written.
    describe: turns a report into the line to print.
    model, device, dtype, force, quiet, json: the options of the command.
    """

    name: str
    function: Callable[..., Any]
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

    def run(self, source: str, output: str, jobs: int | None) -> None:
        """Do it, print the report, and exit with the status."""
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

    def _file(self, source: Path, output: Path) -> None:
        with looking_at(output):
            if output.is_dir():
                output = output / name_output(source.name, self.extension)
        check_writable(output, self.force)
        if not source.exists():
            raise fail(f"{source} does not exist. Name a file or a folder.")
        codec = load_model(self.model, self.device, self.dtype, self.quiet)
        with explaining(), showing_progress(source.name, self.quiet) as move:
            report = self.function(codec, source, output, self.options, progress=move)
        self._tell([report], [], 0)

    def _pipe(self, source: str, output: str) -> None:
        if output != "-":
            check_writable(Path(output), self.force)
        origin = standard_input() if source == "-" else Path(source)
        target = standard_output() if output == "-" else Path(output)
        with ending_cleanly(origin if isinstance(origin, LiveSource) else None):
            codec = load_model(self.model, self.device, self.dtype, self.quiet)
            with explaining():
                report = self.function(codec, origin, target, self.options, progress=None)
            self._tell([report], [], 0, err=output == "-")

    def _folder(self, source: Path, output: Path, jobs: int | None) -> None:
        if output.exists() and not output.is_dir():
            raise fail(f"{output} is a file, but {source} a folder: name a folder to write to.")
        with explaining():
            pairs = mirror(source, output, self.extensions, self.extension)
        if not pairs:
            raise fail(f"{source} holds no file that ends in {', '.join(sorted(self.extensions))}.")
        left = [pair for pair in pairs if self.force or not pair[1].exists()]
        reports, failed = [], []
        begin = time.perf_counter()
        for path, report, reason in self._outcomes(left, jobs) if left else ():
            if reason is None:
                reports.append(report)
            else:
                failed.append((path, reason))
        self._tell(reports, failed, len(pairs) - len(left), time.perf_counter() - begin if left else None)
        if failed:
            raise typer.Exit(1)

    def _outcomes(self, pairs: list[Pair], jobs: int | None) -> Iterator[Outcome]:
        """Give what [`run`] gives, with a bar of what is done."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        codec = load_model(self.model, self.device, self.dtype, self.quiet)
        if jobs is None:
            import torch

            jobs = 1 if codec.device.type == "cuda" else max(1, torch.get_num_threads() // 4)
        jobs = min(jobs, len(pairs))
        task = FileTask(self.function, self.options, self.model, self.device, self.dtype, codec.codebook_digest)
        model = codec if jobs == 1 else None
        del codec  # processes load their own
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with explaining(), showing_progress(self.name, self.quiet, *columns, total=len(pairs)) as move:
            for done, outcome in enumerate(run(task, model, pairs, jobs), 1):
                move(done)
                yield outcome

    def _tell(
        self,
        reports: list[Any],
        failed: list[tuple[Path, str]],
        skipped: int,
        seconds: float | None = None,
        err: bool = False,
    ) -> None:
        """Print what was done: one line for a file, a summary of a folder."""
        for path, reason in failed:
            typer.echo(f"Error: {path}: {reason}", err=True)
        if self.json:
            files = [dataclasses.asdict(report) for report in reports]
            failures = [{"source": str(path), "reason": reason} for path, reason in failed]
            print_json({"files": files, "failed": failures, "skipped": skipped}, err)
        elif self.quiet:
            return
        elif len(reports) == 1 and not failed and not skipped and seconds is None:
            typer.echo(self.describe(reports[0]), err=err)
        else:
            duration = sum(report.duration for report in reports)
            speed = f", {duration / seconds:.1f}x real time" if seconds and duration else ""
            typer.echo(
                f"{len(reports)} done ({duration / 3600:.2f} h of audio{speed}), {skipped} were there already,"
                f" {len(failed)} failed"
            )
