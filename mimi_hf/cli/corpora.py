"""What the commands on corpora share: runners, progress, the report."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from .console import INTERRUPTED, explaining, fail, open_console, print_json, spinning

if TYPE_CHECKING:
    from mimi_hf.corpus.jobs.job import Job


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The options of a corpus job: who does it, where, and how it reports."""

    engine: str
    num_proc: int | None
    num_shards: int | None
    shard_index: int | None
    ray_address: str | None
    ray_actors: int | None
    device: str | None
    push_to_hub: str | None
    private: bool
    quiet: bool
    json: bool

    def check(self, output: str) -> None:
        """Refuse options that do not go together, before anything heavy begins."""
        if self.engine not in ("local", "ray"):
            raise typer.BadParameter(f"--engine {self.engine} must be local or ray.")
        if self.engine == "local" and (self.ray_address or self.ray_actors):
            raise typer.BadParameter("--ray-address and --ray-actors belong to --engine ray.")
        if self.engine == "ray" and self.num_proc:
            raise typer.BadParameter("--num-proc belongs to --engine local; Ray has --ray-actors.")
        if self.private and not self.push_to_hub:
            raise typer.BadParameter("--private says how to upload: add --push-to-hub USER/NAME.")
        if (self.num_shards is None) != (self.shard_index is None):
            raise typer.BadParameter("--num-shards and --shard-index belong together, like 64 and 7.")
        if self.num_shards is not None and self.shard_index is not None and self.shard_index >= self.num_shards:
            raise typer.BadParameter(f"--shard-index counts from 0 to {self.num_shards - 1}.")
        if self.push_to_hub:
            if "://" in output:
                raise typer.BadParameter("--push-to-hub uploads a folder of this machine; OUT is elsewhere.")
            from huggingface_hub import get_token

            if get_token() is None:
                raise fail("--push-to-hub needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")


@contextmanager
def planning(message: str, quiet: bool) -> Iterator[None]:
    """Show a spinner. What goes wrong becomes one message and status 1; Ctrl-C becomes status 130."""
    try:
        with spinning(message, quiet), explaining():
            yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def run_job(job: "Job", options: JobOptions) -> None:
    """Do this process's part of a job. Then, if all parts are done, join them."""
    from mimi_hf.corpus.jobs.job import TOTALS
    from mimi_hf.corpus.runners.ranks import my_part

    with planning("Planning …", options.quiet):
        parts, part = my_part(options.num_shards, options.shard_index)
        job.begin()
        indices = [index for index in job.unfinished() if index % parts == part]
    if indices:
        try:
            with explaining("What is done stays; the same command goes on from here."):
                _run_shards(job, indices, options)
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command goes on from here.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    with planning("Joining …", options.quiet):
        # Where all is done, nothing is written again.
        joined = not indices and job.output.exists(TOTALS)
        totals = job.output.read_json(TOTALS) if joined else job.finish()
        if totals is not None:
            job.output.remove_unfinished(alone=parts == 1)
        url = _push(job, options.push_to_hub, options.private) if totals is not None and options.push_to_hub else None
    _tell(job, totals, url, len(indices), options)


def _run_shards(job: "Job", indices: list[int], options: JobOptions) -> None:
    """Choose the runner, and show its progress."""
    from mimi_hf.corpus.runners.local import default_processes, run_here, run_processes
    from mimi_hf.corpus.runners.ranks import local_rank
    from mimi_hf.corpus.runners.ray import run_ray

    with _Progress(len(indices), len(job.shards), options.quiet) as watch:
        if options.engine == "ray":
            run_ray(job, indices, options.ray_actors, address=options.ray_address, device=options.device, watch=watch)
            return
        device, rank = options.device, local_rank()
        processes = options.num_proc or (1 if rank is not None or device else default_processes())
        if device is None and rank is not None:
            import torch

            device = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None
        if (options.num_proc or 1) > len(indices) and not options.quiet:
            typer.echo(
                f"{len(indices)} shards keep no more than {len(indices)} processes busy. A smaller --shard-size, in a"
                " new folder, makes more of them (not of tars and data sets of the Hub, where a file is a shard).",
                err=True,
            )
        if min(processes, len(indices)) == 1:
            run_here(job, indices, device, watch)
        else:
            run_processes(job, indices, processes, device, watch)


class _Progress:
    """A progress bar over shards: hours done, times real time, time left. A runner calls it."""

    def __init__(self, todo: int, shards: int, quiet: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}")
        self.console = open_console(quiet)
        hidden = quiet or not self.console.is_terminal  # a log gets a line a minute instead
        self.bar = Progress(*columns, console=self.console, disable=hidden, transient=True)
        self.task = self.bar.add_task("", total=shards, completed=shards - todo, told="")
        self.todo, self.before, self.shards = todo, shards - todo, shards
        self.begin = self.logged = time.monotonic()

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, seconds: float, done: int) -> None:
        now = time.monotonic()
        passed = max(1e-9, now - self.begin)
        told = f"{seconds / 3600:.2f} h, {seconds / passed:.1f}x real time"
        if done:
            left = int(passed / done * (self.todo - done))
            told += f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        self.bar.update(self.task, completed=self.before + done, told=told)
        if not self.console.is_terminal and now > self.logged + 60:
            self.console.print(f"{self.before + done} of {self.shards} shards, {told}", highlight=False)
            self.logged = now


def _push(job: "Job", name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
    folder = job.output.path("")
    api.upload_folder(
        repo_id=url.repo_id,
        repo_type="dataset",
        folder_path=folder,
        ignore_patterns=[".unfinished/*"],
        commit_message=f"{type(job).__name__.removesuffix('Job')} with mimi_hf",
    )
    return str(url)


def _tell(job: "Job", totals: dict[str, Any] | None, url: str | None, made: int, options: JobOptions) -> None:
    left = len(job.unfinished())
    facts: dict[str, Any] = {
        "output": job.output.location,
        "shards": len(job.shards),
        "made_now": made,
        "left": left,
        "url": url,
    }
    if totals is not None:
        facts["totals"] = totals
    if options.json:
        print_json(facts)
    elif not options.quiet:
        typer.echo(f"{job.output.location}: {made} shards made, {len(job.shards) - left} of {len(job.shards)} there")
        for name in ("examples", "hours", "frames", "failures"):
            if name in facts.get("totals", {}):
                typer.echo(f"{name:<10}{facts['totals'][name]:,}")
        if facts.get("totals", {}).get("failures"):
            typer.echo("failures.parquet says why.")
        if url:
            typer.echo(url)
        if left:
            typer.echo("The others are left to other machines, or to the next run.")
