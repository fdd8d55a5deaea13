"""Little corpora of every kind, and what every source must do."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile


def wav(seed=0):
    """The bytes of a short recording."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 50), 8000, format="WAV")
    return file.getvalue()


def read_all(source, shard_size):
    """All examples, over shards that went through JSON, by a source that went through pickle."""
    shards = json.loads(json.dumps(source.shards(shard_size)))
    source = pickle.loads(pickle.dumps(source))
    return [example for shard in shards for example in source.read(shard)]


def assert_complete(source, count, sizes=(1, 2, 3, 1000)):
    """Every example once, in the same order whatever the size of the shards; columns as the schema says."""
    examples = read_all(source, 7)
    ids = [example.id for example in examples]
    assert len(ids) == count == len(set(ids))
    for size in sizes:
        assert [(e.id, e.columns, e.error) for e in read_all(source, size)] == [
            (e.id, e.columns, e.error) for e in examples
        ]
    assert "id" not in source.schema().names
    for example in examples:
        assert (example.audio is None) == (example.error is not None)
        if example.columns:
            assert list(example.columns) == source.schema().names
    schema = source.schema().append(pa.field("id", pa.string()))
    pq.write_table(pa.Table.from_pylist([{**e.columns, "id": e.id} for e in examples], schema), io.BytesIO())
    json.dumps(source.describe())
    assert len(pickle.dumps(source)) < 4000
    return examples


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wav())


def audio_table(rows, audio=None, first=0):
    numbers = range(first, first + rows)
    audio = audio or [{"bytes": wav(i), "path": f"{i}.wav"} for i in numbers]
    return pa.table({"audio": audio, "text": [f"t{i}" for i in numbers], "id": list(numbers)})


def make_tar(members, mode="w"):
    """The bytes of a tar of (name, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


def members(keys):
    return [(f"{key}{end}", content) for key in keys for end, content in ((".wav", wav()), (".txt", key.encode()))]
