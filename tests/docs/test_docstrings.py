"""Every example in a docstring gives what it says."""

import doctest
import importlib

import pytest
from support.pages import ROOT

# conversion/ and model_card/ lie at the top of the repository; links make them part of the package.
FOLDERS = {"mimi_hf": "mimi_hf", "conversion": "mimi_hf.conversion", "model_card": "mimi_hf.model_card"}
MODULES = sorted(
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__")
    for folder, package in FOLDERS.items()
    for path in (ROOT / folder).rglob("*.py")
    if (ROOT / folder).resolve() in path.resolve().parents
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_no_module_is_left_out():
    assert {"mimi_hf", "mimi_hf.codec.ragged", "mimi_hf.conversion.keys", "mimi_hf.model_card.card"} <= set(MODULES)
    assert len(MODULES) == len(set(MODULES))
