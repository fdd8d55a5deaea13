"""Parquet files with a column of audio."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import assert_complete, audio_table, read_all, wav

from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import open_source, resolve_audio


@pytest.mark.parametrize("group", [1, 4, 100])
def test_parquet(tmp_path, group):
    for i, rows in enumerate([10, 1, 0, 13]):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(audio_table(rows, first=100 * i), tmp_path / f"data/{i}.parquet", row_group_size=group)
    (tmp_path / "README.md").touch()
    source = open_source(tmp_path)
    assert source.kind == "parquet"
    assert source.schema() == pa.schema([("text", pa.string()), ("source_id", pa.int64())])
    examples = assert_complete(source, 24, sizes=(1, 2, 3, 5, 24, 1000))
    assert (examples[-1].id, examples[-1].columns["text"]) == ("data/3.parquet:12", "t312")
    assert examples[12].audio == wav(301)
    assert [len(list(source.read(shard))) for shard in source.shards(8)] == {
        1: [8, 8, 8],
        4: [8, 7, 8, 1],
        100: [10, 14],
    }[group]


def test_parquet_cuts_only_row_groups_that_are_much_larger(tmp_path):
    pq.write_table(audio_table(40), tmp_path / "a.parquet", row_group_size=40)
    source = open_source(tmp_path / "a.parquet")
    assert [len(list(source.read(shard))) for shard in source.shards(10)] == [40]
    assert [len(list(source.read(shard))) for shard in source.shards(9)] == [8] * 5


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("audio", ["x/1.wav", "/y.wav"], ["{dir}/x/1.wav", "/y.wav"]),
        ("audio", [b"one", b"two"], [b"one", b"two"]),
        ("flac", [{"bytes": b"one", "path": None}, {"bytes": None, "path": "y.wav"}], [b"one", "{dir}/y.wav"]),
    ],
)
def test_parquet_takes_any_form_of_audio(tmp_path, name, values, expected):
    pq.write_table(pa.table({"text": ["a", "b"], name: values}), tmp_path / "a.parquet")
    examples = assert_complete(open_source(tmp_path), 2)
    here = [value.replace("{dir}", str(tmp_path)) if isinstance(value, str) else value for value in expected]
    assert [example.audio for example in examples] == here


def test_parquet_takes_arrays(tmp_path):
    values = [{"array": [0.5, -0.5], "sampling_rate": 8000}]
    pq.write_table(pa.table({"audio": values}), tmp_path / "a.parquet")
    (example,) = read_all(open_source(tmp_path), 9)
    audio, rate = read_audio(resolve_audio(example))
    np.testing.assert_array_equal(audio, [[0.5, -0.5]])
    assert rate == 8000


def test_parquet_files_may_differ_where_types_agree(tmp_path):
    audio = [{"bytes": b"x", "path": None}]
    first = {"audio": audio, "n": pa.array([1], pa.int32()), "who": pa.array(["a"]).dictionary_encode()}
    pq.write_table(pa.table(first), tmp_path / "a.parquet")
    pq.write_table(pa.table({"more": [["x"]], "n": [2.5], "who": ["b"], "audio": audio}), tmp_path / "b.parquet")
    columns = [example.columns for example in assert_complete(open_source(tmp_path), 2)]
    assert columns == [{"n": 1.0, "who": "a", "more": None}, {"n": 2.5, "who": "b", "more": ["x"]}]
    pq.write_table(pa.table({"audio": audio, "n": ["text"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet.*before it"):
        open_source(tmp_path)
    assert len(read_all(open_source(tmp_path, columns=["who"]), 9)) == 3


def test_parquet_damage_costs_only_what_is_damaged(tmp_path):
    pq.write_table(audio_table(12), tmp_path / "a.parquet", row_group_size=4, compression="none")
    pq.write_table(
        audio_table(3, [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}]), tmp_path / "b.parquet"
    )
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    place = metadata.row_group(1).column(0).data_page_offset
    content[place : place + 200] = bytes(200)
    (tmp_path / "a.parquet").write_bytes(content)
    examples = assert_complete(open_source(tmp_path), 16)
    bad = [example.id for example in examples if example.error]
    assert bad == [*(f"a.parquet:{i}" for i in range(4, 8)), "b.parquet:0", "b.parquet:1", "c.parquet"]
    assert examples[14].audio == b""


def test_parquet_behind_a_url(memory):
    for i in range(2):
        file = io.BytesIO()
        pq.write_table(audio_table(5, first=5 * i), file, row_group_size=2)
        memory.pipe(f"/p/train-{i}.parquet", file.getvalue())
    examples = assert_complete(open_source("memory://p/train-*.parquet", columns=[]), 10)
    assert [resolve_audio(example) for example in examples] == [wav(i) for i in range(10)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"]}, "no column 'audio'.*it has text"),
        ({"audio": [1]}, "of type int64"),
        ({"a": [{"bytes": b""}], "b": [{"bytes": b""}]}, "no column 'audio'"),
    ],
)
def test_parquet_without_audio_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)
