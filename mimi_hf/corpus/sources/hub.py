"""A data set on the Hub, or a folder of the same form, read by `datasets`."""

import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa

from mimi_hf.utils.remote import is_absent

from .base import DAMAGE, Example, Source, as_audio, check_shard_size, is_damage
from .columns import Columns, unify
from .parquet import choose_audio

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/?")


class HubSource(Source):
    """A data set that `datasets` can stream.

    One file of it is one shard. An example is called `train/3:17`, after the split, the file's number and the row. The
    audio is fetched as bytes, and decoded like that of other sources. Class labels become their names. The commit
    of the data set is looked up once, so that it cannot change during a run.

    Args:
        location: `user/name`, `hf://datasets/user/name@revision`, or a local folder.
        split: required if there are several; `"all"` takes them one after the other, and adds a column `split`.
        config: required if there are several.
        audio_column: by default the one called `audio`, or the only one of audio.
        columns: names of columns to keep; all by default.
        revision: branch, tag or commit.

    Raises:
        ValueError, TypeError: it cannot be opened, or an argument does not fit.
    """

    kind = "hub"

    def __init__(
        self,
        location: str,
        split: str | None = None,
        config: str | None = None,
        audio_column: str | None = None,
        columns: list[str] | None = None,
        revision: str | None = None,
    ):
        self.location, self.split, self.config = location, split, config
        url = HUB_URL.fullmatch(location)
        self.name, revision = (url[1], revision or url[2]) if url else (location, revision)
        self.revision = None
        if os.path.isdir(self.name):
            self.name = os.path.realpath(self.name)  # as `datasets` does, so that its paths begin with it
        else:
            self.revision = self._explained(lambda: _commit(self.name, revision))
        streams = self._streams
        present = unify({name: _arrow_schema(stream.features) for name, stream in streams.items()}, columns, location)
        self.classes = {name: _class_names(stream.features) for name, stream in streams.items()}
        self.audio_column = choose_audio(present, audio_column, location)
        self.adds_split = split == "all" and "split" not in present.names
        if self.adds_split:
            present = present.append(pa.field("split", pa.string()))
        self.columns = Columns.choose(present, columns, [self.audio_column], location)

    def describe(self) -> dict[str, Any]:
        """As [`Source.describe`]."""
        described = {"kind": self.kind, "location": self.location, "revision": self.revision, "config": self.config}
        columns = list(self.columns.fields)
        return {**described, "split": self.split, "audio_column": self.audio_column, "columns": columns}

    def schema(self) -> pa.Schema:
        """As [`Source.schema`]."""
        return self.columns.schema

    def shards(self, shard_size: int) -> list[dict[str, Any]]:
        """One shard a file of the data set, whatever `shard_size` is."""
        check_shard_size(shard_size)
        return [
            {"split": split, "file": index, "files": _num_files(stream)}
            for split, stream in self._streams.items()
            for index in range(_num_files(stream))
        ]

    def read(self, shard: dict[str, Any]) -> Iterator[Example]:
        """As [`Source.read`]."""
        split, index = shard["split"], shard["file"]
        # Not in `try`: an error in opening the data set is no damage of one file.
        stream = _raw(self._streams[split].shard(num_shards=shard["files"], index=index))
        row = 0
        try:
            for record in stream:
                yield self._example(f"{split}/{index}:{row}", split, record)
                row += 1
        except DAMAGE as error:
            if not (is_damage(error) if os.path.isabs(self.name) else is_damage_behind_url(error)):
                raise
            problem = f"File {index} of the split {split!r} cannot be read after row {row}: {error}"
            yield Example(f"{split}/{index}:rest", None, error=problem)

    def _example(self, identifier: str, split: str, record: dict) -> Example:
        columns: dict = {}
        try:
            named = {name: _name(record.get(name), names) for name, names in self.classes[split].items()}
            columns = self.columns.of({**({"split": split} if self.adds_split else {}), **record, **named})
            return Example(identifier, as_own_audio(record.get(self.audio_column), self._root), columns)
        except (ValueError, OverflowError) as error:
            return Example(identifier, None, columns, error=str(error))

    @property
    def _root(self) -> str:
        return self.name if os.path.isabs(self.name) else f"hf://datasets/{self.name}@{self.revision}"

    @cached_property
    def _streams(self) -> dict[str, Any]:
        """The wanted splits, as `IterableDataset` whose audio stays bytes."""
        from datasets import load_dataset

        loaded = self._explained(lambda: load_dataset(self.name, self.config, revision=self.revision, streaming=True))
        splits = {str(name): stream for name, stream in loaded.items()}
        if self.split == "all" or (self.split is None and len(splits) == 1):
            chosen = sorted(splits)
        elif self.split is not None and self.split in splits:
            chosen = [self.split]
        else:
            given = "needs a split" if self.split is None else f"has no split {self.split!r}"
            raise ValueError(f"{self.location!r} {given}. There are: {', '.join(splits)}; 'all' takes all of them.")
        return {name: self._explained(lambda name=name: _with_features(splits[name])) for name in chosen}

    def _explained(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (ValueError, OSError) as error:
            here = "" if os.path.isabs(self.name) else " There is no such folder here, and the Hub was asked."
            raise ValueError(f"The data set {self.location!r} cannot be opened: {error}{here}") from error


def _commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the HTTP client, whose errors have no common class with others
        raise OSError(f"the Hub cannot be reached ({error}).") from error


def is_damage_behind_url(error: Exception) -> bool:
    """As [`is_damage`], for errors of the Hub's client, which raises subclasses of OSError for everything."""
    return is_absent(error) if isinstance(error, OSError) and type(error) is not OSError else is_damage(error)


def as_own_audio(value: Any, root: str) -> str | bytes | dict[str, Any]:
    """As [`as_audio`], but refuse a path outside `root`: a data set must not name other files of this machine.

    Raises:
        ValueError: it holds no audio, or lies outside.
    """
    audio = as_audio(value, root)
    if isinstance(audio, str) and (not audio.startswith(root.rstrip("/") + "/") or ".." in audio.split("/")):
        raise ValueError(f"{audio!r} lies outside of the data set {root!r}, whose rows may only name files in it.")
    return audio


def _with_features(stream: Any) -> Any:
    return stream if stream.features is not None else stream._resolve_features()


def _raw(stream: Any) -> Any:
    """The stream without features: values come as they are stored, and torchcodec is not asked to decode them.

    `Audio(decode=False)` does not help with data sets that are not made of Arrow tables: it encodes their values.
    """
    stream.info.features = None
    return stream


def _arrow_schema(features: Any) -> pa.Schema:
    from datasets import ClassLabel

    schema = features.arrow_schema.remove_metadata()
    for i, (name, feature) in enumerate(features.items()):
        if isinstance(feature, ClassLabel):
            schema = schema.set(i, pa.field(name, pa.string()))
    return schema


def _class_names(features: Any) -> dict[str, list[str]]:
    from datasets import ClassLabel

    return {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}


def _num_files(stream: Any) -> int:
    return stream.num_shards if hasattr(stream, "num_shards") else stream.n_shards


def _name(label: Any, names: list[str]) -> str | None:
    """The name of a class label, which may be stored as a number; -1 stands for none."""
    if not isinstance(label, int):
        return label
    return names[label] if 0 <= label < len(names) else None
