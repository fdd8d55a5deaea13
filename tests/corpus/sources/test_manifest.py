"""Manifests: JSON Lines, CSV and TSV."""

import csv
import json

import pyarrow as pa
import pytest
from support.sources import assert_complete, read_all, wav

from mimi_hf.corpus.sources import Example, open_source, resolve_audio

ROWS = [
    {"audio_filepath": "a b.wav", "text": 'say "hi", you', "speaker": 3, "loud": 0.5, "offset": 0.25, "duration": 1.5},
    {"audio_filepath": "/abs/ü.wav", "text": "ünï\tcode", "speaker": 12, "loud": 2, "offset": None, "duration": None},
    {"audio_filepath": "s3://bucket/c.wav", "text": None, "speaker": None, "loud": None, "offset": 0, "duration": 3},
]


def write_manifest(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows))
        return
    with open(path, "w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            lines = [list(rows[0]), *[["" if v is None else str(v) for v in row.values()] for row in rows]]
            file.write("".join("\t".join(line).replace("ï\tc", "ï c") + "\r\n" for line in lines))


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv"])
def test_manifest(tmp_path, ending):
    path = tmp_path / f"list{ending}"
    write_manifest(path, ROWS * 4)
    source = open_source(path)
    assert source.kind == "manifest"
    assert source.schema() == pa.schema([("text", pa.string()), ("speaker", pa.int64()), ("loud", pa.float64())])
    examples = assert_complete(source, 12, sizes=(1, 5, 12, 100))
    first, second, third = examples[:3]
    assert first == Example(
        f"list{ending}:0", f"{tmp_path}/a b.wav", {"text": ROWS[0]["text"], "speaker": 3, "loud": 0.5}, 0.25, 1.5
    )
    assert (second.audio, second.start, second.duration) == ("/abs/ü.wav", 0.0, None)
    assert isinstance(second.columns["loud"], float)
    assert (third.audio, third.duration) == ("s3://bucket/c.wav", 3.0)
    assert third.columns == {"text": None, "speaker": None, "loud": None}
    assert [len(list(source.read(shard))) for shard in source.shards(5)] == [5, 5, 2]
    chosen = open_source(path, columns=["duration", "text"])
    assert chosen.schema().names == ["duration", "text"]
    assert read_all(chosen, 5)[0].columns == {"duration": 1.5, "text": ROWS[0]["text"]}


def test_manifest_behind_a_url(memory):
    memory.pipe("/m/list.csv", b"\xef\xbb\xbfpath,text\na.wav,x\nmemory://n/b.wav,y\n../n/b.wav,z\n./a.wav,z\n")
    memory.pipe("/m/a.wav", wav(1))
    memory.pipe("/n/b.wav", wav(2))
    examples = assert_complete(open_source("memory://m/list.csv"), 4)
    assert [resolve_audio(example) for example in examples] == [wav(1), wav(2), wav(2), wav(1)]


@pytest.mark.parametrize(
    ("ids", "used"), [(["x", "y", "z"], True), ([1, 2, 3], True), (["x", "y", "x"], False), (["x", None, "z"], False)]
)
def test_manifest_ids_are_used_where_they_are_unique(tmp_path, ids, used):
    path = tmp_path / "list.jsonl"
    write_manifest(path, [{"id": name, "audio": "a.wav"} for name in ids])
    source = open_source(path)
    examples = assert_complete(source, 3)
    if used:
        assert [example.id for example in examples] == [str(name) for name in ids]
        assert source.schema().names == []
    else:
        assert [example.id for example in examples] == ["list.jsonl:0", "list.jsonl:1", "list.jsonl:2"]
        assert [example.columns["source_id"] for example in examples] == ids


def test_manifest_types_hold_for_the_whole_file(tmp_path):
    path = tmp_path / "list.jsonl"
    values = {
        "mixed": [1, "two", [3]],
        "number": [1, 2.5, None],
        "flag": [True, False, None],
        "words": [[], [{"w": "a", "t": 1}], [{"w": "b", "p": 0.5}]],
        "nothing": [None, None, None],
        "empty": [{}, {}, None],
        "huge": [2**70, 1, 2],
        "late": [None, None, {"a": {"b": [1]}}],
    }
    write_manifest(path, [{"wav": "a", **{name: column[i] for name, column in values.items()}} for i in range(3)])
    source = open_source(path)
    columns = [example.columns for example in assert_complete(source, 3)]
    assert [row["mixed"] for row in columns] == ["1", "two", "[3]"]
    assert [row["number"] for row in columns] == [1.0, 2.5, None]
    assert [row["huge"] for row in columns] == [str(2**70), "1", "2"]
    assert source.schema().field("words").type == pa.list_(
        pa.struct([("w", pa.string()), ("t", pa.int64()), ("p", pa.float64())])
    )
    assert source.schema().field("flag").type == pa.bool_()


def test_manifest_values_of_csv(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("file,speaker,score,flag,version\na,007,1e-3,TRUE,1.10\nb,12,2,false,x\n")
    source = open_source(path)
    assert [example.columns for example in assert_complete(source, 2)] == [
        {"speaker": "007", "score": 0.001, "flag": True, "version": "1.10"},
        {"speaker": "12", "score": 2.0, "flag": False, "version": "x"},
    ]


def test_bad_lines_of_json_are_examples_with_an_error(tmp_path):
    path = tmp_path / "list.jsonl"
    good = b'{"audio": "a.wav", "n": 1}\n'
    bad = {
        b'{"audio": "b.wav"\n': "no JSON object",
        b"[1, 2]\n": "type list",
        b'{"audio": "\xff"}\n': "utf-8",
        b'{"audio": "\\ud800"}\n': "surrogates",
        b"[" * 100_000 + b"\n": "no JSON object",
        b'{"n": 2}\n': "neither bytes nor a path",
        b'{"audio": ""}\n': "neither bytes nor a path",
        b'{"audio": 5}\n': "type int",
        b'{"audio": "a.wav", "start": -1}\n': "start=-1",
        b'{"audio": "a.wav", "start": "soon"}\n': "start='soon'",
        b'{"audio": "a.wav", "start": true}\n': "start=True",
        b'{"audio": "a.wav", "duration": 0}\n': "must be positive",
        b'{"audio": "a.wav", "duration": NaN}\n': "duration=nan",
        b'{"audio": "a.wav", "duration": -0.1}\n': "duration=-0.1",
        b'{"audio": "a.wav", "duration": Infinity}\n': "duration=inf",
        b'{"audio": "a.wav", "start": 1e306}\n': "start=1e+306",
        b'{"audio": "a.wav", "start": 1' + b"0" * 400 + b"}\n": "start=1000",
        b"\x00\n": "no JSON object",
    }
    path.write_bytes(good + good.join(bad) + good.rstrip())  # the last line has no end
    examples = assert_complete(open_source(path), 2 * len(bad) + 1)
    for i, (line, problem) in enumerate(bad.items()):
        assert examples[2 * i].audio == f"{tmp_path}/a.wav"
        assert problem in examples[2 * i + 1].error, line


def test_bad_lines_of_csv_are_examples_with_an_error(tmp_path):
    path = tmp_path / "list.csv"
    rows = [
        (b'a.wav,"two\nlines"\n', None),
        (b"too,many,values\n", "3 values"),
        (b"few\n", "1 values"),
        (b'x.wav,"never closed\n', "quotes|values"),
        (b"b.wav,good\n", None),
        (b'x.wav,"a"b"\n', "quotes"),
        (b"c.wav,\xff\n", "UTF-8"),
        (b",no audio\n", "neither"),
        (b"\n", "skipped"),
        (b"d.wav,good\n", None),
    ]
    path.write_bytes(b"audio,text\n" + b"".join(line for line, _ in rows))
    examples = assert_complete(open_source(path), 9)
    for example, (line, problem) in zip(examples, [row for row in rows if row[1] != "skipped"], strict=True):
        if problem is None:
            assert example.error is None, line
        else:
            assert any(part in example.error for part in problem.split("|")), (line, example.error)
    assert examples[0].columns == {"text": "two\nlines"}
