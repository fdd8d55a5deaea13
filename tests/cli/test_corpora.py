"""The commands on corpora: what they say, and with which status they end."""

import base64
import json
import re

import pytest
import soundfile
from support.corpora import finish, rows_of, save_model, start, write_clips
from support.loopback_hub import running_hub
from typer.testing import CliRunner

from mimi_hf.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings `in`, a `model`, and `codes` that were made of them."""
    folder = tmp_path_factory.mktemp("cli")
    write_clips(folder / "in", 6)
    (folder / "in" / "broken.wav").write_text("no audio")
    save_model(folder / "model")
    assert run("tokenize", folder / "in", folder / "codes", "-m", folder / "model", "-k", 4).exit_code == 0
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plain(text: str) -> str:
    """Without the boxes and line breaks of a terminal."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def test_there_and_back_again_is_told(folder, tmp_path):
    result = run("tokenize", folder / "in", tmp_path / "codes", "-m", folder / "model", "-k", 4, "--shard-size", 3)
    assert result.exit_code == 0, result.output
    for fact in ("3 shards made, 3 of 3 there", "examples  6", "failures  1", "failures.parquet says why"):
        assert fact in result.output
    assert rows_of(tmp_path / "codes") == rows_of(folder / "codes")
    result = run("tokenize", folder / "in", tmp_path / "codes", "-m", folder / "model", "-k", 4, "--shard-size", 3)
    assert result.exit_code == 0 and "0 shards made, 3 of 3 there" in result.output
    result = run("detokenize", tmp_path / "codes", tmp_path / "audio", "-m", folder / "model")
    assert result.exit_code == 0 and "examples  6" in result.output
    there = soundfile.info(tmp_path / "audio" / "audio" / "002.wav.flac")
    assert there.frames == soundfile.info(folder / "in" / "002.wav").frames


def test_quiet_is_quiet_and_json_is_json(folder, tmp_path):
    arguments = [folder / "in", "-m", folder / "model", "-k", 2]
    assert run("tokenize", *arguments, tmp_path / "quiet", "--quiet").output == ""
    told = finish(start("tokenize", *arguments, tmp_path / "json", "--json"))  # both streams: a log gets no bar
    told = json.loads(told)
    assert told["output"] == str(tmp_path / "json") and told["left"] == 0 and len(told["totals"]["codebooks"]) == 2


def test_a_part_says_what_is_left(folder, tmp_path):
    arguments = ["tokenize", folder / "in", tmp_path / "out", "-m", folder / "model", "--shard-size", 2, "-k", 4]
    result = run(*arguments, "--num-shards", 2, "--shard-index", 0)
    assert result.exit_code == 0
    assert "2 shards made, 2 of 4 there" in result.output and "left to other machines" in result.output


def test_strict_ends_with_status_1(folder, tmp_path):
    result = run("tokenize", folder / "in", tmp_path / "out", "-m", folder / "model", "-k", 4, "--strict")
    assert result.exit_code == 1
    assert "Error: broken.wav" in result.output and result.output.count("Error:") <= 2
    assert not list((tmp_path / "out").glob("data/*"))
    assert "goes on from here" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{in}", "{out}", "-m", "{dir}/nowhere"], 1, "model .*nowhere is neither a folder here .* hf download"),
        (["{in}", "{out}", "-m", "{in}"], 1, "cannot be loaded"),
        (["{in}", "{out}", "-m", "{model}", "-k", "7"], 1, "num_quantizers=7"),
        (["{dir}/absent", "{out}", "-m", "{model}"], 1, "absent"),
        (["{in}", "{in}", "-m", "{model}"], 1, "holds 000.wav"),
        (["{in}", "{codes}", "-m", "{model}"], 1, "num_quantizers: 4 there, 6 now"),
        (["{in}", "nowhere://x", "-m", "{model}"], 1, "Protocol not known: nowhere"),
        (["{in}", "{out}", "-m", "{model}", "--batch-seconds", "-1"], 1, "batch_seconds=-1.0 must be positive"),
        (["{in}", "{out}", "-m", "{model}", "--dtype", "int8"], 2, "must be float32"),
        (["{in}", "{out}", "-m", "{model}", "--engine", "spark"], 2, "must be local or ray"),
        (["{in}", "{out}", "-m", "{model}", "--ray-actors", "2"], 2, "belong to --engine ray"),
        (["{in}", "{out}", "-m", "{model}", "--num-shards", "2"], 2, "belong together"),
        (["{in}", "{out}", "-m", "{model}", "--num-shards", "2", "--shard-index", "2"], 2, "from 0 to 1"),
        (["{in}", "{out}", "-m", "{model}", "--private"], 2, "add --push-to-hub"),
        (["{in}", "s3://b/c", "-m", "{model}", "--push-to-hub", "a/b"], 2, "a folder of this machine"),
        (["{in}", "{out}", "-m", "{model}", "--push-to-hub", "a/b"], 1, "needs a token"),
        (["{in}", "{out}", "-m", "{model}", "--kind", "parquet"], 1, "no file that ends in .parquet"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(folder, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    places = {"in": folder / "in", "out": tmp_path / "out", "model": folder / "model", "codes": folder / "codes"}
    arguments = [argument.format(dir=tmp_path, **places) for argument in arguments]
    if "-k" not in arguments:
        arguments += ["-k", "6"]
    before = sorted(folder.rglob("*"))
    result = run("tokenize", *arguments)
    assert result.exit_code == status, result.output
    assert re.search(message, plain(result.output)), result.output
    assert "Traceback" not in result.output and result.output.count("Error:") <= 1
    assert list(tmp_path.iterdir()) == [] and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["tokenize", "detokenize"])
def test_help_teaches(command):
    page = plain(run(command, "--help").output)
    assert f"mimi-hf {command} my-" in page and "130 when interrupted" in page


def test_the_result_is_uploaded_as_a_data_set(folder, tmp_path, monkeypatch):
    arguments = [folder / "in", tmp_path / "out", "-m", folder / "model", "-k", 4]
    with running_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "0"}
        told = finish(start("tokenize", *arguments, "--push-to-hub", "user/name", "--private", **environment))
    assert f"{hub.url}/datasets/user/name" in told and "secret" not in told
    requests = {path: body for path, _, body in hub.requests}
    create = json.loads(requests["/api/repos/create"])
    assert create["type"] == "dataset" and (create.get("private") or create.get("visibility") == "private")
    lines = [json.loads(line) for line in requests["/api/datasets/user/name/commit/main"].splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    there = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: base64.b64decode(content) for name, content in files.items()} == {
        name: path.read_bytes() for name, path in there.items()
    }
