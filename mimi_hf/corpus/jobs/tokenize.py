"""A corpus of audio to codes: the job behind `mimi-hf tokenize`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimi_hf.corpus.names import CODES, ID, SAMPLES
from mimi_hf.corpus.sources import Source
from mimi_hf.inference.batches import code_dtype, group_in_order
from mimi_hf.loading import ModelChoice

from .dataset_card import tokenized_card
from .encoding import Encoded, EncodingOptions, encode_examples
from .job import ExampleError, Job, Progress
from .reports import CodesReport
from .storage import Output

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

__all__ = ["ExampleError", "TokenizeJob"]

_ROWS, _CODES = 1000, 2**24  # a row group ends at either: readers load it at once


class TokenizeJob(Job[CodesReport]):
    """Tokenize a source into parquet shards.

    Each row has `id`, `audio_codes` (K, F), `audio_num_samples` (at the model's rate: decoded audio is cut to it) and
    the other columns of the source.

    Args:
        source, output, model, shard_size: as for [`Job`].
        options: how to encode.
        strict: stop at the first example that fails.

    Raises:
        ValueError: a column of the source has a name that the output needs, or K does not fit the model.
    """

    task = "tokenize"
    ignored_prefixes = ("decoder.", "decoder_transformer.", "upsample.")
    fixed_settings = ("task", "dtype", "codebook_digest", "encoder_digest", "num_quantizers", "columns")

    def __init__(
        self,
        source: Source,
        output: Output,
        model: ModelChoice,
        options: EncodingOptions,
        shard_size: int | None = None,
        strict: bool = False,
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
        # The default K becomes a number, for the manifest and for all workers.
        self.num_quantizers = loaded.check_num_quantizers(options.num_quantizers)
        self.options = replace(options, num_quantizers=self.num_quantizers)
        self.codebook_size, self.sampling_rate = loaded.config.codebook_size, loaded.config.sampling_rate
        self.frame_size = loaded.config.frame_size
        self.codebook_digest = loaded.codebook_digest

    def settings(self) -> dict[str, Any]:
        """As [`Job.settings`]."""
        return {
            **super().settings(),
            "codebook_digest": self.codebook_digest,
            "encoder_digest": self.weights_digest,
            "num_quantizers": self.num_quantizers,
            "codebook_size": self.codebook_size,
            "sampling_rate": self.sampling_rate,
            "frame_size": self.frame_size,
        }

    def run(self, model: MimiModel, index: int, progress: Progress) -> CodesReport:
        """As [`Job.run`]."""
        report = self.empty_report()
        examples = encode_examples(model, self.source.read(self.shards[index]), self.options, progress)
        name, schema = f"data/train-{self.shard_name(index)}.parquet", self._table([]).schema
        with self.output.writing(name) as path, pq.ParquetWriter(path, schema) as writer:
            rows = self._counted(examples, report)
            for group in group_in_order(rows, lambda row: 0 if row.codes is None else row.codes.size, _CODES, _ROWS):
                writer.write_table(self._table(group))
        self.output.write_json(self.report_name(index), report.to_dict())
        return report

    def _counted(self, examples: Iterable[Encoded], report: CodesReport) -> Iterator[Encoded]:
        """The examples that succeeded, while `report` counts all."""
        for encoded in examples:
            report.add(encoded)
            if encoded.codes is not None:
                yield encoded
            elif self.strict:
                raise ExampleError(f"{encoded.example.id}: {encoded.reason}")

    def _table(self, rows: Sequence[Encoded]) -> pa.Table:
        kept = self.source.schema()
        codes = [row.codes for row in rows if row.codes is not None]
        columns = {
            ID: pa.array([row.example.id for row in rows], pa.string()),
            CODES: _nest(codes, pa.from_numpy_dtype(code_dtype(self.codebook_size))),
            SAMPLES: pa.array([row.num_samples for row in rows], pa.int64()),
        }
        for name in kept.names:
            columns[name] = pa.array([row.example.columns.get(name) for row in rows], kept.field(name).type)
        return pa.table(columns)

    def empty_report(self) -> CodesReport:
        """As [`Job.empty_report`]."""
        return CodesReport.empty(self.num_quantizers, self.codebook_size)

    def totals(self, total: CodesReport) -> dict[str, Any]:
        """As [`Job.totals`]: of each codebook, how many of its entries were used, and its entropy in bits."""
        codebooks = []
        for counts in total.counts:
            shares = counts[counts > 0] / max(1, counts.sum())
            entropy = float(-(shares * np.log2(shares)).sum()) if len(shares) else 0.0
            codebooks.append({"used": int((counts > 0).sum()), "entropy": round(abs(entropy), 4)})
        return {
            "examples": total.examples,
            "hours": round(total.samples / self.sampling_rate / 3600, 6),
            "samples": total.samples,
            "frames": total.frames,
            "failures": len(total.failures),
            "codebook_size": self.codebook_size,
            "bits_of_a_code": math.log2(self.codebook_size),
            "codebooks": codebooks,
        }

    def write_card(self, total: CodesReport | None) -> None:
        """As [`Job.write_card`]."""
        numbers = None if total is None else self.totals(total)
        card = tokenized_card(self.settings(), self.source.describe(), numbers)
        self.output.write("README.md", card.encode("utf-8", "backslashreplace"))


def _nest(codes: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    """A list of lists per row, without a Python object for each code."""
    flat = np.concatenate([item.reshape(-1) for item in codes]) if codes else np.empty(0, np.uint16)
    inner = np.concatenate([[0], *(np.full(len(item), item.shape[1]) for item in codes)]).cumsum()
    outer = np.cumsum([0, *(len(item) for item in codes)])
    rows = pa.ListArray.from_arrays(pa.array(inner, pa.int32()), pa.array(flat, kind))
    return pa.ListArray.from_arrays(pa.array(outer, pa.int32()), rows)
