"""Audio for training, prepared once: each recording as 16-bit mono samples at one rate, in a few flat files.

The folder of a cache holds a folder that is named after a fingerprint of its sources and settings, and in it

    audio-0.s16, …       samples, little-endian, one recording after the other; each thread appends to a file of its own
    parts/00007.json     where the recordings of a part of a source lie, and what was left out: written when it is done
    index.npy            (R, 4) int64: file, first sample, number of samples, and source of each of R recordings
    left_out.jsonl       what was left out, and why
    report.json          the counts, written last: with it, the cache is whole

After `kill -9` the parts that were done stay done. Sources that changed have another fingerprint.
"""

import errno
import hashlib
import json
import logging
import math
import os
import queue
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from mimi_hf.audio.mix import check_rate
from mimi_hf.corpus.jobs.job import good_shard_size
from mimi_hf.corpus.reading import UNREADABLE, check_damage, describe
from mimi_hf.corpus.sources import Example, Source, open_source, parquet, webdataset
from mimi_hf.corpus.sources.base import AUDIO_EXTENSIONS
from mimi_hf.corpus.sources.hub import HubSource
from mimi_hf.corpus.sources.locations import is_url
from mimi_hf.corpus.sources.manifest import ManifestSource
from mimi_hf.utils.files import written_beside
from mimi_hf.utils.machine import usable_cores

from .copying import Copied, LeftOutError, copy_recording

logger = logging.getLogger(__name__)

REPORT, INDEX, LEFT_OUT = "report.json", "index.npy", "left_out.jsonl"
# Part of every fingerprint: caches of another layout, or made by other rules, are made anew.
_VERSION = 1
_SAMPLE = np.dtype("<i2")
_MOST_THREADS = 16
# What may follow a source, as in `user/name?config=clean&split=train`: options of `open_source`.
_OPTION = r"(?:kind|split|config|audio_column|revision)=[^&?]+"
_WITH_OPTIONS = re.compile(rf"(.+?)\?({_OPTION}(?:&{_OPTION})*)")
# Which files of a folder are a source of a kind; others may come and go.
_FILES = {"folder": AUDIO_EXTENSIONS, "parquet": parquet.EXTENSIONS, "webdataset": webdataset.EXTENSIONS}

Progress = Callable[[float, float], None]


