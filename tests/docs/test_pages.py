"""The documentation: its programs run, its commands exist, its links lead somewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from support.hub_cache import fill_cache
from support.pages import ROOT, mimi_hf_arguments, read_blocks, required_packages, shell_commands

PROGRAMS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "mimi_hf" / "assets" / "mimi_tiny" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = [
    *PROGRAMS,
    ROOT / "CHANGELOG.md",
    ROOT / "mimi_hf" / "assets" / "README.md",
    ROOT / "model_card" / "samples" / "README.md",
    *sorted((ROOT / "recipes").rglob("README.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
_INLINE_PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/(?:[\w.-]+\.(?:py|md|json|yaml))?)`")
_INLINE_COMMAND = re.compile(r"`mimi-hf ([^`]+)`")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def errors(tmp_path_factory) -> dict[str, str | None]:
    """What went wrong on each page. One process runs them all, as importing torch and transformers takes long."""
    home = tmp_path_factory.mktemp("home")
    fill_cache(home)
    folders = {}
    for page in PROGRAMS:
        if not missing_packages(page):
            folders[str(page)] = str(make_folder(tmp_path_factory.mktemp(page.stem)))
    environment = {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.run(
        [sys.executable, "-m", "support.pages", str(home / "errors.json")],
        input=json.dumps(folders),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.returncode == 0, process.stderr
    return json.loads((home / "errors.json").read_text())


def missing_packages(page: Path) -> list[str]:
    return [package for package in required_packages(page) if importlib.util.find_spec(package) is None]


def make_folder(folder: Path) -> Path:
    """A folder with the recordings that pages speak of."""
    time = np.arange(3 * 44_100) / 44_100
    speech = 0.3 * np.sin(2 * np.pi * 200 * time) * np.sin(9 * time)
    soundfile.write(folder / "speech.wav", speech, 44_100)
    (folder / "my-recordings" / "more").mkdir(parents=True)
    soundfile.write(folder / "my-recordings" / "a.wav", speech[:44_100], 44_100)
    soundfile.write(folder / "my-recordings" / "more" / "b.flac", speech[:60_000], 24_000)
    return folder


@pytest.mark.parametrize("page", [page for page in PROGRAMS if read_blocks(page)], ids=name_of)
def test_a_page_runs_as_one_program(page, errors):
    if missing := missing_packages(page):
        pytest.skip(f"{name_of(page)} needs {', '.join(missing)}")
    assert errors[str(page)] is None, errors[str(page)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page):
    import mimi_hf.cli

    group = typer.main.get_command(mimi_hf.cli.app)
    checked = [
        arguments
        for block in read_blocks(page)
        if block.language in ("bash", "console")
        for words in shell_commands(block.code)
        for arguments in mimi_hf_arguments(words)
    ]
    for arguments in checked:
        if arguments != ["--help"]:
            assert arguments[0] in group.commands, f"mimi-hf {arguments[0]} is no command"
            group.commands[arguments[0]].make_context(f"mimi-hf {arguments[0]}", arguments[1:])
    # In running text a command may be named without its arguments.
    for text in _INLINE_COMMAND.findall(page.read_text(encoding="utf-8")):
        name, *arguments = text.split()
        assert name in group.commands, f"mimi-hf {name} is no command"
        options = {option for parameter in group.commands[name].params for option in parameter.opts} | {"--help", "-"}
        unknown = {argument for argument in arguments if argument.startswith("-")} - options
        assert not unknown, f"mimi-hf {name} has no {', '.join(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{target}: there is no {file}"
        if anchor:
            assert anchor in anchors(file), f"{target}: {file.name} has no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_files_that_a_page_names_exist(page):
    places = (ROOT, ROOT / "mimi_hf", page.parent)
    for path in _INLINE_PATH.findall(page.read_text(encoding="utf-8")):
        top = path.split("/")[0]
        if any((place / top).exists() for place in places):  # others are those of a user
            assert any((place / path).exists() for place in places), f"{name_of(page)} names {path}"


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_public_name_is_in_the_reference():
    import mimi_hf

    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    missing = {f"mimi_hf.{name}" for name in mimi_hf.__all__} - documented - {"mimi_hf.auto"}
    assert not missing, f"docs/api lacks {', '.join(sorted(missing))}"


def test_the_readme_has_the_commands_that_ci_runs():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for command in ("mimi-hf demo", "pytest"):
        assert next(line for line in lines if command in line).startswith("python3 -m venv .venv && ")
    for start in (".venv/bin/mimi-hf roundtrip ", ".venv/bin/mimi-hf tokenize ", "mimi-hf detokenize "):
        assert any(line.startswith(start) for line in lines), start
