"""Tars as WebDataset writes them."""

import pyarrow as pa
import pytest
from support.sources import assert_complete, make_tar, members, read_all, wav

from mimi_hf.corpus.sources import open_source, resolve_audio


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
