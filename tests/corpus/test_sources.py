import asyncio
import csv
import io
import json
import math
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import Example, open_source, resolve_audio
from mimi_hf.corpus.sources.base import as_audio, is_damage
from mimi_hf.corpus.sources.columns import conform
from mimi_hf.corpus.sources.hub import as_own_audio, is_damage_behind_url
from mimi_hf.corpus.sources.locations import Files, expand_braces, open_binary
from mimi_hf.utils.remote import is_absent

HOSTILE = [
    "a b.wav",
    "ä/ö ü.FLAC",
    "日本/語.mp3",
    "[x]{1,2}*?.wav",
    "-n.ogg",
    "a::b.wav",
    "new\nline.wav",
    "deep/er/x.Opus",
]


def wav(seed=0):
    """The bytes of a short recording."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 50), 8000, format="WAV")
    return file.getvalue()


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


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


# Folders


def test_folder(tmp_path):
    fill(tmp_path, [*HOSTILE, ".hidden.wav", ".cache/x.wav", "notes.txt", "ä/list.csv"])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "lost.wav").symlink_to("nowhere")
    source = open_source(tmp_path)
    examples = assert_complete(source, len(HOSTILE) + 2)
    ids = [example.id for example in examples]
    assert sorted(ids) == sorted([*HOSTILE, "empty.wav", "lost.wav"])
    assert ids == sorted(ids, key=str.encode)
    for example in examples:
        assert resolve_audio(example) == str(tmp_path / example.id)
    assert [len(shard["files"]) for shard in source.shards(4)] == [4, 4, 2]


def test_folder_is_the_same_whatever_the_order_of_creation(tmp_path):
    names = [f"{i % 3}/{i}.wav" for i in range(20)]
    for number in range(2):
        random.Random(number).shuffle(names)
        fill(tmp_path / str(number), names)
    first, second = (open_source(tmp_path / str(number)).shards(3) for number in range(2))
    assert first == second


def test_folder_follows_links_but_not_in_circles(tmp_path):
    fill(tmp_path, ["outside/x.wav", "data/a/y.wav"])
    (tmp_path / "data/linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "outside/back").symlink_to(tmp_path / "data", target_is_directory=True)
    os.mkfifo(tmp_path / "data/pipe.wav")
    assert [e.id for e in read_all(open_source(tmp_path / "data"), 9)] == ["a/y.wav", "linked/x.wav"]


def test_a_folder_that_may_not_be_read_is_left_out(tmp_path, monkeypatch, caplog):
    fill(tmp_path, ["a.wav", "lost+found/b.wav", "z/c.wav"])
    scan, locked = os.scandir, [str(tmp_path / "lost+found")]

    def scan_as_a_user(path):
        if path.rstrip("/") in locked:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_as_a_user)
    assert [e.id for e in read_all(open_source(tmp_path), 9)] == ["a.wav", "z/c.wav"]
    assert "lost+found" in caplog.text
    locked.append(str(tmp_path))
    with pytest.raises(PermissionError):
        open_source(tmp_path)


def test_folder_with_a_name_that_is_not_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(wav())
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (example,) = read_all(open_source(tmp_path), 9)
    assert example.id == "caf\\xe9.wav"
    assert read_audio(resolve_audio(example))[0].shape == (1, 50)


@pytest.mark.parametrize("scheme", ["memory://", "memory:///"])
def test_folder_behind_a_url(memory, scheme):
    names = ["a b.wav", "ä/ö.flac", "#1?.wav"]
    for name in [*names, ".hidden.wav", ".git/x.wav", "readme.md"]:
        memory.pipe(f"/corpus/{name}", wav())
    examples = assert_complete(open_source(f"{scheme}corpus/"), 3)
    assert sorted(example.id for example in examples) == sorted(names)
    assert all(resolve_audio(example) == wav() for example in examples)


def test_another_process_plans_and_reads_the_same(tmp_path):
    fill(tmp_path, [f"{i}.wav" for i in range(10)])
    source = open_source(tmp_path)
    script = (
        "import json, pickle, sys; source = pickle.load(sys.stdin.buffer); shards = source.shards(3);"
        "print(json.dumps([[e.id for e in source.read(shard)] for shard in shards]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(source), capture_output=True, check=True, cwd="/"
    )
    assert json.loads(answer.stdout) == [[e.id for e in source.read(shard)] for shard in source.shards(3)]


# Which files a location names


def test_patterns(tmp_path, memory, monkeypatch):
    fill(tmp_path, ["x/a.wav", "x/b.wav", "y/a.wav", "y/.a.wav", "y/c.flac", "[1]/z.wav"])
    monkeypatch.chdir(tmp_path)

    def names(location):
        return [example.id for example in read_all(open_source(location), 9)]

    assert names("x/a.wav") == ["a.wav"]
    assert names("*/a.wav") == ["x/a.wav", "y/a.wav"]
    assert names(f"{tmp_path}/**/*.wav") == ["[1]/z.wav", "x/a.wav", "x/b.wav", "y/a.wav"]
    assert names("[1]") == ["z.wav"]  # what is there wins over what it may mean
    assert names("{x,y}/a.wav") == ["x/a.wav", "y/a.wav"]
    assert names(f"file://{tmp_path}/x") == ["a.wav", "b.wav"]
    memory.pipe("/m/1.wav", b"")
    assert names("memory://m/?.wav") == ["1.wav"]
    with pytest.raises(FileNotFoundError, match=r"z\.wav"):
        names("{x,y}/{a,z}.wav")


def test_braces():
    assert expand_braces("d-{008..011}.tar") == [f"d-{i:03}.tar" for i in range(8, 12)]
    assert expand_braces("{a,b}{1..2}{c}") == ["a1{c}", "a2{c}", "b1{c}", "b2{c}"]
    assert expand_braces("plain") == ["plain"]
    for bomb in ("{0..99999999999999}", "{0..99999}{0..99999}"):
        with pytest.raises(ValueError, match="narrower"):
            expand_braces(bomb)


@pytest.mark.parametrize(
    ("location", "options", "error", "message"),
    [
        ("{dir}/absent", {}, FileNotFoundError, "no file or folder"),
        ("{dir}/absent.csv", {}, FileNotFoundError, "no file or folder"),
        ("absent/*.wav", {}, FileNotFoundError, "no such file"),
        ("memory://absent", {}, FileNotFoundError, "no file or folder"),
        ("zip://x::{dir}/a.zip", {}, ValueError, "Unpack"),
        ("nobody/nothing", {}, ValueError, "no such folder here"),
        ("{dir}/empty", {}, ValueError, "cannot be told.*no audio"),
        ("{dir}/empty", {"kind": "folder"}, ValueError, "no file that ends in .wav"),
        ("{dir}/empty", {"kind": "hub"}, ValueError, "cannot be opened"),
        ("{dir}/mixed", {}, ValueError, "cannot be told.*1 files of the kind 'folder'.*Name the kind"),
        ("{dir}/lists", {}, ValueError, "several manifests: a.csv, b.csv"),
        ("{dir}/audio", {"kind": "files"}, ValueError, "must be one of folder"),
        ("{dir}/audio", {"split": "train"}, ValueError, "split='train' is for data sets of the Hub"),
        ("{dir}/audio", {"columns": ["text"]}, ValueError, "no columns"),
        ("{dir}/lists/a.csv", {"columns": ["txt"]}, ValueError, "no column 'txt'.*: audio, text"),
        ("{dir}/lists/a.csv", {"columns": "text"}, TypeError, "list of names"),
        ("{dir}/lists/a.csv", {"audio_column": "sound"}, ValueError, "no column 'sound'.*audio, text"),
        ("{dir}/lists/b.csv", {}, ValueError, "no rows"),
        ("{dir}/zero.jsonl", {}, ValueError, "no rows"),
        ("{dir}/zero.csv", {}, ValueError, "is empty"),
        ("{dir}/twice.csv", {}, ValueError, "name of its own"),
        ("{dir}/array.json", {}, ValueError, "no manifest.*type list"),
        ("{dir}/zero.parquet", {}, ValueError, "can be read"),
    ],
)
def test_mistakes_are_explained(tmp_path, location, options, error, message):
    fill(tmp_path, ["audio/a.wav", "mixed/a.wav", "mixed/b.tar"])
    for name in ("empty", "lists"):
        (tmp_path / name).mkdir()
    texts = {"lists/a.csv": "audio,text\nx.wav,hi\n", "lists/b.csv": "audio,text\n", "twice.csv": "a,a\n1,2\n"}
    for name, text in {**texts, "array.json": '[{"audio": "a.wav"}]', "zero.csv": "", "zero.jsonl": "\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "zero.parquet").touch()
    with pytest.raises(error, match=message):
        open_source(location.replace("{dir}", str(tmp_path)), **options)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "9"])
def test_shard_size_is_checked(tmp_path, size):
    fill(tmp_path, ["a.wav"])
    with pytest.raises(ValueError, match="shard_size"):
        open_source(tmp_path).shards(size)


# Manifests

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


# Parquet


def audio_table(rows, audio=None, first=0):
    numbers = range(first, first + rows)
    audio = audio or [{"bytes": wav(i), "path": f"{i}.wav"} for i in numbers]
    return pa.table({"audio": audio, "text": [f"t{i}" for i in numbers], "id": list(numbers)})


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


# WebDataset


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


@pytest.mark.parametrize(("mode", "ending"), [("w", "tar"), ("w:gz", "tar.gz"), ("w:gz", "tgz")])
def test_webdataset(tmp_path, memory, mode, ending):
    for i in range(3):
        tar = make_tar(members([f"./dir {i}/ü{j}" for j in range(4)]), mode)
        (tmp_path / f"d-{i:03}.{ending}").write_bytes(tar)
        memory.pipe(f"/w/d-{i:03}.{ending}", tar)
    locations = [tmp_path, f"{tmp_path}/d-{{000..002}}.{ending}", f"memory://w/*.{ending}"]
    results = [assert_complete(open_source(location), 12) for location in locations]
    assert results[0] == results[1] == results[2]
    assert results[0][5].id == f"d-001.{ending}/dir 1/ü1"
    assert results[0][5].columns == {"txt": "./dir 1/ü1"}
    assert resolve_audio(results[0][5]) == wav()
    assert len(open_source(tmp_path).shards(1)) == 3


def test_webdataset_members(tmp_path):
    content = [
        ("a.WAV", b"1"),
        ("a.json", b'{"x": 1}'),
        ("a.cls", b"7"),
        ("a.png", b"picture"),
        ("dir", None),
        ("._b.wav", b"of a Mac"),
        ("two.1.wav", b"2"),
        ("two.2.wav", b"3"),
        ("a.wav", b"again"),
        ("text.txt", b"alone"),
        ("bad.wav", b"4"),
        ("bad.cls", b"\xff"),
        ("double.wav", b"5"),
        ("double.wav", b"6"),
        ("link.wav", None),
        ("last.flac", b"8"),
    ]
    (tmp_path / "x.tar").write_bytes(make_tar(content))
    source = open_source(tmp_path / "x.tar")
    assert source.schema().names == ["txt", "cls", "json"]
    examples = {example.id.removeprefix("x.tar/"): example for example in assert_complete(source, 8)}
    assert examples["a"].audio == b"1"
    assert examples["a"].columns == {"txt": None, "cls": "7", "json": '{"x": 1}'}
    assert examples["a#2"].audio == b"again"
    assert examples["last"].audio == b"8"
    problems = {"two": "several", "text": "no member", "bad": "UTF-8", "double": "of one name", "link": "is a link"}
    for key, problem in problems.items():
        assert problem in examples[key].error
    chosen = open_source(tmp_path / "x.tar", audio_column=".2.wav", columns=["png"])
    (two,) = [example for example in read_all(chosen, 9) if example.id == "x.tar/two"]
    assert two.audio == b"3"
    assert chosen.schema() == pa.schema([("png", pa.string())])


def test_a_tar_cut_anywhere_gives_what_came_before_and_one_error(tmp_path):
    whole = make_tar(members("abc"))
    # Two members of an example take two blocks each, and then a block of zeros or more ends the tar.
    for cut in range(0, 12 * 512 + 1, 128):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        source = open_source(tmp_path)
        *good, last = read_all(source, 9)
        assert last.id == "x.tar:rest"
        assert "damaged or cut short" in last.error
        assert [example.id for example in good] == [f"x.tar/{key}" for key in "abc"[: len(good)]]
        assert all(example.error is None for example in good)
        assert len(good) >= cut // 2048
        for i, example in enumerate(good):  # what is told of the text is not known before its header is whole
            assert example.columns.get("txt") == (None if cut < (4 * i + 3) * 512 else "abc"[i])
    (tmp_path / "x.tar").write_bytes(whole[: 13 * 512])
    assert len(assert_complete(open_source(tmp_path), 3)) == 3


def test_damage_in_the_middle_of_a_tar_is_not_its_end(tmp_path):
    broken = bytearray(make_tar(members("abc")))
    broken[4 * 512 : 4 * 512 + 100] = b"?" * 100
    (tmp_path / "x.tar").write_bytes(broken)
    (tmp_path / "y.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "z.tar.gz").write_bytes(make_tar(members("ab"), "w:gz")[:-60])
    examples = read_all(open_source(tmp_path), 9)
    assert [example.id for example in examples][:3] == ["x.tar/a", "x.tar:rest", "y.tar:rest"]
    assert examples[-1].id == "z.tar.gz:rest"


# Data sets in the form of the Hub


@pytest.fixture
def data_set(tmp_path):
    """A folder as it would lie on the Hub, with two splits of several files."""
    features = {"audio": {"_type": "Audio"}, "text": {"_type": "Value", "dtype": "string"}}
    features["label"] = {"_type": "ClassLabel", "names": ["no", "yes"]}
    features["id"] = {"_type": "Value", "dtype": "int64"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    for split, index in (("train", 0), ("train", 1), ("train", 2), ("test", 0)):
        table = audio_table(4, first=10 * index).append_column("label", pa.array([0, 1, -1, None]))
        table = table.select(list(features)).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"data/{split}-{index:05}.parquet", row_group_size=2)
    splits = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    return tmp_path


def test_hub(data_set):
    source = open_source(data_set, kind="hub", split="train")
    examples = assert_complete(source, 12, sizes=(1, 1000))
    assert source.schema() == pa.schema([("text", pa.string()), ("label", pa.string()), ("source_id", pa.int64())])
    assert examples[5].id == "train/1:1"
    assert examples[5].audio == wav(11)
    assert [example.columns["label"] for example in examples[:4]] == ["no", "yes", None, None]
    assert len(source.shards(1)) == 3
    everything = open_source(data_set, kind="hub", split="all", columns=["split"])
    splits = [example.columns["split"] for example in assert_complete(everything, 16, sizes=(1,))]
    assert splits == ["test"] * 4 + ["train"] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a split.*train, test"),
        ({"split": "dev"}, "no split 'dev'.*train, test"),
        ({"split": "test", "config": "french"}, "french"),
        ({"split": "test", "audio_column": "sound"}, "no column 'sound'"),
        ({"split": "test", "columns": ["words"]}, "no column 'words'"),
    ],
)
def test_hub_mistakes_are_explained(data_set, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(data_set, kind="hub", **options)


def test_hub_reads_folders_of_audio_without_torchcodec(tmp_path):
    fill(tmp_path, ["train/a.wav", "train/b c.wav"])
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.wav,x\nb c.wav,y\n")
    examples = assert_complete(open_source(tmp_path, kind="hub"), 2, sizes=(1,))
    assert [example.columns["text"] for example in examples] == ["x", "y"]
    assert resolve_audio(examples[1]) == str(tmp_path / "train/b c.wav")


def test_hub_damage_ends_one_file(data_set):
    source = open_source(data_set, kind="hub", split="train")
    damaged = data_set / "data/train-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    examples = read_all(source, 9)
    assert [example.id for example in examples if example.error] == ["train/1:rest"]
    assert len(examples) == 9


def test_hub_rows_may_name_only_files_of_their_own(tmp_path, memory):
    names = ["a.wav", "/etc/hostname", "../a.wav", "b/../../a.wav", "https://other.place/a.wav", f"file://{tmp_path}/a"]
    pq.write_table(pa.table({"audio": [{"bytes": None, "path": name} for name in names]}), tmp_path / "train.parquet")
    good, *bad = read_all(open_source(tmp_path, kind="hub"), 9)
    assert resolve_audio(good) == f"{os.path.realpath(tmp_path)}/a.wav"
    assert all("may only name files in it" in example.error for example in bad)
    root = "hf://datasets/user/name@" + "1" * 40
    assert as_own_audio("x/a.wav", root) == as_own_audio(f"{root}/x/a.wav", root) == f"{root}/x/a.wav"
    for name in (*names[1:], f"{root}/../other/a.wav", f"{root}0/a.wav", "hf://datasets/user/other/a.wav"):
        with pytest.raises(ValueError, match=r"may only name|must not name"):
            as_own_audio(name, root)
    for name in ("/etc/hostname", "file:///etc/hostname"):  # from parquet files and manifests on the Hub, too
        with pytest.raises(ValueError, match="must not name"):
            as_audio(name, "hf://datasets/user/name/data")


def test_hub_files_whose_types_differ_cost_only_their_rows(tmp_path):
    for i, numbers in enumerate([[1, 2], ["many", None]]):  # tars, of which `datasets` checks no types
        content = [
            (f"{n}.{end}", wav() if end == "wav" else json.dumps({"n": n}).encode())
            for n in numbers
            for end in ("wav", "json")
        ]
        (tmp_path / f"train-{i}.tar").write_bytes(make_tar(content))
    source = open_source(tmp_path, kind="hub", columns=["json"])
    examples = assert_complete(source, 4, sizes=(1,))
    assert "{'n': 'many'} is not of the type struct<n: int64>" in examples[2].error
    assert [examples[i].columns["json"] for i in (0, 1, 3)] == [{"n": 1}, {"n": 2}, {"n": None}]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", pa.int64()),
        (1.5, pa.int64()),
        (300, pa.int8()),
        (2**70, pa.int64()),
        (2, pa.bool_()),
        ("true", pa.bool_()),
        ("x", pa.float64()),
        ([1], pa.float32()),
        (10**400, pa.float64()),
        (3, pa.list_(pa.int64())),
        ([1, "x"], pa.list_(pa.int64())),
        ({"a": "x"}, pa.struct([("a", pa.int64())])),
        ("x", pa.timestamp("s")),
    ],
)
def test_values_of_another_type_are_refused_one_by_one(value, kind):
    with pytest.raises(ValueError, match="is not of the type"):
        conform(value, kind)


# What goes wrong behind URLs


@pytest.fixture
def answering():
    """The address of a server that answers any request with the status that its path names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.strip("/").partition(".")[0]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815
        log_message = lambda *_: None  # noqa: E731

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "absent"), [("404", True), ("410", True), ("401", False), ("403", False), ("500", False), ("503", False)]
)
@pytest.mark.parametrize("read", [open_binary, lambda url: resolve_audio(Example("x", url))])
def test_only_proven_absence_is_damage(answering, status, absent, read):
    url = f"{answering}/{status}.wav"
    with pytest.raises(OSError, match=url) as raised:
        read(url)
    assert isinstance(raised.value, FileNotFoundError) is is_damage(raised.value) is absent


