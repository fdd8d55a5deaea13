"""Compare this library with the other implementations of Mimi, side by side in one process.

    python benchmarks/compare_peers.py                                  # everything, into benchmarks/results/
    python benchmarks/compare_peers.py --only offline --seconds 600     # some rows, added to those that are there
    python benchmarks/compare_peers.py --model mimi-tiny --audio speech.wav    # a trained model, on speech
    python benchmarks/compare_peers.py --render                         # Markdown and plot again, from the JSON
    python benchmarks/compare_peers.py --smoke                          # does it run? (figures mean nothing)

Implementations take turns within each row, after a warm-up. Figures are medians; so are ratios, of the times of one
turn, since machines speed up and slow down. A ratio above 1 says that this library is faster. "agreement" is the part
of codes that equal the other's, or the largest difference of audio by its peak. Shares of the machine's rates are
those of our products, counted from the shapes of the layers.
"""

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import memory
import peers
import psutil
import report
import torch
import typer
from rich.console import Console
from rich.table import Table

from mimi_hf import MimiConfig
from mimi_hf.audio import read_audio
from mimi_hf.benchmark import (
    count_work,
    measure_roofline,
    medians,
    percentile,
    ratios,
    take_turns,
)
from mimi_hf.inference.timing import describe_machine, synchronize
from mimi_hf.loading import ModelChoice

