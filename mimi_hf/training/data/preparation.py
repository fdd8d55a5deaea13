"""Preparation of audio for training: each recording becomes 16-bit mono samples at one rate, in a few flat files.

The folder given to [`prepare`] holds a folder named after a fingerprint of the sources and settings: the cache (see
[`mimi_hf.training.data.audio_cache`]). Beside the samples it has

    parts/00007.json     where the recordings of a part of a source lie, and which were left out; written last
    left_out.jsonl       which recordings were left out, and why

Each thread appends to a file of samples of its own. After `kill -9` the parts that were done stay done. Sources that
changed have another fingerprint.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl

import numpy as np

from mimi_hf.audio import AUDIO_EXTENSIONS
from mimi_hf.audio.mix import check_rate
from mimi_hf.corpus.jobs.job import good_shard_size
from mimi_hf.corpus.reading import UNREADABLE, check_damage, describe
from mimi_hf.corpus.sources import Example, Source, open_source, parquet, webdataset
from mimi_hf.corpus.sources.folder import FolderSource
from mimi_hf.corpus.sources.hub import HubSource
from mimi_hf.corpus.sources.locations import is_url
from mimi_hf.corpus.sources.manifest import ManifestSource
from mimi_hf.corpus.sources.parquet import ParquetSource
from mimi_hf.corpus.sources.webdataset import TarSource
from mimi_hf.utils.files import written_beside
from mimi_hf.utils.machine import usable_cores
from mimi_hf.utils.option_checks import check_option

from .audio_cache import INDEX, REPORT, SAMPLE, AudioCache, audio_path
from .copying import Copied, LeftOutError, copy_recording

logger = logging.getLogger(__name__)

LEFT_OUT = "left_out.jsonl"
# Part of every fingerprint: raise it when the layout or the rules change, so that caches are made again.
_VERSION = 1
_MOST_THREADS = 16
# Options of `open_source` that may follow a source, as in `user/name?config=clean&split=train`.
_OPTION = r"(?:kind|split|config|audio_column|revision)=[^&?]+"
_WITH_OPTIONS = re.compile(rf"(.+?)\?({_OPTION}(?:&{_OPTION})*)")
# Which files of a folder belong to a source of a kind. Other files do not change it.
_FILES = {"folder": AUDIO_EXTENSIONS, "parquet": parquet.EXTENSIONS, "webdataset": webdataset.EXTENSIONS}

Progress = Callable[[float, float], None]


def prepare(
    sources: list[str],
    folder: str | os.PathLike[str],
    sampling_rate: int = 24_000,
    min_seconds: float = 0.2,
    progress: Progress | None = None,
    threads: int | None = None,
    keep_others: bool = False,
) -> AudioCache:
    """Write the recordings of some sources to a cache, or open the cache if that was done before.

    Recordings that cannot be used are left out and counted, see [`AudioCache.report`]: `unreadable`, `empty`,
    `not_finite` (NaN or infinity), `out_of_range` (above 8, where 1 is full scale), `silent` (never above -60 dBFS) and
    `too_short`. `left_out.jsonl` in the cache names each.

    The same sources give the same cache, in the same order. A source has changed if a file of it on this machine has
    another name, size or time. Those are: the audio files of a folder; the files that a manifest names; the tars and
    parquet files themselves; all files of a local folder with a data set of the Hub. For URLs only the names count, for
    a data set on the Hub its commit. Several processes may call this at once: one prepares, the others wait.

    Args:
        sources: what [`mimi_hf.corpus.sources.open_source`] opens. Its options may follow a name:
            `user/name?config=clean&split=train`.
        folder: where caches lie.
        sampling_rate: samples per second; other audio is resampled.
        min_seconds: shorter recordings are left out.
        progress: called with the seconds of audio that this call has written, and the share (0 to 1) of parts done.
        threads: how many threads; by default one per core, up to 16.
        keep_others: keep caches in the folder that were made for other sources, or for these before they changed. By
            default they are removed, and nothing else is.

    Raises:
        FileNotFoundError, ValueError: there is no such source, or none of its recordings can be used.
        OSError: a network or a disk failed. Call again to go on from there.

    Example:
        >>> cache = prepare(["recordings/", "more.parquet"], "cache")  # doctest: +SKIP
        >>> cache.report["hours"], cache.report["left_out"]  # doctest: +SKIP
        (1.27, {'silent': 3, 'unreadable': 1})
    """
    if isinstance(sources, str | bytes | os.PathLike) or not sources or len({*map(str, sources)}) < len(sources):
        raise ValueError(f"sources={sources!r} must be a list of one source or more, each once: ['recordings/'].")
    threads = min(_MOST_THREADS, usable_cores()) if threads is None else threads
    check_option(threads >= 1, "threads", threads, "at least 1")
    check_option(0 <= min_seconds < math.inf, "min_seconds", min_seconds, "a number of seconds, 0 or more")
    rate, folder = check_rate(sampling_rate), Path(folder)
    opened: dict[str, Source] = {}
    for name in map(str, sources):
        match = _WITH_OPTIONS.fullmatch(name)
        place, options = (match[1], dict[str, Any](parse_qsl(match[2]))) if match else (name, {})
        opened[name] = open_source(place, leave_out=str(folder), **options)
    place = folder / _fingerprint(opened, rate, min_seconds)
    cache = _open_complete(place)
    if cache is not None:
        return cache
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        cache = _open_complete(place)
        if cache is None:
            _Preparation(place, opened, rate, min_seconds, threads).run(progress)
            cache = AudioCache(place)
            if not keep_others:
                _remove_others(place)
    return cache


def _fingerprint(sources: dict[str, Source], sampling_rate: float, min_seconds: float) -> str:
    settings = {"sampling_rate": sampling_rate, "min_seconds": min_seconds}
    digest = hashlib.blake2b(json.dumps([_VERSION, settings]).encode(), digest_size=8)
    for name, source in sources.items():
        for fact in ([name, source.describe()], *_files(source)):
            digest.update(json.dumps(fact, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _files(source: Source) -> Iterator[list]:
    """Name, size and time of each file of a source on this machine; only the name of others."""
    if isinstance(source, FolderSource | ParquetSource | TarSource):
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
    """Some recordings of a source. One thread writes them."""

    number: int
    source: int
    shard: dict


class _Preparation:
    """The work under the lock: each thread takes part after part, and appends it to its own file."""

    def __init__(
        self, place: Path, sources: dict[str, Source], sampling_rate: float, min_seconds: float, threads: int
    ) -> None:
        self.place, self.names, self.sources = place, [*sources], [*sources.values()]
        self.sampling_rate, self.min_seconds = sampling_rate, min_seconds
        shards = [(i, shard) for i, one in enumerate(self.sources) for shard in one.shards(good_shard_size(one))]
        self.parts = [_Part(number, source, shard) for number, (source, shard) in enumerate(shards)]
        self.threads = max(1, min(threads, len(self.parts)))
        self._events: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def run(self, progress: Progress | None) -> None:
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
                self._report(len(done), progress)
            finally:
                self._stopped.set()
        for lane in lanes:
            lane.result()
        self._finish()

    def _find_done(self) -> dict[int, dict]:
        """Read the records of the parts that are complete, by number."""
        done = {}
        for part in self.parts:
            try:
                record = self._read_record(part)
                if audio_path(self.place, record["file"]).stat().st_size >= record["stop"] * SAMPLE.itemsize:
                    done[part.number] = record
            except (FileNotFoundError, ValueError, KeyError):  # not there, or cut short where the power failed
                continue
        return done

    def _record_path(self, part: _Part) -> Path:
        return self.place / "parts" / f"{part.number:05d}.json"

    def _read_record(self, part: _Part) -> dict:
        return json.loads(self._record_path(part).read_text(encoding="utf-8"))

    def _report(self, done: int, progress: Progress | None) -> None:
        """Report each part that a thread finishes, until all threads have ended."""
        seconds, running = 0.0, self.threads
        while running:
            event = self._events.get()
            if event is None:
                running -= 1
                continue
            seconds, done = seconds + event, done + 1
            if progress is not None:
                progress(seconds, done / len(self.parts))

    def _work(self, lane: int, todo: "queue.SimpleQueue[_Part]", done: dict[int, dict]) -> None:
        try:
            with open(audio_path(self.place, lane), "ab") as file:
                # A process that was killed may have written the beginning of a part: that is written again.
                stop = max((one["stop"] for one in done.values() if one["file"] == lane), default=0)
                file.truncate(stop * SAMPLE.itemsize)
                while not self._stopped.is_set():
                    self._write_part(todo.get_nowait(), lane, file)
        except queue.Empty:
            pass
        except BaseException:  # stop the other threads, whatever it is
            self._stopped.set()
            raise
        finally:
            self._events.put(None)

    def _write_part(self, part: _Part, lane: int, file: BinaryIO) -> None:
        rows: list[tuple[int, int]] = []
        left_out: list[dict] = []
        counts: Counter[str] = Counter()
        for example in self.sources[part.source].read(part.shard):
            start = file.seek(0, os.SEEK_END)
            try:
                copied = self._copy(example, file)
                rows.append((start // SAMPLE.itemsize, copied.samples))
                counts.update(copied.traits)
            except LeftOutError as error:
                file.truncate(start)
                left_out.append({"id": example.id, "reason": error.reason, "detail": str(error)})
            if self._stopped.is_set():
                return
        stop = file.seek(0, os.SEEK_END) // SAMPLE.itemsize
        os.fsync(file.fileno())
        record = {"file": lane, "stop": stop, "rows": rows, "counts": counts, "left_out": left_out}
        _write(self._record_path(part), json.dumps(record))
        self._events.put(sum(samples for _, samples in rows) / self.sampling_rate)

    def _copy(self, example: Example, file: BinaryIO) -> Copied:
        def write(samples: np.ndarray) -> None:
            if self._stopped.is_set():
                raise LeftOutError("unreadable", "The preparation was stopped.")
            file.write(np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(SAMPLE).tobytes())

        try:
            return copy_recording(example, self.sampling_rate, self.min_seconds, write)
        except UNREADABLE as error:
            raise LeftOutError("unreadable", describe(check_damage(error))) from error

    def _finish(self) -> None:
        """Write the index and the report from the records of all parts."""
        records = [(part.source, self._read_record(part)) for part in self.parts]
        rows = [(record["file"], *row, source) for source, record in records for row in record["rows"]]
        left_out = [{"source": self.names[source], **one} for source, record in records for one in record["left_out"]]
        report = {"sampling_rate": self.sampling_rate, **self._count(records)}
        report["sources"] = {
            name: self._count([item for item in records if item[0] == source]) for source, name in enumerate(self.names)
        }
        if not rows:
            first = f" The first one: {left_out[0]['id']}: {left_out[0]['detail']}" if left_out else ""
            raise ValueError(
                f"No recording of {', '.join(self.names)} can be used. Left out: {report['left_out']}.{first}"
            )
        _write(self.place / LEFT_OUT, "".join(json.dumps(one) + "\n" for one in left_out))
        with written_beside(self.place / INDEX) as aside, open(aside, "wb") as file:
            np.save(file, np.array(rows, np.int64), allow_pickle=False)
        _write(self.place / REPORT, json.dumps(report))

    def _count(self, records: list[tuple[int, dict]]) -> dict:
        counts: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        for _, record in records:
            counts.update(record["counts"])
            left_out.update(one["reason"] for one in record["left_out"])
        lengths = [samples for _, record in records for _, samples in record["rows"]]
        kept = {"recordings": len(lengths), "hours": sum(lengths) / self.sampling_rate / 3600}
        traits = {trait: counts[trait] for trait in ("resampled", "stereo", "clipped", "short")}
        return {**kept, **traits, "left_out": dict(sorted(left_out.items()))}


# Files


def _open_complete(place: Path) -> AudioCache | None:
    if not (place / REPORT).exists():
        return None
    try:
        return AudioCache(place)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("The audio in %s is prepared again, as it is damaged: %s", place, error)
        return None


def _remove_others(place: Path) -> None:
    """Remove the other caches of the folder. A process that has one open has mapped its files, and can read on."""
    for other in place.parent.iterdir():
        if other != place and re.fullmatch("[0-9a-f]{16}", other.name) and (other / "parts").is_dir():
            shutil.rmtree(other, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with written_beside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time in. If it dies, the system releases the lock."""
    import fcntl

    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            logger.warning("%s knows no locks: let one process alone prepare audio there.", folder)
        yield