@pytest.mark.parametrize("read", [open_binary, lambda url: resolve_audio(Example("x", url))])
def test_a_network_that_is_down_is_no_damage(read):
    with pytest.raises(OSError, match="cannot be read") as raised:
        read("http://127.0.0.1:9/refused.wav")
    assert not is_damage(raised.value)


class Wavering(MemoryFileSystem):
    """Files that can be read until something happens."""

    protocol = "wavering"
    cachable = False
    failure: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("wavering://", "memory://", 1))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return File(file.getvalue())

    def cat_file(self, path, **options):
        return self._open(path).read()


class File(io.BytesIO):
    def read(self, size=-1):
        if Wavering.failure:
            raise Wavering.failure
        return super().read(size)


class ForeignError(Exception):
    pass


@pytest.mark.parametrize(
    "failure",
    [PermissionError("The token has expired."), ForeignError("reset"), asyncio.TimeoutError(), OSError("no number")],
    ids=lambda failure: type(failure).__name__,
)
def test_what_fails_behind_a_url_fails_no_example(memory, monkeypatch, failure):
    fsspec.register_implementation("wavering", Wavering, clobber=True)
    table = io.BytesIO()
    pq.write_table(audio_table(100), table, row_group_size=10)
    memory.pipe({"/p/a.parquet": table.getvalue(), "/w/a.tar": make_tar(members("abc"))})
    memory.pipe({"/m/list.csv": b"audio\n" + b"a.wav\n" * 9, "/f/a.wav": wav()})
    for folder in "pwmf":
        source = open_source(f"wavering://{folder}")
        (shard,) = source.shards(1000)
        assert all(resolve_audio(example) for example in source.read(shard) if folder != "m")
        source = pickle.loads(pickle.dumps(source))
        with monkeypatch.context() as patched, pytest.raises(OSError, match="cannot be read") as raised:
            patched.setattr(Wavering, "failure", failure)
            for example in source.read(shard):
                resolve_audio(example)
        assert not is_damage(raised.value), folder
    examples = open_source("wavering://p").read({"parts": [["a.parquet", 0, 100]]})
    assert next(examples).audio == wav()  # and then it fails, between the pages of a file
    with monkeypatch.context() as patched, pytest.raises(OSError, match="cannot be read"):
        patched.setattr(Wavering, "failure", failure)
        list(examples)