FRAME, RATE = peers.FRAME, peers.RATE
LONG = 100  # seconds of audio in a call, from which one turn is enough
LONGEST = 300  # and from which it needs no warm-up
TOO_LONG_FOR_CANDLE = 30  # from there on it takes longer than all others together
FAILURES = (RuntimeError, TypeError, ValueError)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    batches: by default 1 and 8, and 1 for ten minutes and more.
    recording: Tensor, shape = (N,), that takes the place of synthetic audio.
    """

    parts: tuple[str, ...] = tuple(report.PARTS)
    seconds: tuple[float, ...] = (2.0, 12.0, 60.0, 600.0)
    batches: tuple[int, ...] | None = None
    sessions: tuple[int, ...] = (1, 16)
    codebooks: tuple[int, ...] = (8, 32)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    repeats: int = 5
    frames: int = 150
    device: str = "cpu"
    recording: torch.Tensor | None = None

    def audio(self, samples: int, batch: int = 1) -> torch.Tensor:
        """Tensor, shape = (batch, 1, samples)."""
        return peers.make_audio(samples, batch, self.recording).to(self.device)

    def recordings(self):
        """Length and batch of the offline rows."""
        for length in self.seconds:
            for batch in self.batches or ((1, 8) if length < 600 else (1,)):
                yield length, batch


SMOKE = Plan(seconds=(2.0,), batches=(1,), sessions=(2,), codebooks=(8,), repeats=1, frames=3)


def measure(plan: Plan, checkpoints, console) -> Iterator[dict]:
    """The rows of a plan, one after the other."""
    if "start" in plan.parts:
        yield from start_rows(checkpoints, plan.repeats)
    if not set(plan.parts) & {"offline", "live"}:
        return
    for dtype in plan.dtypes:
        for codebooks in plan.codebooks:
            implementations, without = load(plan, checkpoints, codebooks, dtype, console)
            for row in rows_of_kind(plan, implementations, codebooks):
                row.update(codebooks=codebooks, dtype=dtype, without={**without, **row["without"]})
                yield row
            del implementations
            gc.collect()


def load(plan, checkpoints, codebooks, dtype, console):
    """The implementations that run here, and why others do not. Each has made once what it keeps."""
    implementations, without = [], {}
    for kind in (*peers.VARIANTS, *peers.PEERS):
        if not set(kind.parts) & set(plan.parts) - {"start"}:
            continue
        try:
            implementation = kind(checkpoints, codebooks, getattr(torch, dtype), plan.device)
            with torch.inference_mode():
                implementation.decode(implementation.encode(plan.audio(3 * FRAME)))
            implementations.append(implementation)
        except (ImportError, peers.UnavailableError, *FAILURES) as error:
            if kind is peers.Ours:
                raise
            without[kind.name] = reason(error)
            console.print(f"without {kind.name} in {dtype}: {reason(error)}", soft_wrap=True)
    return implementations, without


def reason(error) -> str:
    """The first line of what went wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def rows_of_kind(plan, implementations, codebooks):
    for task in ("encode", "decode"):
        work = count_work(implementations[0].model, task, codebooks)
        if "offline" in plan.parts:
            for length, batch in plan.recordings():
                row = offline_row(taking_part(implementations, "offline"), task, length, batch, plan)
                frames = -(-int(length * RATE) // FRAME)
                yield {**row, "work": work.offline(frames, batch)}
        if "live" in plan.parts:
            for sessions in plan.sessions:
                row = live_row(taking_part(implementations, "live"), task, sessions, plan)
                yield {**row, "work": work.live(sessions)}


def taking_part(implementations, part):
    return [one for one in implementations if part in one.parts]


@torch.inference_mode()
def offline_row(implementations, task, length, batch, plan) -> dict:
    """One call for all of the audio. A first call, which is timed where it is long enough, shows memory and output."""
    audio = plan.audio(int(length * RATE), batch)
    source = audio if task == "encode" else implementations[0].encode(audio)
    calls, peaks, outputs, without, first = {}, {}, {}, {}, {}
    for one in implementations:
        why = refusal(one, length * batch, source)
        if why is None:
            call = partial(getattr(one, task), source)
            try:
                with memory.PeakMemory(plan.device) as peak:
                    begin = time.perf_counter()
                    output = call()
                    synchronize(plan.device)
                    first[one.name] = [time.perf_counter() - begin]
                calls[one.name], peaks[one.name], outputs[one.name] = call, peak.bytes, output.cpu()
                del output
            except FAILURES as error:
                why = reason(error)
        if why is not None:
            without[one.name] = why
    compared = agree(task, outputs)
    outputs.clear()
    if length * batch > LONGEST:
        times = first
    else:
        turns = 1 if length * batch > LONG else plan.repeats
        times = take_turns(calls, turns, int(turns > 1), plan.device)  # a single turn has the first call as its warm-up
    seconds = medians(times)
    return {
        "part": "offline",
        "task": task,
        "audio": length,
        "batch": batch,
        "unit": "audio seconds per second",
        "figures": {name: batch * length / value for name, value in seconds.items()},
        "seconds": seconds,
        "ratio": ratios_of_variants(times),
        "memory": peaks,
        "agreement": compared,
        "without": without,
    }


def refusal(implementation, audio_seconds, source) -> str | None:
    """Why an implementation had better not be called."""
    if isinstance(implementation, peers.Candle) and audio_seconds >= TOO_LONG_FOR_CANDLE:
        return "it would take longer than all others together"
    if isinstance(implementation, peers.Ours):
        return None
    needed = implementation.gigabytes_per_minute * audio_seconds / 60
    free = psutil.virtual_memory().available if source.device.type == "cpu" else torch.cuda.mem_get_info()[0]
    if needed > free / 1e9:
        return f"it needs about {needed:.0f} GB of memory"
    return None


@torch.inference_mode()
def live_row(implementations, task, sessions, plan) -> dict:
    """Frame by frame, the implementations taking turns at each. The first frame shows which of them run."""
    warmup = 1 + plan.frames // 5
    count = 1 + warmup + plan.frames
    audio = plan.audio(count * FRAME, sessions)
    source, size = (audio, FRAME) if task == "encode" else (implementations[0].encode(audio), 1)
    frames = [frame.contiguous() for frame in source.split(size, dim=2)]
    calls, outputs, without = {}, {}, {}
    for one in implementations:
        try:
            step = getattr(one, f"{task}_stream")(sessions)
            outputs[one.name] = [step(frames[0])]
            calls[one.name] = partial(push_next, step, iter(frames[1:]), outputs[one.name])
        except (peers.UnavailableError, *FAILURES) as error:
            without[one.name] = reason(error)
    times = take_turns(calls, plan.frames, warmup, plan.device)
    seconds = medians(times)
    return {
        "part": "live",
        "task": task,
        "sessions": sessions,
        "unit": "ms per frame of 80 ms, median / 99th percentile",
        "figures": {name: 1000 * value for name, value in seconds.items()},
        "99th percentile": {name: 1000 * percentile(values, 99) for name, values in times.items()},
        "seconds": seconds,
        "ratio": ratios_of_variants(times),
        "agreement": agree(task, {name: torch.cat(out, dim=2).cpu() for name, out in outputs.items()}),
        "without": without,
    }


def push_next(step, frames, outputs):
    outputs.append(step(next(frames)))


def start_rows(checkpoints, repeats) -> Iterator[dict]:
    """Seconds to import and to load, the files being in the system's cache."""
    codes = {kind.name: kind.import_code for kind in starting()}
    yield start_row("import, in a fresh process", import_times(codes, repeats))
    beyond = {peers.Ours.name: "import mimi_hf"}
    yield start_row(
        "import mimi_hf after transformers and torch", import_times(beyond, repeats, "import transformers, torch")
    )
    calls = {}
    for kind in starting():
        call = partial(kind, checkpoints, 8, torch.float32)
        try:
            call()
            calls[kind.name] = call
        except ImportError:
            continue  # said where it is missed
    yield start_row("load, float32", take_turns(calls, repeats, warmup=0))


def starting():
    return [kind for kind in (*peers.VARIANTS, *peers.PEERS) if "start" in kind.parts]


def start_row(task, times):
    seconds = medians(times)
    ratio = ratios_of_variants(times)
    return {"part": "start", "task": task, "unit": "seconds", "figures": seconds, "seconds": seconds, "ratio": ratio}


def import_times(codes, repeats, setup="pass"):
    """Seconds of each import in each turn, each in a process of its own; of those that succeed."""
    times = {name: [] for name in codes}
    for _ in range(repeats):
        for name, code in codes.items():
            program = f"import time; {setup}; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
            if done.returncode == 0:
                times[name].append(float(done.stdout.split()[-1]))
    return {name: values for name, values in times.items() if values}


def ratios_of_variants(times) -> dict:
    """How many times as long as each of our variants each peer takes."""
    others = {kind.name for kind in peers.PEERS} & times.keys()
    variants = [kind.name for kind in peers.VARIANTS if kind.name in times]
    return {name: ratios({key: times[key] for key in times if key in others or key == name}, name) for name in variants}


def agree(task, outputs) -> dict:
    """Each implementation's agreement with the first of ours."""
    reference = outputs[peers.Ours.name]
    return {name: agreement(task, reference, out) for name, out in outputs.items() if name != peers.Ours.name}


def agreement(task, ours, theirs) -> str:
    same = min(ours.shape[-1], theirs.shape[-1])
    if task == "encode":
        return f"{100 * (ours[..., :same] == theirs[..., :same]).float().mean():.2f} % of codes"
    difference = (ours[..., :same].float() - theirs[..., :same].float()).abs().max()
    return f"{difference / ours.float().abs().max():.1e} of the peak"


def show(results, console):
    """A table of the ratios, one line per row and variant of ours."""
    names = [kind.name for kind in peers.PEERS]
    table = Table("", "", *names, title="How many times as fast as the others")
    for row in report.in_order(results["rows"]):
        for variant, ratio in row["ratio"].items():
            if ratio:
                figures = (f"{ratio[name]:.2f}" if name in ratio else "" for name in names)
                table.add_row(report.name_row(row), variant, *figures)
    console.print(table)


def run(plan: Plan, output: Path, console: Console, model: str | None = None):
    """Measure, and add to the results in the folder after each row. model: see [`peers.make_checkpoints`]."""
    machine = describe_machine(plan.device)
    old = report.load(output)
    nothing = {"machine": machine, "roofline": {"gemm": {}, "bandwidth": 0.0}, "rows": {}}
    try:
        report.merge(old, nothing)  # before hours of work: do they go together?
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    smoke = plan.frames < 10
    roofline = measure_roofline(plan.device, plan.dtypes, (256,) if smoke else None, 64 if smoke else 512)
    results = report.merge(old, {**nothing, "roofline": {"gemm": roofline.gemm, "bandwidth": roofline.bandwidth}})
    with peers.checkpoint_folder() as folder:
        for row in measure(plan, peers.make_checkpoints(Path(folder), model), console):
            name = report.name_row(row)
            results["rows"][name] = row
            report.save(results, output)
            best = {variant: f"{min(against.values()):.2f}" for variant, against in row["ratio"].items() if against}
            console.print(f"{name}: {best} {row.get('agreement', '')}", soft_wrap=True, markup=False)
    report.render(results, output)
    show(results, console)


def main(
    only: Annotated[list[str] | None, typer.Option(help="start, offline, live.", show_default="all")] = None,
    seconds: Annotated[list[float] | None, typer.Option(help="Lengths of audio, offline.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Recordings at once, offline.")] = None,
    sessions: Annotated[list[int] | None, typer.Option(help="Sessions at once, live.")] = None,
    codebooks: Annotated[list[int] | None, typer.Option(help="Numbers of codebooks.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Counted turns; one where a call takes long.")] = None,
    frames: Annotated[int | None, typer.Option(help="Counted frames of each live row.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ….")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder or mimi-tiny; seeded weights by default.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A recording; a synthetic voice by default.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results.", show_default="results, or results/MODEL")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Write Markdown and plot of what is there.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="All in tiny form, into a temporary folder.")] = False,
):
    """Compare the implementations of Mimi that are installed."""
    console = Console()
    if threads is not None:
        torch.set_num_threads(threads)
    folder = None if model is None else ModelChoice(model).place
    output = output or RESULTS / (Path(model).name if model else "")
    if render:
        results = report.load(output)
        if results is None:
            raise typer.BadParameter(f"There are no results in {output} to render.")
        report.save(results, output)
        report.render(results, output)
        return show(results, console)
    given = {
        "parts": only,
        "seconds": seconds,
        "batches": batch,
        "sessions": sessions,
        "codebooks": codebooks,
        "dtypes": dtype,
        "repeats": repeats,
        "frames": frames,
        "device": device,
    }
    if audio is not None:
        given["recording"] = torch.from_numpy(read_audio(audio, RATE, 1)[0][0])
    if folder is not None:
        most = MimiConfig.from_pretrained(folder).num_quantizers
        given["codebooks"] = [count for count in codebooks or (8, 32) if count <= most] or [most]
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    plan = replace(SMOKE if smoke else Plan(), **given)
    if not set(plan.parts) <= report.PARTS.keys():
        raise typer.BadParameter(f"--only must be one of {', '.join(report.PARTS)}.")
    if not smoke:
        return run(plan, output, console, folder)
    with tempfile.TemporaryDirectory() as temporary:
        run(plan, Path(temporary), console, folder)


if __name__ == "__main__":
    typer.run(main)
