"""Little corpora, and what tests ask of them."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from mimi_hf.corpus.jobs.encoding import EncodingOptions
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.jobs.tokenize import TokenizeJob
from mimi_hf.corpus.sources import open_source
from mimi_hf.loading import ModelChoice

from .tiny import make_model

FRAME = 1920
COMMAND = os.path.join(os.path.dirname(sys.executable), "mimi-hf")


def save_model(folder: Path, **changes) -> Path:
    """A tiny model with the published frame: a second of audio is 12.5 frames."""
    make_model(**{"upsampling_ratios": [8, 6, 5, 4], **changes}).save_pretrained(folder)
    return folder


def write_clips(folder: Path, count: int, seconds=(0.2, 1.2), seed=0) -> Path:
    """Noise of some lengths, at the model's rate, so that reading changes no sample."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        samples = int(random.uniform(*seconds) * 24_000)
        soundfile.write(folder / f"{number:03d}.wav", random.uniform(-0.3, 0.3, samples), 24_000, subtype="FLOAT")
    return folder


def make_job(source, output, model, shard_size=5, strict=False, columns=None, **options) -> TokenizeJob:
    """The job of `mimi-hf tokenize`."""
    options = EncodingOptions(**{"num_quantizers": 4, **options})
    source = open_source(str(source), columns=columns, leave_out=str(output))
    return TokenizeJob(source, Output(str(output)), ModelChoice(str(model)), options, shard_size, strict)


def rows_of(output: Path) -> dict[str, dict]:
    """All rows of the shards of a local output, by id; none is there twice."""
    rows = [row for path in sorted(Path(output, "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def encode_alone(model, audio: np.ndarray, num_quantizers=4) -> np.ndarray:
    """The codes (K, F) of samples (N,) as the model gives them to one who asks for nothing else."""
    with torch.no_grad():
        codes = model.encode(torch.tensor(audio, dtype=torch.float32)[None, None], num_quantizers=num_quantizers)
    return codes.audio_codes[0].numpy()


def contents(output: Path) -> dict[str, str]:
    """A digest of every file under a folder."""
    files = (path for path in Path(output).rglob("*") if path.is_file())
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(*arguments, **environment) -> subprocess.Popen:
    """`mimi-hf …` in a process group of its own."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a command; its standard output and error."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, (process.returncode, out, err)
    return out + err


def wait_until(condition, seconds: float = 60.0):
    """Wait for `condition()` to be true, and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)
    return value


def children(process: int) -> list[int]:
    """The worker processes that a process has started, but for Python's own trackers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    return found


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not asked for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_group(process: subprocess.Popen):
    """`kill -9` of a command and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class Watcher:
    """Opens every file of an output as soon as it appears, and remembers those that were not whole."""

    def __init__(self, output: Path):
        self.output, self.seen, self.broken = Path(output), set(), []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self.stopped.is_set():
            for path in self.output.glob("data/*"):
                try:
                    pq.read_table(path)
                    self.seen.add(path.name)
                except Exception as error:
                    self.broken.append((path.name, str(error)))
            time.sleep(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()
        assert self.broken == []


def tone(seconds, frequency=440.0, rate=24_000, amplitude=0.5):
    """A sine: np.ndarray, shape = (N,)."""
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write_audio(path, samples, rate=24_000, **options):
    """Write a file, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path
