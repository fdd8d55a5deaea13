"""The delay of a live pipe: `mimi-hf encode - -` and `mimi-hf decode - -`, frame by frame in real time.

    python benchmarks/pipe.py --model kyutai/mimi --seconds 20

The commands run as processes, one after the other, as sender and receiver are two machines. A frame is written every
80 ms, as it comes from a microphone or from the net; its delay is the time from then until it has come out.
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import peers
import torch
import typer
from transformers import AutoConfig

FRAME, RATE = peers.FRAME, peers.RATE


def delays(model: str, direction: str, pieces: list[bytes], note, *options: str) -> np.ndarray:
    """Seconds from the moment when a piece is written, one in 80 ms, until its frame has come out.

    Args:
        note: gives something for each frame that comes out of a file object.
    """
    command = [sys.executable, "-c", "from mimi_hf.cli import main; main()", direction, "--raw", "-", "-"]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    process = subprocess.Popen([*command, "--model", model, "--quiet", *options], **pipe)
    came: list[float] = []
    thread = threading.Thread(target=lambda: [came.append(time.perf_counter()) for _ in note(process.stdout)])
    thread.start()
    written = []
    process.stdin.write(pieces[0])
    while not came and thread.is_alive():  # the model is being loaded
        time.sleep(0.01)
    begin = time.perf_counter()
    for i, piece in enumerate(pieces[1:], 1):
        time.sleep(max(0.0, begin + i * FRAME / RATE - time.perf_counter()))
        process.stdin.write(piece)
        written.append(time.perf_counter())
    process.stdin.close()
    thread.join()
    if process.wait() != 0 or len(came) != len(pieces):
        raise RuntimeError(f"The pipe broke after {len(came)} of {len(pieces)} frames.")
    return np.array(came[1:]) - np.array(written)


def frames_of_codes(file):
    from mimi_hf.bitstream import BitstreamReader

    for codes in BitstreamReader(file):
        yield from range(codes.shape[2])


def frames_of_audio(file):
    data = b""
    while more := file.read(2 * FRAME - len(data)):
        data += more
        if len(data) == 2 * FRAME:
            yield data
            data = b""


def audio_pieces(frames: int) -> list[bytes]:
    noise = np.random.default_rng(0).standard_normal((frames, FRAME)) * 3000
    return [frame.tobytes() for frame in noise.astype("<i2")]


def code_pieces(frames: int, num_quantizers: int, codebook_size: int) -> list[bytes]:
    """The header with the first block, then a block each."""
    from mimi_hf.bitstream import BitstreamWriter, Header

    pieces, file = [], io.BytesIO()
    writer = BitstreamWriter(file, Header(num_quantizers, codebook_size))
    for codes in np.random.default_rng(0).integers(0, codebook_size, (frames, num_quantizers, 1)):
        writer.write(codes)
        writer.flush()
        pieces.append(file.getvalue())
        file.seek(0)
        file.truncate()
    return pieces


def summary(delays) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(1000 * delays)
    p99 = ordered[round(0.99 * (len(ordered) - 1))]
    return {"median": round(statistics.median(ordered), 1), "p99": round(p99, 1), "longest": round(ordered[-1], 1)}


def main(
    model: Annotated[str | None, typer.Option(help="A folder or an id; seeded weights by default.")] = None,
    seconds: Annotated[float, typer.Option(help="Of audio, in real time.")] = 20.0,
    num_quantizers: Annotated[int, typer.Option("--num-quantizers", "-k")] = 8,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="Half a second of a tiny model, nothing written.")] = False,
):
    """Measure the delay of live pipes."""
    with tempfile.TemporaryDirectory(prefix="mimi-hf-benchmark-") as temporary:
        if smoke:
            model, seconds, num_quantizers = make_tiny(temporary), 0.5, 4
        elif model is None:
            model = str(peers.make_checkpoints(Path(temporary))[0])
        frames = max(3, round(seconds * RATE / FRAME))
        codebook_size = AutoConfig.from_pretrained(model).codebook_size
        codes = code_pieces(frames, num_quantizers, codebook_size)
        measured = {
            "encode": delays(model, "encode", audio_pieces(frames), frames_of_codes, "-k", str(num_quantizers)),
            "decode": delays(model, "decode", codes, frames_of_audio),
        }
    name = "a tiny model" if smoke else "seeded weights of the published size" if Path(model).exists() else model
    results = {
        "frames": frames - 1,
        "num_quantizers": num_quantizers,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": name,
        "delay of a frame of 80 ms, ms": {name: summary(values) for name, values in measured.items()},
    }
    print(json.dumps(results, indent=2))
    if not smoke:
        output.mkdir(parents=True, exist_ok=True)
        (output / "pipe.json").write_text(json.dumps(results, indent=2) + "\n")


def make_tiny(folder: str) -> str:
    from mimi_hf import MimiConfig, MimiModel

    MimiModel(MimiConfig(num_hidden_layers=1, num_filters=4)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    typer.run(main)
