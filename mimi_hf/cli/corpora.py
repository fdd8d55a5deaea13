"""What the commands on corpora share: engines, progress, the end."""

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from .common import fail

NumProcOption = Annotated[
    int | None,
    typer.Option(
        help="Processes on this machine.", min=1, show_default="a GPU each, or a core each, if there is memory"
    ),
]
NumShardsOption = Annotated[
    int | None,
    typer.Option(help="Parts that all machines share the work in.", min=1, show_default="as torchrun or Slurm says"),
]
ShardIndexOption = Annotated[
    int | None, typer.Option(help="Which part this is, from 0.", min=0, show_default="as torchrun or Slurm says")
]
EngineOption = Annotated[str, typer.Option(help="local, or ray: the actors of a Ray cluster.")]
RayAddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster.", show_default="RAY_ADDRESS, or this machine")
]
ActorsOption = Annotated[int | None, typer.Option(help="Ray actors.", min=1, show_default="as many as fit")]
PushOption = Annotated[
    str | None,
    typer.Option(metavar="USER/NAME", help="Upload OUT as a data set of the Hub when all is done.", show_default=False),
]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make that data set private, where it is new.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


EXPLAINED = (ValueError, TypeError, OSError, ImportError, RuntimeError)


@dataclass(frozen=True)
class Work:
    """How a job is to be done, as the options say."""

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
    json_report: bool

    def check(self, output: str):
        """Refuse what does not go together, before anything heavy begins."""
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
        if self.num_shards is not None and self.shard_index >= self.num_shards:
            raise typer.BadParameter(f"--shard-index counts from 0 to {self.num_shards - 1}.")
        if self.push_to_hub:
            if "://" in output:
                raise typer.BadParameter("--push-to-hub uploads a folder of this machine; OUT is elsewhere.")
            from huggingface_hub import get_token

            if get_token() is None:
                raise fail("--push-to-hub needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")


@contextmanager
def explained(quiet: bool, message: str):
    """A spinner; what goes wrong becomes one message and status 1."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, quiet=quiet)
    try:
        with console.status(escape(message)):
            yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except EXPLAINED as error:
        raise fail(str(error)) from None


def do(job, work: Work):
    """Do this process's part of a job, then join all parts, where all are done."""
    from mimi_hf.corpus.jobs.job import TOTALS
    from mimi_hf.corpus.runners import local as engines

    with explained(work.quiet, "Planning …"):
        parts, part = engines.my_part(work.num_shards, work.shard_index)
        job.begin()
        indices = [index for index in job.unfinished() if index % parts == part]
    try:
        _run(job, indices, work, _Progress(len(indices), len(job.shards), work))
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except EXPLAINED as error:
        raise fail(f"{error}\nWhat is done stays; the same command goes on from here.") from None
    with explained(work.quiet, "Joining …"):
        # Where all is done, nothing is written again.
        joined = not indices and job.output.exists(TOTALS)
        totals = job.output.read_json(TOTALS) if joined else job.finish()
        if totals is not None:
            job.output.remove_unfinished(alone=parts == 1)
        url = _push(job, work) if totals is not None and work.push_to_hub else None
    _tell(job, totals, url, len(indices), work)


def _run(job, indices, work: Work, watch):
    from mimi_hf.corpus.runners import local as engines

    if not indices:
        return
    with watch:
        if work.engine == "ray":
            engines.run_ray(job, indices, work.ray_actors, address=work.ray_address, device=work.device, watch=watch)
            return
        device, rank = work.device, engines.local_rank()
        processes = work.num_proc or (1 if rank is not None or device else engines.default_processes())
        if device is None and rank is not None:
            device = _gpu_of_rank(rank)
        if (work.num_proc or 1) > len(indices) and not work.quiet:
            typer.echo(
                f"{len(indices)} shards keep no more than {len(indices)} processes busy. A smaller --shard-size, in a"
                " new folder, makes more of them (not of tars and data sets of the Hub, where a file is a shard).",
                err=True,
            )
        if min(processes, len(indices)) == 1:
            engines.run_here(job, indices, device, watch)
        else:
            engines.run_processes(job, indices, processes, device, watch)


def _gpu_of_rank(rank: int) -> str | None:
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None


class _Progress:
    """A progress bar over shards that an engine can call."""

    def __init__(self, todo: int, shards: int, work: Work):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from mimi_hf.corpus.runners.local import Speed

        columns = TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}")
        self.console = Console(stderr=True, quiet=work.quiet)
        hidden = work.quiet or not self.console.is_terminal  # a log gets a line a minute instead
        self.bar = Progress(*columns, console=self.console, disable=hidden, transient=True)
        self.task = self.bar.add_task("", total=shards, completed=shards - todo, told="")
        self.before, self.shards, self.speed = shards - todo, shards, Speed(todo)
        self.logged = time.monotonic()

    def __enter__(self):
        self.bar.start()

    def __exit__(self, *_):
        self.bar.stop()

    def __call__(self, seconds: float, done: int):
        told = self.speed.describe(seconds, done)
        self.bar.update(self.task, completed=self.before + done, told=told)
        if not self.console.is_terminal and time.monotonic() > self.logged + 60:
            self.console.print(f"{self.before + done} of {self.shards} shards, {told}", highlight=False)
            self.logged = time.monotonic()


def _push(job, work: Work) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(work.push_to_hub, repo_type="dataset", private=work.private or None, exist_ok=True)
    folder = job.output.path("")
    api.upload_folder(
        repo_id=url.repo_id,
        repo_type="dataset",
        folder_path=folder,
        ignore_patterns=[".unfinished/*"],
        commit_message=f"{type(job).__name__.removesuffix('Job')} with mimi_hf",
    )
    return str(url)


def _tell(job, totals: dict | None, url: str | None, made: int, work: Work):
    left = len(job.unfinished())
    facts = {"output": job.output.location, "shards": len(job.shards), "made_now": made, "left": left, "url": url}
    if totals is not None:
        facts["totals"] = totals
    if work.json_report:
        json.dump(facts, sys.stdout, indent=1)
        typer.echo()
    elif not work.quiet:
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
