"""Kyutai's Mimi speech codec for transformers: exact, streaming in both directions, and fast.

Importing `mimi_hf` registers it with the Auto classes, see [`mimi_hf.auto`]. What is heavy is imported when it is used.
"""

import importlib

from . import auto
from .auto import register, unregister

__version__ = "0.1.0"

# Public names and the modules that hold them, imported on first use.
_EXPORTS = {
    "MimiConfig": "configuration_mimi",
    "MimiFeatureExtractor": "feature_extraction_mimi",
    "MimiModel": "modeling_mimi",
    "MimiInt8Config": "quantization",
    "MimiEncoderOutput": "codec.outputs",
    "MimiDecoderOutput": "codec.outputs",
    "MimiOutput": "codec.outputs",
    "MimiTrainingOutput": "codec.outputs",
    "QuantizerTraining": "codec.codebook_learning",
    "EncoderStream": "codec.streaming",
    "DecoderStream": "codec.streaming",
    "AudioTokenizationPipeline": "pipelines",
    "AudioDetokenizationPipeline": "pipelines",
    "AudioFeatureExtractionPipeline": "pipelines",
    "AudioTokenizer": "corpus.datasets_map.tokenizer",
    "AudioDetokenizer": "corpus.datasets_map.tokenizer",
    "AudioCodesCollator": "tokens.collator",
    "mimi_tiny_path": "loading",
    "apply_delay": "tokens.collator",
    "undo_delay": "tokens.collator",
    "flatten_codes": "tokens.collator",
    "unflatten_codes": "tokens.collator",
}

__all__ = ["auto", "register", "unregister", *_EXPORTS]


def __getattr__(name):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


register()
