"""How fast a folder of recordings becomes codes, beside the model by itself and a `map` with transformers' own Mimi.

    python benchmarks/corpus.py                        # 1000 clips of 1 to 20 s: about half an hour on two cores
    python benchmarks/corpus.py --num-proc 1           # and the folder once more, in one process
    python benchmarks/corpus.py --profile --clips 100  # where `mimi-hf tokenize` spends its time
    python benchmarks/corpus.py --smoke                # does it run? (figures mean nothing)

The clips are a synthetic voice in files of several formats, sampling rates and channels. Figures are seconds of audio
per second, in one run:

- "the model by itself": `model.encode` on tensors, the fastest of some shapes (batch x length), median;
- "mimi-hf tokenize": the command on the folder, with its options as they are, from its start to its end;
- "map …": `datasets` and `map(batched=True, batch_size=8)` on some of the clips, with a model that is loaded and warm.

Machines speed up and slow down. So the model by itself is measured right before and right after each command, and of
the maps one half comes before all else, the other half after it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import peers
import torch
import typer
from clips import Clips, make_clips
from maps import NATIVE, OURS, QUANTIZERS, Maps
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mimi_hf.benchmark import medians, take_turns
from mimi_hf.inference.timing import describe_machine

LEAST = 99.99  # % of codes that must not depend on neighbours, batches and processes
SELF, COMMAND = "the model by itself", "mimi-hf tokenize"
EQUAL = "codes equal to those of mimi-hf tokenize"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    clips: in the folder.
    native_clips: of these, how many the maps take.
    alone: clips whose codes are compared with those that the model gives of each alone.
    shapes: recordings at once, and their seconds, for the model by itself.
    repeats: counted turns of it, each time.
    num_proc: processes of a further run of the command; none by default.
    device: as the command's.
    """

    clips: int = 1000
    native_clips: int = 100
    alone: int = 40
    shapes: tuple[tuple[int, float], ...] = ((1, 5.0), (1, 10.0), (1, 20.0), (4, 5.0), (8, 2.0), (1, 120.0))
    repeats: int = 3
    num_proc: int | None = None
    device: str | None = None


SMOKE = Plan(clips=12, native_clips=6, alone=4, shapes=((1, 1.0), (2, 1.0)), repeats=1)


# What is measured


class ByItself:
    """The model by itself, measured now and then."""

    def __init__(self, model, plan: Plan):
        self.repeats, self.device, self.rounds = plan.repeats, model.device, []
        self.calls, self.audio = {}, {}
        for batch, length in plan.shapes:
            name = f"{batch} x {length:g} s"
            sound = peers.make_audio(round(length * peers.RATE), batch).to(model.device)
            self.calls[name] = partial(model.encode, sound, num_quantizers=QUANTIZERS)
            self.audio[name] = batch * length

    def measure(self):
        """One more round."""
        self.rounds.append(take_turns(self.calls, self.repeats, device=self.device))

    def rates(self, rounds: slice = slice(None)) -> dict[str, float]:
        """Audio seconds per second of each shape, the median over some rounds."""
        chosen = self.rounds[rounds]
        times = {name: [seconds for one in chosen for seconds in one[name]] for name in self.calls}
        return {name: self.audio[name] / seconds for name, seconds in medians(times).items()}

    def best(self, rounds: slice = slice(None)) -> float:
        """That of the fastest shape."""
        return max(self.rates(rounds).values())

    def describe(self) -> dict:
        """For JSON."""
        every = [slice(number, number + 1) for number in range(len(self.rounds))]
        return {"rate": self.best(), "by shape": self.rates(), "best of each round": [self.best(one) for one in every]}


def tokenize(clips: Clips, output: Path, *options) -> float:
    """Seconds that `mimi-hf tokenize` takes, as a user waits for it."""
    arguments = ["tokenize", clips.folder, output, "--json", *options]
    command = [sys.executable, "-c", "from mimi_hf.cli import main; main()", *map(str, arguments)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"mimi-hf tokenize ended with status {done.returncode}:\n{done.stderr}")
    totals = json.loads(done.stdout)["totals"]
    if (totals["examples"], totals["failures"]) != (len(clips.seconds), 0):
        raise RuntimeError(f"mimi-hf tokenize made {totals['examples']} examples of {len(clips.seconds)} clips.")
    return seconds


