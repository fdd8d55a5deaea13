"""Audio to a data set of codes: the job behind `mimi-hf tokenize`."""

import importlib.metadata
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimi_hf.inference.batches import code_dtype
from mimi_hf.loading import ModelChoice

from .dataset_card import tokenized_card
from .encoding import Encoded, EncodingOptions, ShardReport, encode_examples
from .job import Job, Progress
from .output import Output

ID, CODES, SAMPLES = "id", "audio_codes", "audio_num_samples"
# The most rows, and about the most codes, of a row group.
_ROWS, _CODES = 1000, 2**24


class ExampleError(ValueError):
    """An example failed, and nothing may (`strict`)."""


class TokenizeJob(Job):
    """Tokenize a source into parquet shards.

    Each row has `id`, `audio_codes` (K, F), `audio_num_samples` (at the model's rate, which trims decoded audio to its
    length) and the other columns of the source.

    Args:
        source, output, shard_size: as for [`Job`].
        model: which one.
        options: how to encode.
        strict: stop at the first example that fails.

    Raises:
        ValueError: a column of the source has a name that the output needs, or K does not fit the model.
    """

    decisive = ("task", "dtype", "codebook_digest", "encoder_digest", "num_quantizers", "columns")
    unused = ("decoder.", "decoder_transformer.", "upsample.")

    def __init__(
        self, source, output: Output, model: ModelChoice, options: EncodingOptions, shard_size=None, strict=False
    ):
        super().__init__(source, output, model, shard_size)
        self.strict = strict
        taken = {ID, CODES, SAMPLES}.intersection(source.schema().names)
        if taken:
            raise ValueError(
                f"The source has columns named {', '.join(sorted(taken))}, which the output needs. Rename them, or"
                " leave them out by naming the columns to keep."
            )
        loaded = self.load("cpu")
        # All workers shall agree on K, and the manifest shall name it.
        quantizers = loaded.quantizer.check_num_quantizers(options.num_quantizers)
        self.options = replace(options, num_quantizers=quantizers)
        self.codebook_size, self.sampling_rate = loaded.config.codebook_size, loaded.config.sampling_rate
        self.frame_size, self.frame_rate = loaded.config.frame_size, loaded.config.frame_rate
        self.codebook_digest = loaded.codebook_digest

    def settings(self) -> dict:
        return {
            "task": "tokenize",
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": self.model.dtype,
            "codebook_digest": self.codebook_digest,
            "encoder_digest": self.weights_digest,
            "num_quantizers": self.options.num_quantizers,
            "codebook_size": self.codebook_size,
            "sampling_rate": self.sampling_rate,
            "frame_size": self.frame_size,
            "columns": {field.name: str(field.type) for field in self.source.schema()},
            "mimi_hf": importlib.metadata.version("mimi_hf"),
        }

    def run(self, model, index: int, progress: Progress) -> ShardReport:
        report = self.empty_report()
        examples = encode_examples(model, self.source.read(self.shards[index]), self.options, progress)
        name, schema = f"data/train-{self.shard_name(index)}.parquet", self._table([]).schema
        with self.output.writing(name) as path, pq.ParquetWriter(path, schema) as writer:
            for rows in _row_groups(self._counted(examples, report)):
                writer.write_table(self._table(rows))
        self.output.write_json(self.report_name(index), report.to_dict())
        return report

    def _counted(self, examples: Iterable[Encoded], report: ShardReport) -> Iterator[Encoded]:
        """The examples that succeeded, while `report` counts all."""
        for encoded in examples:
            report.add(encoded)
            if encoded.codes is not None:
                yield encoded
            elif self.strict:
                raise ExampleError(f"{encoded.example.id}: {encoded.reason}")

    def _table(self, rows) -> pa.Table:
        kept = self.source.schema()
        codes = code_dtype(self.codebook_size)
        columns = {
            ID: pa.array([row.example.id for row in rows], pa.string()),
            CODES: _nested([row.codes for row in rows], pa.from_numpy_dtype(codes)),
            SAMPLES: pa.array([row.num_samples for row in rows], pa.int64()),
        }
        for name in kept.names:
            columns[name] = pa.array([row.example.columns.get(name) for row in rows], kept.field(name).type)
        return pa.table(columns)

    def empty_report(self) -> ShardReport:
        return ShardReport.empty(self.options.num_quantizers, self.codebook_size)

    def totals(self, total: ShardReport) -> dict:
        return totals(total, self.sampling_rate)

    def write_card(self, total: ShardReport | None):
        numbers = None if total is None else self.totals(total)
        card = tokenized_card(self.settings(), self.source.describe(), numbers)
        self.output.write("README.md", card.encode("utf-8", "backslashreplace"))


def totals(report: ShardReport, sampling_rate: int) -> dict:
    """The sums of a corpus: hours, frames, and of each codebook how many entries it used, and its entropy in bits."""
    codebooks = []
    for counts in report.counts:
        shares = counts[counts > 0] / max(1, counts.sum())
        entropy = float(-(shares * np.log2(shares)).sum()) if len(shares) else 0.0
        codebooks.append({"used": int((counts > 0).sum()), "entropy": round(abs(entropy), 4)})
    return {
        "examples": report.examples,
        "hours": round(report.samples / sampling_rate / 3600, 6),
        "samples": report.samples,
        "frames": report.frames,
        "failures": len(report.failures),
        "codebook_size": report.counts.shape[1],
        "bits_of_a_code": math.log2(report.counts.shape[1]),
        "codebooks": codebooks,
    }


def _row_groups(rows: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    """Rows that lie together in a file: readers load so much at once."""
    group: list[Encoded] = []
    held = 0
    for row in rows:
        group.append(row)
        held += row.codes.size
        if len(group) >= _ROWS or held >= _CODES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _nested(codes: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """A list of lists per row, without a Python object for each code."""
    flat = np.concatenate([item.reshape(-1) for item in codes]) if codes else np.empty(0, np.uint16)
    inner = np.concatenate([[0], *(np.full(len(item), item.shape[1]) for item in codes)]).cumsum()
    outer = np.cumsum([0, *(len(item) for item in codes)])
    rows = pa.ListArray.from_arrays(pa.array(inner, pa.int32()), pa.array(flat, kind))
    return pa.ListArray.from_arrays(pa.array(outer, pa.int32()), rows)
