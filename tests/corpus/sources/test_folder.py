"""Folders of audio."""

import json
import os
import pickle
import random
import subprocess
import sys

import pytest
from support.sources import assert_complete, fill, read_all, wav

from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import open_source, resolve_audio

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
