"""A corpus as a job of shards: planned the same way everywhere, each shard made once, joined at the end.

Under the output lie

    manifest.json            what this corpus is made of and with, written first; a rerun must agree with it
    data/…                   what the shards hold
    shards/00007.json        the report of a shard: it is done when this is there
    README.md, totals.json   and failures.parquet: written when all shards are done
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .output import Output

MANIFEST = "manifest.json"
Progress = Callable[[float], None]


class Job(ABC):
    """Work on a corpus that is cut into shards. It can be pickled, and is light until a worker loads it.

    Args:
        source: where examples come from.
        output: where results go.
        shard_size: examples of a shard, about.

    decisive: the settings that a rerun, and other machines, must share.
    """

    decisive: tuple[str, ...] = ()

    def __init__(self, source, output: Output, shard_size: int):
        if shard_size < 1:
            raise ValueError(f"shard_size={shard_size} must be at least 1 example.")
        self.source, self.output, self.shard_size = source, output, shard_size
        self._shards: list[dict] | None = None

    def __getstate__(self):
        return {**self.__dict__, "_shards": None}  # each worker plans by itself: a plan may be long

    @property
    def shards(self) -> list[dict]:
        """The plan: what the source calls each shard."""
        if self._shards is None:
            self._shards = self.source.shards(self.shard_size)
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
        plan = json.dumps(self.shards, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        manifest = {
            **self.settings(),
            "source": self.source.describe(),
            "shards": len(self.shards),
            "shard_size": self.shard_size,
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
        }
        if not self.output.exists(MANIFEST):
            present = {name for name in self.output.names() if not name.startswith(".")}
            if present:
                raise ValueError(
                    f"{self.output.location} holds {', '.join(sorted(present)[:5])}, but no {MANIFEST} of a run that"
                    " could go on. Name a new folder, or an empty one."
                )
            self.output.write_json(MANIFEST, manifest)
            self.write_card(None)
            return
        present = self.output.read_json(MANIFEST)
        # Names of models and places may differ between machines; what they stand for may not.
        decisive = (*self.decisive, "shards", "shard_size", "plan_sha256")
        different = [key for key in decisive if present.get(key) != manifest[key]]
        if different:
            told = "; ".join(
                f"{key}: {_shorten(present.get(key))} there, {_shorten(manifest[key])} now" for key in different
            )
            raise ValueError(
                f"{self.output.location} was begun with another source or other settings ({told}). Go on with those,"
                " or name a new folder."
            )

    def finish(self):
        """Join the reports, where all shards are done: totals, failures, card.

        Whoever does it writes the same files, so that several may do it at once.

        Returns:
            The joined report, or `None` where shards are missing.
        """
        if self.unfinished():
            return None
        total = self.empty_report()
        for index in range(len(self.shards)):
            total.merge(type(total).from_dict(self.output.read_json(self.report_name(index))))
        self.write_totals(total)
        self.write_card(total)
        return total

    # What a job of a kind adds

    @abstractmethod
    def settings(self) -> dict:
        """What decides about the content of the output, JSON-able."""

    @abstractmethod
    def load(self, device: str | None) -> Any:
        """What a worker needs for any shard: the model."""

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
    def write_totals(self, total):
        """Write what all reports add up to."""

    @abstractmethod
    def write_card(self, total):
        """Write README.md; `total` is `None` while shards are missing."""


def _shorten(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"