class AudioCache:
    """Recordings that [`prepare`] has written, to be read in any order. Its files are memory-mapped.

    Args:
        folder: the inner one, which holds `report.json`.

    Attributes:
        sampling_rate: samples per second.
        sources: their names, as `prepare` was given them.
        index: np.ndarray of shape (R, 4), int64: file, first sample, number of samples, number of the source.
        report: counts, JSON-able: `recordings` and `hours` that were kept, of these `resampled`, `stereo` (any number
            of channels above one), `clipped` and `short` (below a second); `left_out` by reason; `sources`, the same
            for each.

    Raises:
        OSError, ValueError: it is not whole.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.report: dict = _read_json(self.folder / REPORT)
        self.sampling_rate: int = self.report["sampling_rate"]
        self.sources = tuple(self.report["sources"])
        self.index = np.load(self.folder / INDEX, allow_pickle=False)
        self._files = {int(number): self._map(int(number)) for number in np.unique(self.index[:, 0])}

    def _map(self, number: int) -> np.ndarray:
        path, rows = _audio_file(self.folder, number), self.index[self.index[:, 0] == number]
        needed = int((rows[:, 1] + rows[:, 2]).max())
        if path.stat().st_size < needed * _SAMPLE.itemsize:
            raise ValueError(f"{path} is cut short: {needed} samples should be there. Remove {self.folder}.")
        return np.memmap(path, _SAMPLE, "r").view(np.ndarray)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, recording: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """A part of a recording, to its end at most: float32 (N,), in [-1, 1).

        Args:
            recording: its number, below `len(cache)`.
            start: sample to begin at.
            samples: how many; to the end by default.
        """
        file, first, length, _ = self.index[recording].tolist()
        stop = length if samples is None else min(length, start + samples)
        return self._files[file][first + start : first + stop].astype(np.float32) / np.float32(2**15)


def prepare(
    sources: list[str],
    folder: str | os.PathLike,
    sampling_rate: int = 24_000,
    min_seconds: float = 0.2,
    progress: Progress | None = None,
    threads: int | None = None,
    keep_others: bool = False,
) -> AudioCache:
    """Write the recordings of some sources to a cache, or open it where that was done.

    Recordings that cannot be used are left out and counted, see [`AudioCache.report`]: `unreadable`, `empty`,
    `not_finite` (NaN or infinity), `out_of_range` (above 8, where 1 is full scale), `silent` (never above -60 dBFS) and
    `too_short`. `left_out.jsonl` in the cache names each.

    The same sources give the same cache, in the same order. A source has changed where one of its files on this machine
    has another name, size or time: those of a folder, or that a manifest names; tars and parquet files themselves; all
    of a folder in the form of a data set of the Hub. Of files behind URLs the names count, and of a data set of the Hub
    the commit. Several processes may call this at once: one prepares, the others wait.

    Args:
        sources: what [`mimi_hf.corpus.sources.open_source`] opens; its options may follow a name, as in
            `user/name?config=clean&split=train`.
        folder: of the cache.
        sampling_rate: samples per second; other audio is resampled.
        min_seconds: what is shorter is left out.
        progress: called with the seconds of audio written by this call, and the share (0 to 1) of parts that are done.
        threads: at work at the same time; as many as there are cores by default, up to 16.
        keep_others: keep what was prepared in the folder for other sources, or for these before they changed; by
            default that, and nothing else, is removed.

    Raises:
        FileNotFoundError, ValueError: there is no such source, or it holds no recording that can be used at all.
        OSError: a network or a disk failed. The same call goes on from there.

    Example:

        >>> cache = prepare(["recordings/", "more.parquet"], "cache")  # doctest: +SKIP
        >>> cache.report["hours"], cache.report["left_out"]  # doctest: +SKIP
        (1.27, {'silent': 3, 'unreadable': 1})
    """
    if isinstance(sources, str | bytes | os.PathLike) or not sources or len({*map(str, sources)}) < len(sources):
        raise ValueError(f"sources={sources!r} must be a list of one source or more, each once: ['recordings/'].")
    threads = min(_MOST_THREADS, usable_cores()) if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads={threads!r} must be at least 1.")
    settings, folder = _Settings(check_rate(sampling_rate), min_seconds), Path(folder)
    opened = {str(name): _open(str(name), folder) for name in sources}
    place = folder / _fingerprint(opened, settings)
    cache = _open_whole(place)
    if cache is not None:
        return cache
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        cache = _open_whole(place)
        if cache is None:
            _Preparation(place, opened, settings, threads).run(progress)
            cache = AudioCache(place)
            if not keep_others:
                _remove_others(place)
    return cache


@dataclass(frozen=True)
class _Settings:
    sampling_rate: int
    min_seconds: float

    def __post_init__(self):
        if not 0 <= self.min_seconds < math.inf:
            raise ValueError(f"min_seconds={self.min_seconds!r} must be a number of seconds, 0 or more.")


# Sources


def _open(name: str, folder: Path) -> Source:
    options = {}
    if match := _WITH_OPTIONS.fullmatch(name):
        name, options = match[1], dict(parse_qsl(match[2]))
    return open_source(name, leave_out=str(folder), **options)


def _fingerprint(sources: dict[str, Source], settings: _Settings) -> str:
    digest = hashlib.blake2b(json.dumps([_VERSION, asdict(settings)]).encode(), digest_size=8)
    for name, source in sources.items():
        for fact in ([name, source.describe()], *_files(source)):
            digest.update(json.dumps(fact, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _files(source: Source) -> Iterator[list]:
    """Name, size and time of each file of this machine that a source consists of; the names of others."""
    if source.kind in _FILES:
        for name in source.files.select(_FILES[source.kind]):
            yield _status(source.files.path(name))
    elif isinstance(source, ManifestSource):
        yield _status(source.path)
        for shard in source.shards(1000):
            yield from (_status(example.audio) for example in source.read(shard) if isinstance(example.audio, str))
    elif isinstance(source, HubSource) and os.path.isdir(source.name):
        yield from (_status(str(path)) for path in sorted(Path(source.name).rglob("*")) if path.is_file())


def _status(path: str) -> list:
    try:
        status = None if is_url(path) else os.stat(path)
    except OSError:
        status = None
    return [path] if status is None else [path, status.st_size, status.st_mtime_ns]


# Preparation


@dataclass
class _Part:
    """Some recordings of a source, which one thread writes."""

    number: int
    source: int
    shard: dict


class _Preparation:
    """What is done under the lock: each thread takes part after part, and appends it to its own file."""

    def __init__(self, place: Path, sources: dict[str, Source], settings: _Settings, threads: int):
        self.place, self.names, self.sources, self.settings = place, [*sources], [*sources.values()], settings
        shards = [(i, shard) for i, one in enumerate(self.sources) for shard in one.shards(good_shard_size(one))]
        self.parts = [_Part(number, source, shard) for number, (source, shard) in enumerate(shards)]
        self.threads = max(1, min(threads, len(self.parts)))
        self._events: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self, progress: Progress | None):
        (self.place / "parts").mkdir(parents=True, exist_ok=True)
        (self.place / REPORT).unlink(missing_ok=True)  # of a cache that was damaged
        done = self._find_done()
        todo: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        for part in self.parts:
            if part.number not in done:
                todo.put(part)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="prepare") as pool:
            lanes = [pool.submit(self._work, lane, todo, done) for lane in range(self.threads)]
            try:
                self._watch(len(done), progress)
            finally:
                self._stopped.set()
        for lane in lanes:
            lane.result()
        self._finish()

    def _find_done(self) -> dict[int, dict]:
        """The records of the parts that are whole, by number."""
        done = {}
        for part in self.parts:
            try:
                record = _read_json(self._record(part))
                if _audio_file(self.place, record["file"]).stat().st_size >= record["stop"] * _SAMPLE.itemsize:
                    done[part.number] = record
            except (FileNotFoundError, ValueError, KeyError):  # not there, or cut short where the power failed
                continue
        return done

    def _record(self, part: _Part) -> Path:
        return self.place / "parts" / f"{part.number:05d}.json"

    def _watch(self, done: int, progress: Progress | None):
        """Until all threads have ended."""
        seconds, running = 0.0, self.threads
        while running:
            event = self._events.get()
            if event is None:
                running -= 1
                continue
            seconds, done = seconds + event, done + 1
            if progress is not None:
                progress(seconds, done / len(self.parts))

    def _work(self, lane: int, todo: queue.SimpleQueue, done: dict[int, dict]):
        try:
            with open(_audio_file(self.place, lane), "ab") as file:
                # What a process that was killed wrote of its last part is written again.
                stop = max((one["stop"] for one in done.values() if one["file"] == lane), default=0)
                file.truncate(stop * _SAMPLE.itemsize)
                while not self._stopped.is_set():
                    self._write_part(todo.get_nowait(), lane, file)
        except queue.Empty:
            pass
        except BaseException:  # whatever it is, the other threads shall not go on
            self._stopped.set()
            raise
        finally:
            self._events.put(None)

    def _write_part(self, part: _Part, lane: int, file):
        rows, left_out, counts = [], [], Counter()
        for example in self.sources[part.source].read(part.shard):
            start = file.seek(0, os.SEEK_END)
            try:
                copied = self._copy(example, file)
                rows.append((start // _SAMPLE.itemsize, copied.samples))
                counts.update(copied.traits)
            except LeftOutError as error:
                file.truncate(start)
                left_out.append({"id": example.id, "reason": error.reason, "detail": str(error)})
            if self._stopped.is_set():
                return
        stop = file.seek(0, os.SEEK_END) // _SAMPLE.itemsize
        os.fsync(file.fileno())
        record = {"file": lane, "stop": stop, "rows": rows, "counts": counts, "left_out": left_out}
        _write_json(self._record(part), record)
        self._events.put(sum(samples for _, samples in rows) / self.settings.sampling_rate)

    def _copy(self, example: Example, file) -> Copied:
        def write(samples: np.ndarray):
            if self._stopped.is_set():
                raise LeftOutError("unreadable", "The preparation was stopped.")
            file.write(np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(_SAMPLE).tobytes())

        try:
            return copy_recording(example, self.settings.sampling_rate, self.settings.min_seconds, write)
        except UNREADABLE as error:
            raise LeftOutError("unreadable", describe(check_damage(error))) from error

    def _finish(self):
        """Join the records of all parts."""
        records = [(part.source, _read_json(self._record(part))) for part in self.parts]
        rows = [(record["file"], *row, source) for source, record in records for row in record["rows"]]
        left_out = [{"source": self.names[source], **one} for source, record in records for one in record["left_out"]]
        report = {"sampling_rate": self.settings.sampling_rate, **self._count(records)}
        report["sources"] = {
            name: self._count([item for item in records if item[0] == source]) for source, name in enumerate(self.names)
        }
        if not rows:
            first = f" The first one: {left_out[0]['id']}: {left_out[0]['detail']}" if left_out else ""
            raise ValueError(
                f"No recording of {', '.join(self.names)} can be used: left out are {report['left_out']}.{first}"
            )
        with written_beside(self.place / LEFT_OUT) as aside:
            aside.write_text("".join(json.dumps(one) + "\n" for one in left_out), encoding="utf-8")
        with written_beside(self.place / INDEX) as aside, open(aside, "wb") as file:
            np.save(file, np.array(rows, np.int64), allow_pickle=False)
        _write_json(self.place / REPORT, report)

    def _count(self, records: list[tuple[int, dict]]) -> dict:
        counts, left_out = Counter(), Counter()
        for _, record in records:
            counts.update(record["counts"])
            left_out.update(one["reason"] for one in record["left_out"])
        lengths = [samples for _, record in records for _, samples in record["rows"]]
        kept = {"recordings": len(lengths), "hours": sum(lengths) / self.settings.sampling_rate / 3600}
        traits = {trait: counts[trait] for trait in ("resampled", "stereo", "clipped", "short")}
        return {**kept, **traits, "left_out": dict(sorted(left_out.items()))}


# Files


def _audio_file(place: Path, number: int) -> Path:
    return place / f"audio-{number}.s16"


def _open_whole(place: Path) -> AudioCache | None:
    if not (place / REPORT).exists():
        return None
    try:
        return AudioCache(place)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("The audio in %s is prepared again, as it is damaged: %s", place, error)
        return None


def _remove_others(place: Path):
    """Remove what was prepared in the same folder for other sources. Who reads it has it mapped, and reads on."""
    for other in place.parent.iterdir():
        if other != place and re.fullmatch("[0-9a-f]{16}", other.name) and (other / "parts").is_dir():
            shutil.rmtree(other, ignore_errors=True)


def _read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content):
    with written_beside(path) as aside:
        aside.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def _locked(folder: Path):
    """One process at a time; the system takes the lock from one that dies."""
    import fcntl

    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            logger.warning("%s knows no locks: let one process alone prepare audio there.", folder)
        yield
