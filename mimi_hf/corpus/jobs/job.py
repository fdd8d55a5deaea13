"""A corpus as a job of shards: every process plans the same shards, each is made once, all are joined at the end.

The output holds

    manifest.json            what this corpus is made of and with, written first; a rerun must agree with it
    data/…                   the content of the shards
    shards/…                 the report of each shard: when it is there, the shard is done
    README.md, totals.json   and failures.parquet: written when all shards are done, totals.json last
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mimi_hf.corpus.names import MANIFEST, TOTALS
from mimi_hf.corpus.sources import Source
from mimi_hf.loading import ModelChoice, weights_digest
from mimi_hf.utils.ahead import map_ahead

from .reports import Report
from .storage import Output

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

__all__ = ["MANIFEST", "TOTALS", "ExampleError", "Job", "Progress", "good_shard_size"]

# Examples of a shard, at least and at most, and shards of a small corpus, by default.
_LEAST, _MOST, _SHARDS = 50, 1000, 64

# Is called with the seconds of audio that were done since the last call; negative if they are to be done again.
Progress = Callable[[float], None]
ReportT = TypeVar("ReportT", bound=Report)


class ExampleError(ValueError):
    """An example failed in a job that is `strict`."""


class Job(ABC, Generic[ReportT]):
    """Work on a corpus that is cut into shards. It can be pickled, and is small until a worker loads the model.

    Args:
        source: where examples come from.
        output: where results go.
        model: the model to use.
        shard_size: examples in a shard, about; the default is [`good_shard_size`].

    Attributes:
        task: the name of the job.
        fixed_settings: names of the settings that may not change between runs and machines.
        ignored_prefixes: weights whose names begin so are not used by the job, and may change.
    """

    task: str = ""
    fixed_settings: tuple[str, ...] = ()
    ignored_prefixes: tuple[str, ...] = ()

    def __init__(self, source: Source, output: Output, model: ModelChoice, shard_size: int | None = None):
        if shard_size is None:
            shard_size = good_shard_size(source)
        if shard_size < 1:
            raise ValueError(f"shard_size={shard_size} must be at least 1 example.")
        self.source, self.output, self.model, self.shard_size = source, output, model, shard_size
        self.weights_digest: str | None = None
        self._shards: list[dict] | None = None
        self._plan: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": None}  # each worker plans by itself: a plan may be long

    def load(self, device: str | None) -> MimiModel:
        """Load the model, once in each worker.

        Raises:
            OSError, ValueError: it cannot be loaded, or was changed since the job began.
        """
        model = self.model.load(device)
        digest = weights_digest(model, self.ignored_prefixes)
        if self.weights_digest not in (None, digest):
            raise ValueError(
                f"The model {self.model.name} was changed since the run began. Put it back as it was, or name a new"
                " folder to write to."
            )
        self.weights_digest = digest
        return model

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The plan: how the source describes each shard.

        Raises:
            ValueError: a worker finds other shards than the process that started it.
        """
        if self._shards is None:
            shards = self.source.shards(self.shard_size)
            text = json.dumps(shards, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
            plan = hashlib.sha256(text).hexdigest()
            if self._plan not in (None, plan):
                raise ValueError(
                    "The source has changed since the run began: files came, went, or were renamed, so that shards"
                    " would mean something else. Put it back as it was, or name a new folder to write to."
                )
            self._shards, self._plan = shards, plan
            return shards
        return self._shards

    def shard_name(self, index: int) -> str:
        """`00007-of-00100`."""
        return f"{index:05d}-of-{len(self.shards):05d}"

    def report_name(self, index: int) -> str:
        """The file with the report of a shard. When it is there, the shard is done."""
        return f"shards/{self.shard_name(index)}.json"

    def unfinished(self) -> list[int]:
        """Look up which shards are not done yet."""
        done = self.output.names("shards")
        return [index for index in range(len(self.shards)) if f"{self.shard_name(index)}.json" not in done]

    def begin(self) -> None:
        """Write the manifest, or check that the one that is there belongs to the same job.

        Raises:
            ValueError: the output holds something else.
        """
        shards = len(self.shards)
        manifest = {
            **self.settings(),
            "source": self.source.describe(),
            "shards": shards,
            "shard_size": self.shard_size,
            "plan_sha256": self._plan,
        }
        if self.output.is_file():
            raise ValueError(f"{self.output.location} is a file. Name a folder to write to.")
        present = {name for name in self.output.names() if not name.startswith(".")}
        # Checked after the listing: another machine may begin at this moment.
        if self.output.exists(MANIFEST):
            self._check_same(self.output.read_json(MANIFEST), json.loads(json.dumps(manifest)))
        elif present:
            raise ValueError(
                f"{self.output.location} holds {', '.join(sorted(present)[:5])}, but no {MANIFEST} of a run that"
                " could go on. Name a new folder, or an empty one."
            )
        else:
            self.output.write_json(MANIFEST, manifest)
            self.write_card(None)

    def _check_same(self, there: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuse the manifest of another job.

        Names of models and folders may differ between machines; their content may not.
        """
        pairs = [(key, there.get(key), now[key]) for key in (*self.fixed_settings, "shard_size", "shards")]
        source = there.get("source", {})
        pairs += [(f"source's {key}", source.get(key), now["source"][key]) for key in now["source"]]
        different = [
            f"{key}: {_shorten(old)} there, {_shorten(new)} now"
            for key, old, new in pairs
            if old != new and key != "source's location"
        ]
        if there.get("plan_sha256") != now["plan_sha256"] and not different:
            different = ["the source's files or rows are others than they were"]
        if different:
            raise ValueError(
                f"{self.output.location} was begun with another source or other settings ({'; '.join(different)})."
                " Go on with those, or name a new folder."
            )

    def finish(self) -> dict[str, Any] | None:
        """Join the reports if all shards are done: write failures, card and totals.

        Several processes may do so at once, as they write the same files.

        Returns:
            The totals, or `None` if shards are missing.
        """
        if self.unfinished():
            return None
        total = self.empty_report()

        def read(index: int) -> ReportT:
            return type(total).from_dict(self.output.read_json(self.report_name(index)))

        for report in map_ahead(read, range(len(self.shards)), threads=16, ahead=64):
            total.merge(report)
        if total.failures:
            names = ("id", "reason")
            table = pa.table({name: pa.array([row[name] for row in total.failures], pa.string()) for name in names})
            with self.output.writing("failures.parquet") as path:
                pq.write_table(table, path)
        self.write_card(total)
        self.output.write_json(TOTALS, self.totals(total))
        return self.totals(total)

    def settings(self) -> dict[str, Any]:
        """What determines the content of the output, JSON-able. Jobs add their own settings."""
        return {
            "task": self.task,
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": self.model.dtype,
            "columns": {field.name: str(field.type) for field in self.source.schema()},
            "mimi_hf": importlib.metadata.version("mimi_hf"),
        }

    @abstractmethod
    def run(self, model: MimiModel, index: int, progress: Progress) -> ReportT:
        """Make a shard. Its report is written last, and returned.

        Raises:
            OSError: a network or a disk failed.
            ExampleError: an example failed, and the job is strict.
        """

    @abstractmethod
    def empty_report(self) -> ReportT:
        """The report of no examples."""

    @abstractmethod
    def totals(self, total: ReportT) -> dict[str, Any]:
        """The numbers of a joined report that users see, JSON-able."""

    @abstractmethod
    def write_card(self, total: ReportT | None) -> None:
        """Write README.md; `total` is `None` while shards are missing."""


def good_shard_size(source: Source) -> int:
    """The default examples of a shard: 1000; fewer in a small source, so that it has about 64 shards; at least 50.

    It is always the same for the same source.
    """
    return min(_MOST, max(_LEAST, len(source.shards(_LEAST)) * _LEAST // _SHARDS))


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"
