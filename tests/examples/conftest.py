"""Recordings for the examples, and how they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimi_hf.audio import read_audio, write_audio
from mimi_hf.demo import speech_path

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """A folder of two recordings, a second and half a second long."""
    folder = tmp_path_factory.mktemp("recordings")
    audio, rate = read_audio(speech_path())
    write_audio(folder / "one.wav", audio[:, rate : 2 * rate], rate)
    write_audio(folder / "two.wav", audio[:, 2 * rate : 2 * rate + rate // 2], rate)
    return folder


@pytest.fixture
def start(tmp_path):
    """Starts an example in a folder of its own: gives the process, with pipes of bytes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_WAIT_POLICY": "passive"}
    started = []

    def start(name, *arguments):
        command, pipe = [sys.executable, EXAMPLES / name, *map(str, arguments)], subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
