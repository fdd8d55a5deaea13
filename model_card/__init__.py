"""The model card of a converted checkpoint, and what fills it in."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimi_hf.model_card.card import fill_card

__all__ = ["fill_card"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".card", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
