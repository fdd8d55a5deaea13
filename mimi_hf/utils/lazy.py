"""Packages whose public names are imported on first use."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_on_use(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions `__getattr__` and `__dir__` of a package (PEP 562).

    Define them under `if not TYPE_CHECKING:`. A type checker that sees a `__getattr__` takes every name for public.

    Args:
        package: its name, which has an `__all__`.
        places: for each public name the module of the package that holds it.

    Example:
        >>> find, _ = import_on_use("mimi_hf.audio", {"check_rate": "mix"})
        >>> find("check_rate").__module__
        'mimi_hf.audio.mix'
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{places[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        module = sys.modules[package]
        return sorted({*vars(module), *module.__all__})

    return find, list_names
