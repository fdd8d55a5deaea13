"""The card, the command, and the upload."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from support.loopback_hub import running_hub
from support.originals import CONFIGS, SCRIPT, bits, config_of, original_of
from typer import Typer
from typer.testing import CliRunner

from mimi_hf import MimiConfig
from mimi_hf.conversion import checkpoint, convert_checkpoint, is_folder_or_id
from mimi_hf.conversion.command import convert

# The card


def test_card(tmp_path, source):
    path, _ = source
    report = convert_checkpoint(path, tmp_path / "ours")
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "kyutai/mimi"
    assert "mimi" in card.data.tags
    assert report.sha256 in card.text and "original.safetensors" in card.text
    assert "Apache-2.0" in card.text and "2410.00037" in card.text
    # 16 entries = 4 bits, 24000 / 12 = 2000 frames a second.
    assert "| 1 | 4 | 8,000 |\n| 2 | 8 | 16,000 |\n| 3 | 12 | 24,000 |\n| 4 | 16 | 32,000 |\n" in card.text
    assert "| 5 |" not in card.text
    assert "{{" not in card.text and "{%" not in card.text


def test_bitrates_of_the_published_codec():
    from mimi_hf.model_card import fill_card

    text = fill_card(MimiConfig(), source_name="a", sha256="b", model_id="c").text
    assert "| 1 | 11 | 137.5 |" in text and "| 8 | 88 | 1,100 |" in text and "| 32 | 352 | 4,400 |" in text


@pytest.mark.parametrize("name", ["small", "every size"])
def test_example_of_the_card_runs(tmp_path, monkeypatch, name):
    config = config_of(**CONFIGS[name])
    save_file(original_of(config), tmp_path / "original.safetensors")
    convert_checkpoint(tmp_path / "original.safetensors", tmp_path / "ours")
    text = (tmp_path / "ours" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(example.replace("5 * 24000", "500"), names)
    frames = -(-500 // config.frame_size)
    assert names["codes"].shape == (1, 4, frames)
    assert names["decoded"].shape == (1, config.audio_channels, frames * config.frame_size)
    assert names["audio_out"].shape[:2] == (1, config.audio_channels)


# The command


@pytest.fixture
def run():
    app = Typer()
    app.command()(convert)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_goes_where_its_source_says(tmp_path, source, run):
    path, state = source
    result = run(path, tmp_path / "ours")
    assert result.exit_code == 0 and f"{len(state)} tensors" in result.stdout
    assert run(tmp_path / "ours", tmp_path / "back.safetensors", "--to-original").exit_code == 0
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(state)
    assert run(path, tmp_path / "ours", "--force").exit_code == 0


def test_command_says_what_is_wrong(tmp_path, source, run, writes_nothing):
    (tmp_path / "a.safetensors").write_bytes(b"short")
    (tmp_path / "ours").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    writes_nothing()
    for source_name in ("a.safetensors", "absent.safetensors"):
        result = run(tmp_path / source_name, tmp_path / "ours")
        assert result.exit_code == 1 and result.stdout == "" and source_name in result.stderr
        assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
    result = run(source[0], tmp_path / "taken")
    assert result.exit_code == 1 and "pass --force to" in result.stderr
    for arguments in (
        [source[0], tmp_path / "ours", "--to-original"],
        [tmp_path / "ours", tmp_path / "b.safetensors", "--config", "c.json"],
        [source[0], tmp_path / "ours", "--private"],
        [source[0]],
    ):
        assert run(*arguments).exit_code == 2


def test_what_can_be_an_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "file").write_text("")
    assert is_folder_or_id("kyutai/mimi") and is_folder_or_id("me/mimi-v1.5") and is_folder_or_id("user")
    for name in ("user/file", "user/absent.safetensors", "absent", "./absent", "a/b/c", "/absent"):
        assert not is_folder_or_id(name)


@pytest.fixture
def hub():
    with running_hub() as server:
        yield server


def test_script_uploads_the_verified_folder(tmp_path, source, hub):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, str(SCRIPT), str(source[0]), "ours", "--push-to-hub", "user/name", "--private"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "user/name" in done.stdout and "secret" not in done.stdout + done.stderr

    requests = {path: body for path, _, body in hub.requests}
    assert {token for _, token, _ in hub.requests} == {"Bearer secret"}
    create = json.loads(requests["/api/repos/create"])
    assert create["name"] == "name" and create["organization"] == "user"
    assert create.get("private") or create.get("visibility") == "private"
    lines = [json.loads(line) for line in requests["/api/models/user/name/commit/main"].splitlines()]
    uploaded = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    assert b'model_id = "user/name"' in uploaded["README.md"]


def test_upload_without_a_token_or_with_a_bad_name_writes_nothing(tmp_path, source, monkeypatch, writes_nothing):
    writes_nothing()
    monkeypatch.setattr(checkpoint, "get_token", lambda: None)
    with pytest.raises(ValueError, match="needs a token"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="user/name")
    with pytest.raises(ValueError, match="a/b/c"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="a/b/c")


def test_a_failed_upload_keeps_the_folder(tmp_path, source, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoint, "get_token", lambda: "secret")
    monkeypatch.setattr(checkpoint.HfApi, "create_repo", fail)
    with pytest.raises(OSError, match=r"converted and verified.*no route to host.*hf upload user/name"):
        convert_checkpoint(source[0], tmp_path / "ours", push_to_hub="user/name")
    assert (tmp_path / "ours" / "model.safetensors").exists()
