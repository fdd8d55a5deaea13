"""Peak memory of encoding and decoding long audio, beyond the arrays of input and output.

    python benchmarks/memory.py --minutes 1 --minutes 60

Each direction and length runs in a process of its own, whose resident memory is sampled every few milliseconds.
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import peers
import psutil
import torch
import typer


def measure(folder: Path, direction: str, minutes: float) -> dict:
    """One call in this process."""
    from mimi_hf import MimiModel

    model = MimiModel.from_pretrained(folder)
    samples = int(minutes * 60 * peers.RATE) // peers.FRAME * peers.FRAME
    frames = samples // peers.FRAME
    audio = torch.randn(1, 1, samples if direction == "encode" else peers.FRAME) * 0.1
    codes = torch.randint(0, 2048, (1, 32, frames if direction == "decode" else 1))
    with torch.inference_mode():
        # What is made once and kept (derived codebooks, memory formats) belongs to the model, not to the audio.
        model.decode(model.encode(torch.zeros(1, 1, 3 * peers.FRAME)).audio_codes)
        with PeakMemory() as peak:
            begin = time.perf_counter()
            out = model.encode(audio).audio_codes if direction == "encode" else model.decode(codes).audio_values
            seconds = time.perf_counter() - begin
    above = peak.bytes
    return {
        "direction": direction,
        "minutes": minutes,
        "peak above start, MB": round(above / 1e6),
        "output, MB": round(out.numel() * out.element_size() / 1e6),
        "beyond the output, MB": round((above - out.numel() * out.element_size()) / 1e6),
        "x real time": round(60 * minutes / seconds, 1),
    }


class PeakMemory:
    """The most memory in use while the block runs, in bytes above that at its start: `.bytes`, once it is left.

    On a GPU it is what torch has allocated there, elsewhere the resident memory of the process.

        with PeakMemory() as peak:
            work()
        print(peak.bytes)
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.process = psutil.Process()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._sample)

    def __enter__(self):
        give_back_memory()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start = self.peak = self.process.memory_info().rss
            self.thread.start()
        return self

    def _sample(self):
        while not self.stopped.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        if self.on_gpu:
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.stopped.set()
            self.thread.join()
        self.bytes = self.peak - self.start


def give_back_memory():
    """Hand memory that is free, but kept, back to the system: what reuses it would not be counted."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def main(
    minutes: Annotated[list[float] | None, typer.Option(help="Lengths of audio.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="Six seconds, nothing written.")] = False,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
):
    """Measure the peak memory of long audio."""
    if one:
        print(json.dumps(measure(folder, one, minutes[0])))
        return
    rows = []
    with peers.checkpoint_folder() as temporary:
        checkpoint, _ = peers.make_checkpoints(Path(temporary))
        for length in [0.1] if smoke else minutes or [1, 60]:
            for direction in ("encode", "decode"):
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    direction,
                    "--folder",
                    checkpoint,
                    "--minutes",
                    str(length),
                ]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rows.append(json.loads(printed.splitlines()[-1]))
                print(rows[-1])
    if not smoke:
        output.mkdir(parents=True, exist_ok=True)
        (output / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
