"""A data set of codes back to audio: the job behind `mimi-hf detokenize`."""

import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mimi_hf.audio import write_blocks
from mimi_hf.corpus.reading import LONG, check_device, describe
from mimi_hf.corpus.sources import Example
from mimi_hf.corpus.sources.columns import Columns
from mimi_hf.corpus.sources.hub import HUB_ID
from mimi_hf.corpus.sources.locations import Files, is_url, join
from mimi_hf.corpus.sources.parquet import ParquetSource
from mimi_hf.inference.batches import check_batch_seconds, decode_all, default_batch_seconds
from mimi_hf.loading import ModelChoice

from .dataset_card import detokenized_card
from .job import MANIFEST, Job, Progress
from .output import Output
from .tokenize import CODES, ID, SAMPLES, ExampleError

FORMATS = ("flac", "wav", "ogg")
_POOL_BATCHES = 8
_LONG_PUSH = 250  # frames that the model takes at once of a long example
_ROWS, _BYTES = 100, 2**26  # the most of a row group with audio, about
_LONGEST_NAME, _LONGEST_PATH = 200, 600  # bytes; file systems take 255 and 4096 (1024 on macOS)


class CodesSource(ParquetSource):
    """Parquet files with a column of codes, (K, F) in each row, as `mimi-hf tokenize` writes them.

    `Example.audio` is an np.ndarray of shape (K, F), int64.

    Args:
        files, audio_column, columns: as for [`ParquetSource`].
        codebook_digest: of the codebooks that made them, where we did: then the column `id` names each row.
    """

    kind = "codes"

    def __init__(self, files: Files, audio_column=None, columns=None, codebook_digest: str | None = None):
        super().__init__(files, audio_column, columns)
        self.codebook_digest = codebook_digest
        if codebook_digest:
            self.read_too = (ID,)
            self.columns = Columns({name: field for name, field in self.columns.fields.items() if name != ID})

    def identify(self, name: str, row: int, record: dict) -> str:
        """`Example.id` of a row of a file."""
        return record[ID] if self.codebook_digest and record[ID] is not None else super().identify(name, row, record)

    def choose(self, present: pa.Schema, wanted: str | None, location: str) -> str:
        """The column to read."""
        name = wanted or CODES
        if name not in present.names:
            raise ValueError(
                f"{location!r} has no column {name!r} of codes; it has {', '.join(present.names)}. Name the right one."
            )
        kind = present.field(name).type
        inner = kind.value_type if _is_list(kind) else None
        if inner is None or not _is_list(inner) or not pa.types.is_integer(inner.value_type):
            raise ValueError(
                f"Column {name!r} of {location!r} is of type {kind}, but codes are lists (codebooks) of lists (frames)"
                " of integers."
            )
        return name

    def convert(self, value, root: str):
        """The codes of a value."""
        rows = [row or () for row in value or ()]
        if not any(rows) or len({len(row) for row in rows}) != 1 or any(None in row for row in rows):
            raise ValueError("There are no codes, or its codebooks have different lengths.")
        return np.asarray(rows, np.int64)


def _is_list(kind: pa.DataType) -> bool:
    tests = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(test(kind) for test in tests)


def open_codes(
    location: str, codes_column: str | None = None, columns: list[str] | None = None, leave_out: str | None = None
) -> CodesSource:
    """Open a corpus of codes.

    Args:
        location: a folder of parquet files as `mimi-hf tokenize` makes it, a file, a pattern, a URL, or the id of a
            data set of the Hub that holds parquet files.
        codes_column: the column with the codes.
        columns: what to keep of the others; all by default.
        leave_out: a folder that does not count, where it lies in `location`: the one to write to.

    Raises:
        FileNotFoundError, ValueError: there is nothing there, or no codes.
    """
    try:
        files = Files(location, leave_out)
    except FileNotFoundError:
        if is_url(location) or not HUB_ID.fullmatch(location):
            raise
        files = Files(f"hf://datasets/{location}")
    digest = _digest_of_corpus(files.root)
    if digest and files.is_folder:  # where there may be a table of failures, too
        files = Files(join(files.root, "data"))
    elif files.root.endswith("/data"):
        digest = _digest_of_corpus(files.root.removesuffix("/data"))
    return CodesSource(files, codes_column, columns, digest)


def _digest_of_corpus(folder: str) -> str | None:
    """The codebooks that made the codes of a corpus of ours; `None` for another folder."""
    place = Output(folder)
    try:
        manifest = place.read_json(MANIFEST)
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("task") == "tokenize"
    return manifest.get("codebook_digest") if ours else None


