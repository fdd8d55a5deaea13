"""URLs whose file system needs a package that is not installed."""

import json
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

# For each kind of URL the package that fsspec needs for it.
PACKAGES = {
    "http://host/a.wav": "aiohttp",
    "https://host/a.wav": "aiohttp",
    "s3://bucket/a.wav": "s3fs",
    "gs://bucket/a.wav": "gcsfs",
    "gcs://bucket/a.wav": "gcsfs",
    "az://box/a.wav": "adlfs",
    "abfs://box/a.wav": "adlfs",
    "hf://datasets/me/talks/a.wav": "huggingface_hub",
    "sftp://host/a.wav": "paramiko",
    "webdav://host/a.wav": "webdav4",
}
PROGRAM = """
import json, sys
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.sources import open_source
from mimi_hf.corpus.sources.locations import open_binary, read_binary
from mimi_hf.utils.remote import fetch
packages = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(packages.values()))  # None there makes an import fail, as of a package that is absent
calls = {call.__name__: call for call in (Output, open_source, open_binary, read_binary, fetch)}
errors = {}
for url in packages:
    for name, call in calls.items():
        try:
            call(url)
        except Exception as error:
            errors[f"{name} {url}"] = type(error).__name__, str(error)
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors():
    """For each function that reads or writes behind a URL, and each URL: the error where the package is missing."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(PACKAGES)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("url", PACKAGES)
@pytest.mark.parametrize("name", ["Output", "open_source", "open_binary", "read_binary", "fetch"])
def test_the_error_names_the_package_that_a_url_needs(errors, name, url):
    kind, message = errors[f"{name} {url}"]
    assert kind == ("ValueError" if name == "fetch" else "ImportError")
    assert url in message
    assert message.endswith(f"Install it: pip install {PACKAGES[url]}")


def test_what_http_needs_is_declared():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert any(line.startswith("fsspec[http]") for line in setup["options"]["install_requires"].splitlines())
