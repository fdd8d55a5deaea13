"""Which files a location names, and what opening a source refuses."""

import pickle

import pytest
from support.sources import fill, read_all

from mimi_hf.corpus.sources import open_source
from mimi_hf.corpus.sources.locations import Files, expand_braces


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


def test_files_are_small_when_pickled(tmp_path):
    fill(tmp_path, [f"{i}.wav" for i in range(500)])
    files = Files(str(tmp_path))
    assert len(files.names) == 500
    assert len(pickle.dumps(files)) < 1000
    assert pickle.loads(pickle.dumps(files)).names == files.names
