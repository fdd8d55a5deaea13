"""Every python snippet of the README, and every example in a docstring, runs."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_cache import fill_cache

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "mimi_hf").rglob("*.py"))
    if path.name != "__init__.py"
]


def test_readme_snippets_run_one_after_the_other(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) >= 4
    fill_cache(tmp_path)
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
