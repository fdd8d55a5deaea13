"""Conversion between Kyutai's original Mimi checkpoints and the format of Hugging Face transformers.

Example:

    >>> from mimi_hf.conversion import convert_checkpoint, export_checkpoint
    >>> convert_checkpoint("tokenizer.safetensors", "mimi")  # doctest: +SKIP
    >>> export_checkpoint("mimi", "copy.safetensors")  # doctest: +SKIP
"""

import importlib
from pathlib import Path

# Public names and the modules that hold them, imported on first use: they need torch, this package does not.
_EXPORTS = {
    "convert_checkpoint": "checkpoint",
    "export_checkpoint": "checkpoint",
    "ConversionReport": "checkpoint",
    "infer_config": "architecture",
    "key_table": "keys",
}

# What the name of a pickled checkpoint ends in, and of any checkpoint.
PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

__all__ = ["PICKLED", "SUFFIXES", "is_folder_or_id", *_EXPORTS]


def is_folder_or_id(source) -> bool:
    """Whether `source` is a folder, or can be the id of a model on the Hub (`user/name`, and no file of that name)."""
    path, parts = Path(source), str(source).split("/")
    could_be_id = len(parts) == 2 and all(parts) and parts[0] not in (".", "..") and path.suffix not in SUFFIXES
    return path.is_dir() or (could_be_id and not path.exists())


def __getattr__(name):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
