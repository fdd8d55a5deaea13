"""Conversion between Kyutai's original Mimi checkpoints and the format of Hugging Face transformers.

Example:
    >>> from mimi_hf.conversion import convert_checkpoint, export_checkpoint
    >>> convert_checkpoint("tokenizer.safetensors", "mimi")  # doctest: +SKIP
    >>> export_checkpoint("mimi", "copy.safetensors")  # doctest: +SKIP
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mimi_hf.utils.lazy import import_on_use

if TYPE_CHECKING:
    from mimi_hf.conversion.architecture import config_from_kyutai, infer_config
    from mimi_hf.conversion.checkpoint import ConversionReport, convert_checkpoint, export_checkpoint, load_original
    from mimi_hf.conversion.keys import key_table

# Public names and the modules that hold them, imported on first use: they need torch, this package does not.
_EXPORTS = {
    "convert_checkpoint": "checkpoint",
    "export_checkpoint": "checkpoint",
    "load_original": "checkpoint",
    "ConversionReport": "checkpoint",
    "config_from_kyutai": "architecture",
    "infer_config": "architecture",
    "key_table": "keys",
}

# File name endings of pickled checkpoints, and of all checkpoints.
PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

__all__ = [
    "PICKLED",
    "SUFFIXES",
    "ConversionReport",
    "config_from_kyutai",
    "convert_checkpoint",
    "export_checkpoint",
    "infer_config",
    "is_folder_or_id",
    "key_table",
    "load_original",
]


def is_folder_or_id(source: str | Path) -> bool:
    """Return whether `source` is a folder, or can be the id of a model on the Hub: `user/name`, and no such file."""
    path, parts = Path(source), str(source).split("/")
    could_be_id = len(parts) == 2 and all(parts) and parts[0] not in (".", "..") and path.suffix not in SUFFIXES
    return path.is_dir() or (could_be_id and not path.exists())


if not TYPE_CHECKING:
    __getattr__, __dir__ = import_on_use(__name__, _EXPORTS)
