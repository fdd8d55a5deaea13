"""A corpus of codes to audio: the job behind `mimi-hf detokenize`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mimi_hf.audio import write_blocks
from mimi_hf.corpus.names import ID, SAMPLES
from mimi_hf.corpus.reading import LONG, check_device, describe, isolate_failures
from mimi_hf.corpus.sources import Example
from mimi_hf.corpus.sources.codes import CodesSource
from mimi_hf.inference.batches import check_batch_seconds, decode_all, default_batch_seconds, group_in_order
from mimi_hf.inference.recordings import decode_codes
from mimi_hf.loading import ModelChoice

from .dataset_card import detokenized_card
from .file_names import FORMATS, file_name
from .job import ExampleError, Job, Progress
from .reports import AudioReport
from .storage import Output

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

# Examples are sorted by length among as many as fill this many batches.
_POOL_BATCHES = 8
_LONG_PUSH = 250  # frames that the model takes at once of a long example
_ROWS, _BYTES = 100, 2**26  # a row group with audio ends at either


@dataclass
class Decoded:
    """The audio of an example, or why there is none.

    Attributes:
        example: with its codes.
        path: the file with the audio, in a folder for unfinished work.
        seconds: of audio.
        reason: why it could not be decoded.
    """

    example: Example
    path: Path
    seconds: float = 0.0
    reason: str | None = None


class DetokenizeJob(Job[AudioReport]):
    """Decode a corpus of codes into audio files, or into parquet shards with a column of audio.

    Files are called `audio/<id>.<kind>`; a row of a shard has `id`, `audio` and the other columns of the source.

    Args:
        source: the codes.
        output, model, shard_size: as for [`Job`].
        kind: of the files: flac, wav or ogg.
        as_parquet: write shards rather than files.
        num_quantizers: codebooks to use; all by default, and in rows that have fewer.
        batch_seconds: padded audio in a batch; by default what suits the device.
        any_model: decode codes of other codebooks than the model's.
        strict: stop at the first example that fails.

    Raises:
        ValueError: the corpus was made with other codebooks, or an argument makes no sense.
    """

    task = "detokenize"
    ignored_prefixes = ("encoder.", "encoder_transformer.", "downsample.")
    fixed_settings = (
        *("task", "dtype", "codebook_digest", "decoder_digest", "num_quantizers", "kind", "as_parquet", "columns"),
    )

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
            loaded.check_num_quantizers(num_quantizers)
        self.sampling_rate, self.channels = loaded.config.sampling_rate, loaded.config.audio_channels
        self.frame_size = loaded.config.frame_size
        self.codebook_digest = loaded.codebook_digest
        made_with = source.codebook_digest
        if made_with is not None and made_with != self.codebook_digest and not any_model:
            raise ValueError(
                f"The codes were made with other codebooks ({made_with[:12]}…) than those of {model.name}"
                f" ({self.codebook_digest[:12]}…), which would decode them to noise. Name the model that made them, or"
                " one that was trained from it with its codebooks kept (or insist with any_model)."
            )

    def settings(self) -> dict[str, Any]:
        """As [`Job.settings`]."""
        return {
            **super().settings(),
            "codebook_digest": self.codebook_digest,
            "decoder_digest": self.weights_digest,
            "num_quantizers": self.num_quantizers,
            "sampling_rate": self.sampling_rate,
            "kind": self.kind,
            "as_parquet": self.as_parquet,
        }

    def run(self, model: MimiModel, index: int, progress: Progress) -> AudioReport:
        """As [`Job.run`]."""
        report = AudioReport()
        with self.output.workspace() as folder:
            decoded = self._counted(self._decode(model, index, folder, progress), report)
            if self.as_parquet:
                self._write_parquet(decoded, index)
            else:
                for one in decoded:
                    with self.output.writing(f"audio/{file_name(one.example.id)}.{self.kind}") as aside:
                        shutil.move(one.path, aside)
        self.output.write_json(self.report_name(index), report.to_dict())
        return report

    def _counted(self, decoded: Iterable[Decoded], report: AudioReport) -> Iterator[Decoded]:
        """The examples that succeeded, while `report` counts all."""
        for one in decoded:
            if one.reason is None:
                report.examples += 1
                report.seconds += one.seconds
                yield one
            elif self.strict:
                raise ExampleError(f"{one.example.id}: {one.reason}")
            else:
                report.failures.append({"id": one.example.id, "reason": one.reason})

    def _decode(self, model: MimiModel, index: int, folder: Path, progress: Progress) -> Iterator[Decoded]:
        """Decode the examples of a shard into files in `folder`."""
        limit = _POOL_BATCHES * (self.batch_seconds or default_batch_seconds(model))

        def decode(codes):
            return decode_all(model, codes, self.num_quantizers, self.batch_seconds)

        for pool in group_in_order(self.source.read(self.shards[index]), self._seconds, limit):
            short = [one.codes for one in pool if one.codes is not None and self._seconds(one) <= LONG]
            results = iter(isolate_failures(decode, short))
            for number, example in enumerate(pool):
                path = folder / f"{number}.{self.kind}"
                try:
                    if example.codes is None:
                        raise ValueError(example.error)
                    if self._seconds(example) > LONG:
                        codes = torch.from_numpy(example.codes[None, : self.num_quantizers])
                        blocks = decode_codes(model.decoder_stream(), codes.split(_LONG_PUSH, dim=2))
                    else:
                        result = next(results)
                        if isinstance(result, Exception):
                            raise result
                        blocks = [result]
                    samples = self._write(path, blocks, example.columns.get(SAMPLES))
                except (ValueError, TypeError, RuntimeError) as error:
                    check_device(error)
                    yield Decoded(example, path, reason=describe(error))
                    continue
                seconds = samples / self.sampling_rate
                progress(seconds)
                yield Decoded(example, path, seconds)

    def _seconds(self, example: Example) -> float:
        return 0.0 if example.codes is None else example.codes.shape[1] * self.frame_size / self.sampling_rate

    def _write(self, path: Path, blocks: Iterable[np.ndarray], num_samples: int | None) -> int:
        written = 0
        with write_blocks(path, self.sampling_rate, self.channels) as write:
            for block in blocks:
                block = block if num_samples is None else block[:, : max(0, num_samples - written)]
                write(block)
                written += block.shape[1]
        return written

    def _write_parquet(self, decoded: Iterable[Decoded], index: int) -> None:
        def make_row(one: Decoded) -> dict[str, Any]:
            audio = {"bytes": one.path.read_bytes(), "path": f"{file_name(one.example.id)}.{self.kind}"}
            one.path.unlink()
            return {**one.example.columns, ID: one.example.id, "audio": audio}

        kept = self.source.schema()
        file = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        names = [name for name in kept.names if name not in (ID, "audio")]
        schema = _mark_audio(pa.schema([(ID, pa.string()), ("audio", file), *(kept.field(name) for name in names)]))
        with (
            self.output.writing(f"data/train-{self.shard_name(index)}.parquet") as aside,
            pq.ParquetWriter(aside, schema) as writer,
        ):
            rows = map(make_row, decoded)
            for group in group_in_order(rows, lambda row: len(row["audio"]["bytes"]), _BYTES, _ROWS):
                writer.write_table(pa.Table.from_pylist(group, schema))

    def empty_report(self) -> AudioReport:
        """As [`Job.empty_report`]."""
        return AudioReport()

    def totals(self, total: AudioReport) -> dict[str, Any]:
        """As [`Job.totals`]."""
        return {
            "examples": total.examples,
            "hours": round(total.seconds / 3600, 6),
            "failures": len(total.failures),
        }

    def write_card(self, total: AudioReport | None) -> None:
        """As [`Job.write_card`]."""
        numbers = None if total is None else self.totals(total)
        self.output.write("README.md", detokenized_card(self.settings(), self.source.describe(), numbers).encode())


def _mark_audio(schema: pa.Schema) -> pa.Schema:
    """`schema` with metadata that tells `datasets` that the column `audio` is audio."""
    from datasets import Features

    features: Any = Features.from_arrow_schema(schema).to_dict()
    features["audio"] = {"_type": "Audio"}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
