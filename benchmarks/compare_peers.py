"""Compare this library with the other implementations of Mimi, side by side in one process.

    python benchmarks/compare_peers.py                      # everything, into benchmarks/results/
    python benchmarks/compare_peers.py --smoke              # does it run? (figures mean nothing)
    python benchmarks/compare_peers.py --seconds 12 --seconds 60 --dtype float32

Implementations take turns within each row, after a warm-up. Figures are medians; so are ratios, of the times of one
turn, since machines speed up and slow down. A ratio above 1 says that this library is faster. "agreement" is the part
of codes that equal the other's, or the largest difference of audio by its peak.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import peers
import torch
import typer
from rich.console import Console
from rich.table import Table

FRAME, RATE = peers.FRAME, peers.RATE


def machine():
    """What ran where."""
    versions = {}
    for name in ("mimi_hf", "torch", "transformers", "moshi", "rustymimi", "numpy"):
        try:
            versions[name] = __import__("importlib.metadata").metadata.version(name)
        except ImportError:
            versions[name] = None
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines if ":" in line}
        cpu = f"{fields.get('model name', cpu)} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def take_turns(calls, repeats):
    """Seconds of each call in each turn, after one warm-up each."""
    times = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return times


def medians(times, scale=1.0):
    return {name: scale * statistics.median(values) for name, values in times.items()}


def ratios(times):
    """How many times slower than ours each of the others is: the median over turns."""
    ours = times[peers.Ours.name]
    return {
        name: statistics.median(theirs / mine for theirs, mine in zip(values, ours, strict=True))
        for name, values in times.items()
        if name != peers.Ours.name
    }


def agreement(task, ours, theirs):
    if task == "encode":
        same = min(ours.shape[-1], theirs.shape[-1])
        return f"{100 * (ours[..., :same] == theirs[..., :same]).float().mean():.2f} % of codes"
    same = min(ours.shape[-1], theirs.shape[-1])
    difference = (ours[..., :same].float() - theirs[..., :same].float()).abs().max()
    return f"{difference / ours.float().abs().max():.1e} of the peak"


def offline_row(implementations, task, seconds, batch, repeats):
    audio = peers.make_audio(int(seconds * RATE), batch)
    codes = implementations[0].encode(audio)
    calls, outputs = {}, {}
    for implementation in implementations:
        source = audio if task == "encode" else codes
        method = getattr(implementation, task)
        calls[implementation.name] = lambda method=method, source=source: method(source)
        outputs[implementation.name] = method(source)
    times = take_turns(calls, repeats)
    return {
        "speed": {name: batch * seconds / value for name, value in medians(times).items()},
        "unit": "audio seconds per second",
        "ratio": ratios(times),
        "agreement": agree(task, outputs),
    }


def live_row(implementations, task, batch, frames):
    """Per-frame latencies, the implementations taking turns frame by frame."""
    audio = peers.make_audio(frames * FRAME, batch)
    codes = implementations[0].encode(audio)
    steps, outputs = {}, {}
    for implementation in implementations:
        try:
            steps[implementation.name] = getattr(implementation, f"{task}_stream")(batch)
            outputs[implementation.name] = []
        except ImportError:
            continue  # it has no batches
    times = {name: [] for name in steps}
    for frame in range(frames):
        for name, step in steps.items():
            chunk = (
                audio[..., frame * FRAME : (frame + 1) * FRAME] if task == "encode" else codes[..., frame : frame + 1]
            )
            chunk = chunk.contiguous()
            begin = time.perf_counter()
            out = step(chunk)
            times[name].append(time.perf_counter() - begin)
            outputs[name].append(out)
    times = {name: values[frames // 5 :] for name, values in times.items()}
    return {
        "milliseconds": medians(times, 1000),
        "99th percentile": {name: 1000 * sorted(values)[int(0.99 * len(values))] for name, values in times.items()},
        "unit": "ms per frame of 80 ms",
        "ratio": ratios(times),
        "agreement": agree(task, {name: torch.cat(out, dim=2) for name, out in outputs.items()}),
    }


def agree(task, outputs):
    ours = outputs[peers.Ours.name]
    return {name: agreement(task, ours, out) for name, out in outputs.items() if name != peers.Ours.name}


def import_seconds(code, repeats):
    times = []
    for _ in range(repeats):
        program = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
        times.append(float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout))
    return statistics.median(times)


def show(rows) -> str:
    """The rows as Markdown."""
    names = [peer.name for peer in peers.PEERS]
    lines = ["| | unit | " + " | ".join(names) + " | ratio to the fastest other | agreement |"]
    lines.append("|" + "---|" * (len(names) + 4))
    for row in rows:
        figures = row.get("speed") or row["milliseconds"]
        cells = [f"{figures[name]:.1f}" if name in figures else "" for name in names]
        ratio = min(row["ratio"].values()) if row["ratio"] else float("nan")
        agreed = "; ".join(f"{name} {value}" for name, value in row["agreement"].items())
        lines.append(f"| {row['name']} | {row['unit']} | {' | '.join(cells)} | {ratio:.2f} | {agreed} |")
    return "\n".join(lines)


@torch.inference_mode()
def main(
    seconds: Annotated[list[float] | None, typer.Option(help="Lengths of audio for the offline rows.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    repeats: Annotated[int, typer.Option(help="Counted turns per row.")] = 5,
    frames: Annotated[int, typer.Option(help="Frames of each live row.")] = 150,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="One short turn of each kind, nothing written.")] = False,
):
    """Compare the implementations of Mimi that are installed."""
    console = Console()
    seconds, dtypes = seconds or ([2.0] if smoke else [2.0, 12.0, 60.0]), dtype or ["float32"]
    repeats, frames = (1, 10) if smoke else (repeats, frames)
    rows = []
    with peers.checkpoint_folder() as folder:
        checkpoints = peers.make_checkpoints(Path(folder))
        for kind in dtypes:
            for codebooks in (8,) if smoke else (8, 32):
                implementations = load(checkpoints, codebooks, getattr(torch, kind), console)
                for task in ("encode", "decode"):
                    for length in seconds:
                        # Left out where it alone would take longer than all others together.
                        running = [one for one in implementations if length < 30 or not isinstance(one, peers.Candle)]
                        row = offline_row(running, task, length, 1, repeats)
                        row["name"] = f"{task} {length:g} s, {codebooks} codebooks, {kind}"
                        rows.append(row)
                        console.print(rows[-1]["name"], rows[-1]["ratio"])
                    row = live_row(implementations, task, 1, frames)
                    row["name"] = f"live {task}, {codebooks} codebooks, {kind}"
                    rows.append(row)
                    console.print(rows[-1]["name"], rows[-1]["ratio"])
    imports = {
        "transformers, torch": import_seconds("import transformers, torch", 1 if smoke else 5),
        "mimi_hf beyond": import_seconds("import mimi_hf", 1 if smoke else 5)
        - import_seconds("import transformers", 1 if smoke else 5),
    }
    table = Table(title="Seconds to import")
    for name, value in imports.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    console.print(show(rows), soft_wrap=True, markup=False)
    if not smoke:
        output.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine(), "imports": imports, "rows": rows}
        (output / "compare_peers.json").write_text(json.dumps(result, indent=2) + "\n")
        description = "\n".join(f"- {key}: {value}" for key, value in result["machine"].items())
        (output / "compare_peers.md").write_text(
            f"# Comparison with the other implementations\n\n{description}\n\n{show(rows)}\n"
        )


def load(checkpoints, codebooks, dtype, console):
    implementations = []
    for peer in peers.PEERS:
        try:
            implementations.append(peer(*checkpoints, codebooks, dtype))
        except ImportError as error:
            console.print(f"without {peer.name}: {error}")
    return implementations


if __name__ == "__main__":
    typer.run(main)