def chained(cause, **attributes):
    """A FileNotFoundError whose cause has these attributes."""
    for name, value in attributes.items():
        setattr(cause, name, value)
    error = FileNotFoundError("x")
    error.__cause__ = cause
    return error


def test_absence_as_clients_tell_of_it():
    aws = {"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    response = type("Response", (), {"status_code": 404})()
    refused = type("Response", (), {"status_code": 401})()
    absent = [
        FileNotFoundError("x"),
        chained(KeyError("x")),
        chained(FileNotFoundError("x")),
        chained(ValueError("//")),
    ]
    absent += [chained(ForeignError(), status=404), chained(ForeignError(), response=aws)]
    absent += [chained(ForeignError(), response=response)]
    unknown = [chained(ForeignError()), chained(ForeignError(), status=503), chained(ForeignError(), response=refused)]
    unknown += [PermissionError("x"), chained(ConnectionError()), chained(chained(TimeoutError())), KeyError("x")]
    assert all(map(is_absent, absent))
    assert not any(map(is_absent, unknown))
    assert all(map(is_damage_behind_url, [*absent, pa.ArrowInvalid("x"), OSError("of pyarrow")]))
    assert not any(map(is_damage_behind_url, unknown))


def test_resolve_audio_refuses_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path, tmp_path / "pipe.wav", tmp_path / "link.wav", "file:///dev/null"):
        with pytest.raises(ValueError, match="regular file"):
            resolve_audio(Example("x", str(path)))
    (tmp_path / "a.wav").write_bytes(wav())
    assert resolve_audio(Example("x", f"file://{tmp_path}/a.wav")) == f"{tmp_path}/a.wav"