@dataclass
class AudioReport:
    """What a shard of audio holds.

    examples: that were decoded.
    seconds: of audio.
    failures: id and reason of each example that could not be decoded.
    """

    examples: int = 0
    seconds: float = 0.0
    failures: list[dict] = field(default_factory=list)

    def merge(self, other: "AudioReport"):
        """Count all that another report holds."""
        self.examples += other.examples
        self.seconds += other.seconds
        self.failures += other.failures

    def to_dict(self) -> dict:
        """JSON-able; [`from_dict`] reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "AudioReport":
        """The report that [`to_dict`] wrote."""
        return cls(**content)


class DetokenizeJob(Job):
    """Decode a corpus of codes into audio files, or into parquet shards with a column of audio.

    Files are called `audio/<id>.<kind>`; a row of a shard has `id`, `audio` and the other columns of the source.

    Args:
        source, output, shard_size: as for [`Job`].
        model: which one.
        kind: of the files: flac, wav or ogg.
        as_parquet: write shards rather than files.
        num_quantizers: codebooks to use; all that are there, where a row has fewer, and by default.
        batch_seconds: padded audio in a batch; by default what suits the device.
        any_model: decode codes of other codebooks than the model's.
        strict: stop at the first example that fails.

    Raises:
        ValueError: the corpus was made with other codebooks, or an argument makes no sense.
    """

    unused = ("encoder.", "encoder_transformer.", "downsample.")
    decisive = ("task", "dtype", "codebook_digest", "decoder_digest", "num_quantizers", "kind", "as_parquet", "columns")

    def __init__(
        self,
        source: CodesSource,
        output: Output,
        model: ModelChoice,
        kind: str = "flac",
        as_parquet: bool = False,
        num_quantizers: int | None = None,
        batch_seconds: float | None = None,
        any_model: bool = False,
        shard_size: int | None = None,
        strict: bool = False,
    ):
        super().__init__(source, output, model, shard_size)
        if kind not in FORMATS:
            raise ValueError(f"kind={kind!r} must be one of {', '.join(FORMATS)}.")
        check_batch_seconds(batch_seconds)
        self.kind, self.as_parquet, self.strict = kind, as_parquet, strict
        self.num_quantizers, self.batch_seconds = num_quantizers, batch_seconds
        loaded = self.load("cpu")
        if num_quantizers is not None:
            loaded.quantizer.check_num_quantizers(num_quantizers)
        config = loaded.config
        self.sampling_rate, self.channels, self.frame_size = (
            config.sampling_rate,
            config.audio_channels,
            config.frame_size,
        )
        self.codebook_digest = loaded.codebook_digest
        made_with = source.codebook_digest
        if made_with not in (None, self.codebook_digest) and not any_model:
            raise ValueError(
                f"The codes were made with other codebooks ({made_with[:12]}…) than those of {model.name}"
                f" ({self.codebook_digest[:12]}…), which would make noise of them. Name the model that made them, or"
                " one that was trained from it with its codebooks kept (or insist with any_model)."
            )

    def settings(self) -> dict:
        return {
            "task": "detokenize",
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": self.model.dtype,
            "codebook_digest": self.codebook_digest,
            "decoder_digest": self.weights_digest,
            "num_quantizers": self.num_quantizers,
            "sampling_rate": self.sampling_rate,
            "kind": self.kind,
            "as_parquet": self.as_parquet,
            "columns": {field.name: str(field.type) for field in self.source.schema()},
            "mimi_hf": importlib.metadata.version("mimi_hf"),
        }

    def run(self, model, index: int, progress: Progress) -> AudioReport:
        report = AudioReport()
        with self.output.workspace() as folder:
            decoded = self._counted(self._decode(model, index, folder, progress), report)
            if self.as_parquet:
                self._write_parquet(decoded, index)
            else:
                for example, path in decoded:
                    with self.output.writing(f"audio/{file_name(example.id)}.{self.kind}") as aside:
                        shutil.move(path, aside)
        self.output.write_json(self.report_name(index), report.to_dict())
        return report

    def _counted(self, decoded, report: AudioReport) -> Iterator[tuple[Example, Path]]:
        for example, path, seconds, reason in decoded:
            if reason is None:
                report.examples += 1
                report.seconds += seconds
                yield example, path
            else:
                if self.strict:
                    raise ExampleError(f"{example.id}: {reason}")
                report.failures.append({"id": example.id, "reason": reason})

    def _decode(self, model, index: int, folder: Path, progress: Progress):
        """For each example: itself, the file that was made of it, its seconds, and why there is none."""
        batch = self.batch_seconds or default_batch_seconds(model)
        pool: list[Example] = []
        held = 0.0
        for example in self.source.read(self.shards[index]):
            pool.append(example)
            held += self._seconds(example)
            if held >= _POOL_BATCHES * batch:
                yield from self._decode_pool(model, pool, folder, progress)
                pool, held = [], 0.0
        yield from self._decode_pool(model, pool, folder, progress)

    def _seconds(self, example: Example) -> float:
        return 0.0 if example.audio is None else example.audio.shape[1] * self.frame_size / self.sampling_rate

    def _decode_pool(self, model, pool: list[Example], folder: Path, progress: Progress):
        short = [example for example in pool if example.audio is not None and self._seconds(example) <= LONG]
        # The number of codebooks may differ between rows, but not in a batch.
        audio: dict[str, np.ndarray | Exception] = {}
        for count in sorted({len(example.audio) for example in short}):
            rows = [example for example in short if len(example.audio) == count]
            audio.update(zip([row.id for row in rows], self._decode_short(model, rows), strict=True))
        for number, example in enumerate(pool):
            path = folder / f"{number}.{self.kind}"
            try:
                if example.error is not None:
                    raise ValueError(example.error)
                result = audio.get(example.id)
                if isinstance(result, Exception):
                    raise result
                blocks = self._decode_long(model, example.audio) if result is None else [result]
                samples = self._write(path, blocks, example.columns.get(SAMPLES))
            except (ValueError, TypeError, RuntimeError) as error:
                check_device(error)
                yield example, path, 0.0, describe(error)
                continue
            seconds = samples / self.sampling_rate
            progress(seconds)
            yield example, path, seconds, None

    def _decode_short(self, model, examples: list[Example]) -> list:
        try:
            return decode_all(model, [example.audio[: self.num_quantizers] for example in examples], self.batch_seconds)
        except (ValueError, TypeError, RuntimeError) as error:
            if len(examples) == 1:
                return [error]
            middle = len(examples) // 2
            return self._decode_short(model, examples[:middle]) + self._decode_short(model, examples[middle:])

    def _decode_long(self, model, codes: np.ndarray) -> Iterator[np.ndarray]:
        stream = model.decoder_stream()
        codes = codes[: self.num_quantizers]
        for start in range(0, codes.shape[1], _LONG_PUSH):
            piece = torch.from_numpy(codes[None, :, start : start + _LONG_PUSH]).to(model.device)
            yield stream.push(piece)[0].float().cpu().numpy()

    def _write(self, path: Path, blocks: Iterable[np.ndarray], num_samples: int | None) -> int:
        written = 0
        with write_blocks(path, self.sampling_rate, self.channels) as write:
            for block in blocks:
                block = block if num_samples is None else block[:, : max(0, num_samples - written)]
                write(block)
                written += block.shape[1]
        return written

    def _write_parquet(self, decoded, index: int):
        kept = self.source.schema()
        file = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        names = [name for name in kept.names if name not in (ID, "audio")]
        schema = _with_audio(pa.schema([(ID, pa.string()), ("audio", file), *(kept.field(name) for name in names)]))
        name = f"data/train-{self.shard_name(index)}.parquet"
        with self.output.writing(name) as aside, pq.ParquetWriter(aside, schema) as writer:
            rows: list[dict] = []
            held = 0
            for example, path in decoded:
                audio = {"bytes": path.read_bytes(), "path": f"{file_name(example.id)}.{self.kind}"}
                rows.append({**example.columns, ID: example.id, "audio": audio})
                path.unlink()
                held += len(audio["bytes"])
                if len(rows) == _ROWS or held >= _BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows, held = [], 0
            writer.write_table(pa.Table.from_pylist(rows, schema))

    def empty_report(self) -> AudioReport:
        return AudioReport()

    def totals(self, total: AudioReport) -> dict:
        return {
            "examples": total.examples,
            "hours": round(total.seconds / 3600, 6),
            "failures": len(total.failures),
        }

    def write_card(self, total: AudioReport | None):
        numbers = None if total is None else self.totals(total)
        self.output.write("README.md", detokenized_card(self.settings(), self.source.describe(), numbers).encode())


def file_name(identifier: str) -> str:
    """The id of an example as a relative path: the same for the same id only.

    Example:

        >>> file_name("talks/first one.wav")
        'talks/first one.wav'
        >>> file_name("/../a:b")
        '%/%2E%2E/a%3Ab'
    """
    *folders, last = identifier.split("/")
    # A folder a.flac would be in the way of the file of an example called a.
    marked = [re.sub(rf"\.({'|'.join(FORMATS)})$", r"%2E\1", _escape(folder)) for folder in folders]
    path = "/".join([*marked, _escape(last)])
    if len(path.encode()) > _LONGEST_PATH:
        return f"%{hashlib.sha256(identifier.encode()).hexdigest()}"
    return path


def _escape(part: str) -> str:
    """A part of an id as the name of a file."""
    # What a file system may forbid or understand otherwise; letters of all languages stay.
    name = "".join(quote(sign, safe="") if sign in '%:\\*?"<>|' or sign < " " else sign for sign in part)
    if name == "" or name.startswith("."):
        name = name.replace(".", "%2E") or "%"
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(part.encode()).hexdigest()[:16]
        name = f"{name.encode()[: _LONGEST_NAME - 20].decode(errors='ignore')}%{digest}"
    return name


def _with_audio(schema: pa.Schema) -> pa.Schema:
    """`schema` with what tells `datasets` that the column `audio` is audio."""
    from datasets import Features

    features = Features.from_arrow_schema(schema).to_dict()
    features["audio"] = {"_type": "Audio"}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
