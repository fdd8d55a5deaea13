"""A corpus as a job of shards: planned the same way everywhere, each shard made once, joined at the end.

Under the output lie

    manifest.json            what this corpus is made of and with, written first; a rerun must agree with it
    data/…                   what the shards hold
    shards/…                 the report of each shard: it is done when this is there
    README.md, totals.json   and failures.parquet: written when all shards are done, totals.json last
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mimi_hf.loading import ModelChoice, weights_digest
from mimi_hf.utils.ahead import map_ahead

from .output import Output

# Examples of a shard, and shards of a small corpus, by default.
_LEAST, _MOST, _SHARDS = 50, 1000, 64
MANIFEST, TOTALS = "manifest.json", "totals.json"
Progress = Callable[[float], None]


class Job(ABC):
    """Work on a corpus that is cut into shards. It can be pickled, and is light until a worker loads it.

    Args:
        source: where examples come from.
        output: where results go.
        model: which one.
        shard_size: examples of a shard, about; see [`good_shard_size`] for the default.

    decisive: the settings that a rerun, and other machines, must share.
    unused: beginnings of the names of weights that the job does without.
    """

    decisive: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __init__(self, source, output: Output, model: ModelChoice, shard_size: int | None = None):
        if shard_size is None:
            shard_size = good_shard_size(source)
        if shard_size < 1:
            raise ValueError(f"shard_size={shard_size} must be at least 1 example.")
        self.source, self.output, self.model, self.shard_size = source, output, model, shard_size
        self.weights_digest: str | None = None
        self._shards: list[dict] | None = None
        self._plan: str | None = None

    def __getstate__(self):
        return {**self.__dict__, "_shards": None}  # each worker plans by itself: a plan may be long

    def load(self, device: str | None):
        """What a worker needs for any shard: the model.

        Raises:
            OSError, ValueError: it cannot be loaded, or is not the one any more that the job began with.
        """
        model = self.model.load(device)
        digest = weights_digest(model, self.unused)
        if self.weights_digest not in (None, digest):
            raise ValueError(
                f"The model {self.model.name} was changed since the run began. Put it back as it was, or name a new"
                " folder to write to."
            )
        self.weights_digest = digest
        return model

    @property
    def shards(self) -> list[dict]:
        """The plan: what the source calls each shard.

        Raises:
            ValueError: a worker sees another source than the one that started it.
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
        return self._shards

    def shard_name(self, index: int) -> str:
        """`00007-of-00100`."""
        return f"{index:05d}-of-{len(self.shards):05d}"

    def report_name(self, index: int) -> str:
        """The report of a shard, whose presence says that it is done."""
        return f"shards/{self.shard_name(index)}.json"

    def unfinished(self) -> list[int]:
        """The shards that are not done, at this moment."""
        done = self.output.names("shards")
        return [index for index in range(len(self.shards)) if f"{self.shard_name(index)}.json" not in done]

    def begin(self):
        """Write the manifest, or check that what is there belongs to the same job.

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
        # Asked after the listing: another machine may begin at this moment.
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

    def _check_same(self, there: dict, now: dict):
        """Refuse a manifest that tells of another job. Names of models and places may differ between machines; what
        they stand for may not."""
        pairs = [(key, there.get(key), now[key]) for key in (*self.decisive, "shard_size", "shards")]
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

    def finish(self) -> dict | None:
        """Join the reports, where all shards are done: failures, card, totals.

        Whoever does it writes the same files, so that several may do it at once.

        Returns:
            What to tell of the whole, or `None` where shards are missing.
        """
        if self.unfinished():
            return None
        total = self.empty_report()

        def read(index: int):
            return type(total).from_dict(self.output.read_json(self.report_name(index)))

        for report in map_ahead(read, range(len(self.shards)), threads=16, ahead=64):
            total.merge(report)
        self.write_failures(total.failures)
        self.write_card(total)
        self.output.write_json(TOTALS, self.totals(total))
        return self.totals(total)

    def write_failures(self, failures: list[dict]):
        """Write the table of failures, where there are any."""
        if failures:
            names = ("id", "reason")
            table = pa.table({name: pa.array([row[name] for row in failures], pa.string()) for name in names})
            with self.output.writing("failures.parquet") as path:
                pq.write_table(table, path)

    # What a job of a kind adds

    @abstractmethod
    def settings(self) -> dict:
        """What decides about the content of the output, JSON-able."""

    @abstractmethod
    def run(self, model: Any, index: int, progress: Progress):
        """Make a shard; its report is written last, and returned."""

    @abstractmethod
    def empty_report(self):
        """The report of nothing."""

    @abstractmethod
    def totals(self, total) -> dict:
        """What to tell of a joined report, JSON-able."""

    @abstractmethod
    def write_card(self, total):
        """Write README.md; `total` is `None` while shards are missing."""


def good_shard_size(source) -> int:
    """Examples of a shard: a thousand, and fewer where that would make fewer than some ten shards to share, but fifty
    at least. The same for the same source."""
    return min(_MOST, max(_LEAST, len(source.shards(_LEAST)) * _LEAST // _SHARDS))


def _shorten(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"
