"""The help of each command: one sentence, an example, the exit statuses."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mimi_hf.cli import app

COMMANDS = sorted(callback.__name__ for command in app.registered_commands if (callback := command.callback))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    page = re.sub(r"[\s│]+", " ", result.output)
    sentence = re.search(rf"Usage: .*?{command} .*?([A-Z][a-z]+ [^.]*\.)", page)
    assert sentence is not None, page
    assert f"mimi-hf {command} " in page
    assert "Exit status: 0" in page


def test_help_needs_no_torch():
    code = "import sys; from mimi_hf.cli import main; sys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: pass\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["encode", "decode", "info", "tokenize", "detokenize", "roundtrip", "convert"])
def test_the_installed_command_teaches(command):
    script = os.path.join(os.path.dirname(sys.executable), "mimi-hf")
    overview = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert command in overview
    page = subprocess.run([script, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"mimi-hf {command} " in page  # an example