def test_impossible_paths_are_damage(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "circle.wav").symlink_to("circle.wav")
    for name in ("absent.wav", "a.wav/b.wav", "circle.wav", "x" * 5000):
        with pytest.raises(OSError, match=r"Errno") as raised:
            open_binary(resolve_audio(Example("x", f"{tmp_path}/{name}")))
        assert is_damage(raised.value), name


def test_resolve_audio(memory):
    memory.pipe("/a.wav", wav())
    stereo = np.random.default_rng(0).uniform(-2, 2, (2, 30)).astype(np.float32)
    assert resolve_audio(Example("x", "memory://a.wav")) == wav()
    assert resolve_audio(Example("x", b"abc")) == b"abc"
    audio, rate = read_audio(resolve_audio(Example("x", {"array": stereo, "sampling_rate": 44_100})))
    np.testing.assert_array_equal(audio, stereo)
    assert rate == 44_100
    with pytest.raises(FileNotFoundError):
        resolve_audio(Example("x", "memory://absent.wav"))
    with pytest.raises(ValueError, match="too bad"):
        resolve_audio(Example("x", None, error="too bad"))
    bad_arrays = [(np.arange(3), 8000), (stereo[None], 8000), (np.zeros((2000, 1)), 8000)]
    for array, rate in [*bad_arrays, *((stereo, rate) for rate in (None, math.inf, math.nan, -1, 1e12, "8000"))]:
        with pytest.raises(ValueError, match="An array"):
            resolve_audio(Example("x", {"array": array, "sampling_rate": rate}))


def test_files_are_small_when_pickled(tmp_path):
    fill(tmp_path, [f"{i}.wav" for i in range(500)])
    files = Files(str(tmp_path))
    assert len(files.names) == 500
    assert len(pickle.dumps(files)) < 1000
    assert pickle.loads(pickle.dumps(files)).names == files.names
