"""`mimi-hf encode`, `decode` and `info` of one file, and what they say of mistakes."""

import json
import re

import pytest
from support.commands import run

from mimi_hf.bitstream import read_mimi


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["encode", "{wav}", "{dir}/taken.mimi", "-m", "{model}"], 1, "exists.*--force"),
        (["encode", "{dir}/absent.wav", "{dir}/x.mimi", "-m", "{model}"], 1, "absent.wav does not exist"),
        (["encode", "{wav}", "{dir}/none/x.mimi", "-m", "{model}"], 1, "no folder"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--rate", "8000"], 2, "add --raw"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--raw", "--sample-format", "S24_LE"], 2, "none of"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--metadata", "x"], 2, "KEY=VALUE"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{dir}/nowhere"], 1, "hf download|cannot be loaded"),
        (["encode", "{dir}", "{wav}", "-m", "{model}"], 1, "is a file, but"),
        (["encode", "{wav}", "{dir}/new/", "-m", "{model}"], 1, "no folder .*new/"),
        (["encode", "x" * 300, "{dir}/x.mimi", "-m", "{model}"], 1, "too long"),
        (["encode", "{wav}", "{dir}/" + "x" * 300, "-m", "{model}"], 1, "too long"),
        (["encode", "{dir}", "{dir}/y", "-m", "{model}", "--raw"], 2, "IN is a folder"),
        (["decode", "{dir}", "{dir}/y", "-m", "{model}", "--format", "mp3"], 2, "must be wav, flac or ogg"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}"], 1, "no .mimi file"),
        (["decode", "{wav}", "{dir}/x.mp3", "-m", "{model}"], 2, "must end in one of"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}", "--raw"], 2, "OUT must be -"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}", "--duration", "0"], 2, "more than 0"),
        (["info", "{wav}"], 1, "no .mimi file"),
        (["info", "{dir}/absent.mimi"], 1, "is no file"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(recording, codec_folder, tmp_path, arguments, status, message):
    (tmp_path / "taken.mimi").write_bytes(b"precious")
    before = sorted(tmp_path.rglob("*"))
    result = run(*(argument.format(wav=recording, dir=tmp_path, model=codec_folder) for argument in arguments))
    assert result.exit_code == status, result.output
    text = " ".join(result.output.replace("│", " ").split())
    assert re.search(message, text), result.output
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_one_file_through_the_commands(recording, codec_folder, tmp_path):
    arguments = ["-m", codec_folder, "--metadata", "who=me", "--metadata", "a=b=c"]
    result = run("encode", recording, tmp_path, *arguments)  # into a folder, under its own name
    assert result.exit_code == 0, result.output
    assert "kbps" in result.output
    path = recording.with_name(recording.name + ".mimi")
    assert read_mimi(path)[0].metadata["a"] == "b=c"
    facts = json.loads(run("info", path, "--json", "--check").stdout)
    assert (facts["num_quantizers"], facts["complete"], facts["metadata"]["who"]) == (6, True, "me")
    assert facts["duration"] == pytest.approx(60_000 / 44_100, abs=1e-4)
    assert "num quantizers" in run("info", path).output
    result = run("decode", path, tmp_path / "back.ogg", "-m", codec_folder, "-q")
    assert (result.exit_code, result.output) == (0, "")
    result = run("encode", recording, path, "-m", codec_folder, "--force", "--json")
    assert json.loads(result.stdout)["files"][0]["output"] == str(path)


def test_metadata_is_shown_as_it_is(codec_folder, recording, tmp_path):
    path = tmp_path / "a.mimi"
    assert run("encode", recording, path, "-m", codec_folder, "-q", "--metadata", "[/a]=[red]").exit_code == 0
    result = run("info", path)
    assert result.exit_code == 0 and "[/a]" in result.output and "[red]" in result.output
