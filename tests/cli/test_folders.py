"""Folders of recordings through `mimi-hf encode` and `decode`: names, reruns, and processes that die."""

import io
import json
import os
import signal
import subprocess

import pytest
import soundfile
from support.commands import MIMI_HF, run
from support.corpora import wait_until
from support.sounds import make_sound

from mimi_hf.bitstream import BitstreamReader, read_mimi
from mimi_hf.cli import folders
from mimi_hf.cli.folders import FileTask, mirror


def test_a_folder_is_mirrored_and_a_rerun_goes_on(codec, codec_folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.wav", "b/c d.flac", "b/ü/e.ogg", "b/same.wav", "b/same.mp3", ".hidden.wav", "b/notes.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(source / name, make_sound(9000)[0], 24_000, format={"txt": "WAV"}.get(name[-3:]))
    (source / "b" / "broken.wav").write_text("no audio")
    (source / "empty.wav").touch()
    result = run("encode", source, output, "-m", codec_folder, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert {os.path.relpath(file["output"], output) for file in report["files"]} == {
        "a.wav.mimi",
        "b/c d.flac.mimi",
        "b/ü/e.ogg.mimi",
        "b/same.wav.mimi",
        "b/same.mp3.mimi",
    }
    assert {os.path.basename(failure["source"]) for failure in report["failed"]} == {"broken.wav", "empty.wav"}
    assert "broken.wav: " in result.stderr
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert len(files) == 5

    (output / "a.wav.mimi").unlink()
    (source / "empty.wav").unlink()
    (source / "b" / "broken.wav").unlink()
    result = run("encode", source, output, "-m", codec_folder)
    assert result.exit_code == 0, result.output
    assert "1 done" in result.output
    assert "4 were there already, 0 failed" in result.output
    same = {path: path.stat().st_mtime_ns for path in files if path.name != "a.wav.mimi"}
    assert same == {path: time for path, time in files.items() if path.name != "a.wav.mimi"}
    assert "0 done" in run("encode", source, output, "-m", codec_folder).output

    assert run("decode", output, tmp_path / "back", "-m", codec_folder, "--format", "flac").exit_code == 0
    assert soundfile.info(tmp_path / "back" / "b" / "same.mp3.flac").frames == 9000
    assert (tmp_path / "back" / "b" / "c d.flac").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_that_is_stopped_leaves_whole_files(codec_folder, tmp_path, number):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        soundfile.write(source / f"{i:02}.wav", make_sound(24_000 * 12)[0], 24_000)
    (source / "00.wav").write_text("no audio")
    arguments = ["encode", source, output, "-m", codec_folder, "--jobs", "2"]
    process = subprocess.Popen([*MIMI_HF, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: len(list(output.glob("*.mimi"))) >= 2 or process.poll() is not None)
    process.send_signal(number)
    messages = process.stderr.read().decode()  # ends when the last worker does
    assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in messages
    done = list(output.glob("*.mimi"))
    assert 2 <= len(done) < 39
    assert len(done) == len(list(output.iterdir()))
    result = run(*arguments[:-2])
    assert result.exit_code == 1
    assert f"{39 - len(done)} done" in result.output
    assert f"{len(done)} were there already, 1 failed" in result.output
    codes = [read_mimi(path)[1] for path in sorted(output.glob("*.mimi"))]
    assert len(codes) == 39
    assert all((other == codes[0]).all() for other in codes)  # of all processes


def test_names_of_any_bytes(recording, codec_folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (source / name).write_bytes(recording.read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert run("encode", source / name, source / "one.mimi", "-m", codec_folder, "-q").exit_code == 0
    assert BitstreamReader(io.BytesIO((source / "one.mimi").read_bytes())).header.metadata["source"] == "caf\\xe9.wav"
    (source / "one.mimi").unlink()
    assert run("encode", source, output, "-m", codec_folder).exit_code == 0
    assert run("decode", output, tmp_path / "back", "-m", codec_folder).exit_code == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == [name]
    assert run("roundtrip", source / name, tmp_path / name, "-m", codec_folder, "-q").exit_code == 0


def test_links_are_followed_and_circles_left(tmp_path):
    source = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    source.mkdir()
    (tmp_path / "elsewhere" / "a.wav").touch()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "circle").symlink_to(source)
    assert mirror(source, tmp_path / "out", {".wav"}, ".mimi") == [
        (source / "linked" / "a.wav", tmp_path / "out" / "linked" / "a.wav.mimi")
    ]


def names_in(folder, names, extensions, extension):
    """What each becomes, in a folder of these."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    pairs = mirror(folder, folder / "out", extensions, extension)
    return {str(path.relative_to(folder)): str(output.relative_to(folder / "out")) for path, output in pairs}


def test_names_do_not_clash_and_come_back(tmp_path):
    names = ["a.mp3", "a.wav", "a.wav.flac", "a.wav.wav", "b.c.wav", "d/a.wav"]
    coded = names_in(tmp_path / "in", [*names, ".x.wav", "notes.txt"], folders.AUDIO, ".mimi")
    assert coded == {name: f"{name}.mimi" for name in names}
    for name in names:  # whatever lies beside it
        assert names_in(tmp_path / "alone" / name, [name], folders.AUDIO, ".mimi") == {name: coded[name]}
    back = names_in(tmp_path / "coded", coded.values(), {".mimi"}, ".wav")
    assert list(back.values()) == ["a.mp3.wav", "a.wav.flac.wav", "a.wav", "a.wav.wav", "b.c.wav", "d/a.wav"]
    (tmp_path / "coded" / "a.mimi").touch()
    with pytest.raises(ValueError, match=r"a\.mimi and .*a\.wav\.mimi would both become .*out/a\.wav\. Rename"):
        mirror(tmp_path / "coded", tmp_path / "out", {".mimi"}, ".wav")


def copy_or_die(_model, source, output, _options, digest):
    """In the place of `encode_file`: some recordings take all the memory there is."""
    if "bad" in source.name:
        os.kill(os.getpid(), signal.SIGKILL)
    output.write_bytes(source.read_bytes())
    return digest


def run_copies(folder, tmp_path, names):
    """{name: reason} of the recordings that failed; the others were copied."""
    pairs = [(tmp_path / name, tmp_path / "out" / name) for name in names]
    for source, _ in pairs:
        source.write_text(source.name)
    task = FileTask(copy_or_die, None, str(folder), "cpu", "float32", "digest")
    outcomes = list(folders.run(task, None, pairs, 2))
    assert sorted(source for source, _, _ in outcomes) == sorted(source for source, _ in pairs)  # each of them once
    for source, report, reason in outcomes:
        assert report == ("digest" if reason is None else None)
        assert reason is not None or (tmp_path / "out" / source.name).read_text() == source.name
    return {source.name: reason for source, _, reason in outcomes if reason is not None}


def test_a_process_that_dies_takes_no_other_file_along(codec_folder, tmp_path):
    failed = run_copies(codec_folder, tmp_path, ["a bad", "b", "c"])
    assert list(failed) == ["a bad"]
    assert "nothing else ran beside it" in failed["a bad"]


def test_processes_that_always_die_end_it(codec_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_MAX_DEATHS", 1)
    failed = run_copies(codec_folder, tmp_path, [f"{i} bad" for i in range(5)])
    assert len(failed) == 5
    assert all("fewer --jobs" in reason for reason in failed.values())