def read_codes(output: Path) -> dict[str, np.ndarray]:
    """The codes of a tokenized folder by id, each (K, F)."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["id", "audio_codes"]) for path in sorted(output.glob("data/*.parquet"))]
    return {row["id"]: np.array(row["audio_codes"]) for table in tables for row in table.to_pylist()}


def encode_alone(model, clips: Clips, names: list[str]) -> dict[str, np.ndarray]:
    """The codes of each clip by itself, each (K, F)."""
    from mimi_hf.audio import read_audio

    codes = {}
    for name in names:
        audio = torch.from_numpy(read_audio(clips.folder / name, peers.RATE, 1)[0])[None].to(model.device)
        codes[name] = model.encode(audio, num_quantizers=QUANTIZERS).audio_codes[0].cpu().numpy()
    return codes


def agreement(ours: dict, theirs: dict, leave_out: int = 0) -> dict:
    """The part of codes in `theirs` that equal `ours`; `leave_out` of the last frames do not count."""
    pairs = [(ours[name], codes) for name, codes in theirs.items()]
    if any(one.shape != other.shape for one, other in pairs):
        raise RuntimeError("Codes of the same clip differ in shape.")
    same = [(one == other)[:, : one.shape[1] - leave_out] for one, other in pairs]
    codes, equal = sum(each.size for each in same), sum(int(each.sum()) for each in same)
    return {"clips": len(pairs), "codes": codes, "equal": equal, "%": round(100 * equal / max(1, codes), 4)}


# Runs


def measure(plan: Plan, checkpoint: Path | str, device: str, clips: Clips, scratch: Path, console: Console) -> dict:
    """All of it; see the top of this file for the order."""
    from mimi_hf import MimiModel

    model = MimiModel.from_pretrained(checkpoint).eval().to(device)
    by_itself = ByItself(model, plan)
    chosen = clips.link(clips.some(plan.native_clips), scratch / "chosen")
    halves = np.array_split(list(chosen.seconds), 2)
    options = ("--model", checkpoint, *(("--device", device) if plan.device else ()))

    maps = Maps(checkpoint, device, chosen)
    maps.measure(list(halves[0]))
    by_itself.measure()
    rows, codes = {}, {}
    for number, (name, more) in enumerate(commands(plan).items()):
        seconds = tokenize(clips, scratch / f"codes-{number}", *options, *more)
        console.print(f"{name}: {seconds:.1f} s", highlight=False)
        codes[name] = read_codes(scratch / f"codes-{number}")
        by_itself.measure()
        best = by_itself.best(slice(-2, None))  # before and after
        rows[name] = {**row(seconds, clips.total()), "ratio to the model by itself": clips.total() / seconds / best}
    maps.measure(list(halves[1]))
    for name, seconds in maps.seconds.items():
        rows[name] = row(seconds, chosen.total())
    for each in rows.values():
        each["ratio to transformers"] = each["rate"] / rows[NATIVE]["rate"]

    reference = codes.pop(COMMAND)
    codes |= {"each clip alone": encode_alone(model, clips, clips.some(plan.alone)), OURS: maps.codes[OURS]}
    codes |= tokenize_in_other_ways(chosen, scratch, options)
    equal = {name: agreement(reference, other) for name, other in codes.items()}
    # transformers pads inside every convolution, which changes the last frame.
    others = {f"{NATIVE}, but for the last frame": agreement(reference, maps.codes[NATIVE], leave_out=1)}
    return {SELF: by_itself.describe(), "rows": rows, EQUAL: equal, "for comparison": others}


def commands(plan: Plan) -> dict[str, tuple]:
    """The command, with its options as they are, and with processes, where these were asked for."""
    options = {COMMAND: ()}
    if plan.num_proc:
        size = max(1, -(-plan.clips // (4 * plan.num_proc)))  # a process takes whole shards
        options[f"{COMMAND} --num-proc {plan.num_proc}"] = ("--num-proc", plan.num_proc, "--shard-size", size)
    return options


def tokenize_in_other_ways(clips: Clips, scratch: Path, options: tuple) -> dict[str, dict]:
    """Codes that must be the same whatever the number of processes, and the batches."""
    ways = {
        "one process": ("--num-proc", 1),
        "two processes": ("--num-proc", 2, "--shard-size", max(1, len(clips.seconds) // 4)),
        "batches of 40 s": ("--batch-seconds", 40),
        "batches of one": ("--batch-seconds", 0.1),
    }
    codes = {}
    for name, more in ways.items():
        tokenize(clips, scratch / name, *options, *more)
        codes[name] = read_codes(scratch / name)
    return codes


def row(seconds: float, audio: float) -> dict:
    return {"audio seconds": audio, "seconds": seconds, "rate": audio / seconds}


def profile(plan: Plan, checkpoint: Path | str, device: str, clips: Clips, scratch: Path, console: Console) -> dict:
    """Where the command spends its time, from its start to its end."""
    from mimi_hf import MimiModel

    by_itself = ByItself(MimiModel.from_pretrained(checkpoint).eval().to(device), plan)
    by_itself.measure()
    report = scratch / "profile.json"
    script = Path(__file__).with_name("tokenize_profile.py")
    command = [sys.executable, script, report, clips.folder, scratch / "codes", "--model", checkpoint, "--quiet"]
    command += ["--device", device] if plan.device else []
    begin, clock = time.perf_counter(), time.time()
    subprocess.run(list(map(str, command)), check=True)
    seconds = time.perf_counter() - begin
    by_itself.measure()
    found = json.loads(report.read_text())
    start = found["began"] - clock
    parts = {"start of Python": start, **found["parts"], "end of Python": seconds - found["seconds"] - start}
    table = Table("", "s", "%", title=f"{clips.total():.0f} s of audio in {seconds:.1f} s")
    for name, part in sorted(parts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{part:.2f}", f"{100 * part / seconds:.1f}")
    console.print(table)
    rates = {
        "of all": clips.total() / seconds,
        "while the model computes": clips.total() / parts["the model"],
        SELF: by_itself.best(),
    }
    for name, rate in rates.items():
        console.print(f"audio seconds per second, {name}: {rate:.2f}", highlight=False)
    console.print(
        f"CPU seconds: {found['CPU seconds']:.1f}, of readers {found['reader CPU seconds']:.1f}", highlight=False
    )
    return {
        **row(seconds, clips.total()),
        "rates": rates,
        "parts": parts,
        "CPU seconds of readers": found["reader CPU seconds"],
        "CPU seconds of all": found["CPU seconds"],
    }


def show(result: dict, console: Console):
    table = Table("", "audio s", "s", "audio s/s", "/ model", "/ native", box=SIMPLE)
    table.add_row(SELF, "", "", f"{result[SELF]['rate']:.2f}", "", "")
    for name, figures in result["rows"].items():
        own = figures.get("ratio to the model by itself")
        table.add_row(
            name,
            f"{figures['audio seconds']:.0f}",
            f"{figures['seconds']:.1f}",
            f"{figures['rate']:.2f}",
            "" if own is None else f"{own:.2f}",
            f"{figures['ratio to transformers']:.2f}",
        )
    console.print(table)
    for name, found in {**result[EQUAL], **result["for comparison"]}.items():
        console.print(f"{name}: {found['%']} % of {found['codes']} codes of {found['clips']} clips", highlight=False)


def tiny_checkpoint(folder: Path) -> Path:
    """A seeded model of a small width and the published frame."""
    import bitstream

    bitstream.load(None, smoke=True)[0].save_pretrained(folder / "mimi")
    return folder / "mimi"


def rounded(value):
    """Six digits of each figure."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(
    model: Annotated[str | None, typer.Option(help="A folder or the id of a model; seeded weights by default.")] = None,
    clips: Annotated[int | None, typer.Option(help="In the folder.", min=2, show_default="1000")] = None,
    native_clips: Annotated[int | None, typer.Option(help="For the maps.", min=2, show_default="100")] = None,
    num_proc: Annotated[
        int | None, typer.Option(help="Measure the command with so many processes, too.", min=2)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ….", show_default="as the command")] = None,
    repeats: Annotated[int | None, typer.Option(help="Counted turns of the model by itself.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch, here and in the command.")] = None,
    profiled: Annotated[bool, typer.Option("--profile", help="Where the command spends its time, alone.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny model, 12 clips, nothing written.")] = False,
):
    """Measure how fast a folder of recordings becomes codes."""
    given = {
        "clips": clips,
        "native_clips": native_clips,
        "num_proc": num_proc,
        "repeats": repeats,
        "device": device,
    }
    plan = replace(SMOKE if smoke else Plan(), **{name: value for name, value in given.items() if value})
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mimi-hf-benchmark-") as temporary:
        scratch = Path(temporary)
        make = tiny_checkpoint if smoke else lambda folder: peers.make_checkpoints(folder)[0]
        checkpoint = model or make(scratch)
        corpus = make_clips(scratch / "clips", plan.clips)
        console.print(f"{plan.clips} clips of {corpus.total():.0f} s together")
        run = profile if profiled else measure
        result = run(plan, checkpoint, place, corpus, scratch, console)
    result = rounded({**describe(plan, model, smoke, corpus, place), **result})
    if not profiled:
        show(result, console)
    if not smoke:
        name = "corpus_profile.json" if profiled else "corpus.json"
        output.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(json.dumps(result, indent=2) + "\n")
    depends = [name for name, found in result.get(EQUAL, {}).items() if found["%"] < LEAST]
    if depends:
        console.print(f"Codes depend on what they must not depend on: {', '.join(depends)}")
        raise typer.Exit(1)


def describe(plan: Plan, model: str | None, smoke: bool, clips: Clips, device: str) -> dict:
    """What ran where, on what."""
    machine = describe_machine(device)
    machine["versions"] |= {name: version(name) for name in ("datasets", "soundfile", "soxr", "pyarrow")}
    named = "tiny seeded weights" if smoke else "seeded weights"
    if model:
        named = Path(model).name if Path(model).exists() else model
    return {
        "machine": machine,
        "model": named,
        "codebooks": QUANTIZERS,
        "clips": {"number": plan.clips, "seconds": clips.total(), "for the maps": min(plan.native_clips, plan.clips)},
    }


if __name__ == "__main__":
    typer.run(main)
