"""The help of each command: one sentence, an example, the exit statuses."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mimi_hf.cli import app

COMMANDS = sorted(command.callback.__name__ for command in app.registered_commands)


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
