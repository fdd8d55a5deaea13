"""Kyutai's Mimi speech codec for transformers: exact, streaming in both directions, and fast.

Importing `mimi_hf` registers it with the Auto classes, see [`mimi_hf.auto`]. Everything heavy is imported on first use.
"""

from typing import TYPE_CHECKING

from mimi_hf.utils.lazy import import_on_use

from . import auto
from .auto import register, unregister

if TYPE_CHECKING:  # for editors and type checkers; `_EXPORTS` is the same list for Python
    from .codec.codebook_learning import QuantizerTraining
    from .codec.outputs import (
        MimiDecoderOutput,
        MimiEncoderModelOutput,
        MimiEncoderOutput,
        MimiOutput,
        MimiTrainingOutput,
    )
    from .codec.streaming import DecoderStream, EncoderStream, LatentDecoderStream, LatentEncoderStream
    from .configuration_mimi import MimiConfig, MimiDecoderConfig, MimiEncoderConfig
    from .corpus.datasets_map.tokenizer import AudioDetokenizer, AudioTokenizer
    from .feature_extraction_mimi import MimiFeatureExtractor
    from .loading import mimi_tiny_path
    from .modeling_halves import MimiDecoderModel, MimiEncoderModel
    from .modeling_mimi import MimiModel
    from .pipelines import AudioDetokenizationPipeline, AudioFeatureExtractionPipeline, AudioTokenizationPipeline
    from .quantization import MimiInt8Config
    from .tokens.collator import AudioCodesCollator, apply_delay, flatten_codes, undo_delay, unflatten_codes

__version__ = "0.1.0"

__all__ = [
    "AudioCodesCollator",
    "AudioDetokenizationPipeline",
    "AudioDetokenizer",
    "AudioFeatureExtractionPipeline",
    "AudioTokenizationPipeline",
    "AudioTokenizer",
    "DecoderStream",
    "EncoderStream",
    "LatentDecoderStream",
    "LatentEncoderStream",
    "MimiConfig",
    "MimiDecoderConfig",
    "MimiDecoderModel",
    "MimiDecoderOutput",
    "MimiEncoderConfig",
    "MimiEncoderModel",
    "MimiEncoderModelOutput",
    "MimiEncoderOutput",
    "MimiFeatureExtractor",
    "MimiInt8Config",
    "MimiModel",
    "MimiOutput",
    "MimiTrainingOutput",
    "QuantizerTraining",
    "apply_delay",
    "auto",
    "flatten_codes",
    "mimi_tiny_path",
    "register",
    "undo_delay",
    "unflatten_codes",
    "unregister",
]

# The module of each public name that Python imports on first use.
_EXPORTS = {
    "MimiConfig": "configuration_mimi",
    "MimiEncoderConfig": "configuration_mimi",
    "MimiDecoderConfig": "configuration_mimi",
    "MimiFeatureExtractor": "feature_extraction_mimi",
    "MimiModel": "modeling_mimi",
    "MimiEncoderModel": "modeling_halves",
    "MimiDecoderModel": "modeling_halves",
    "MimiInt8Config": "quantization",
    "MimiEncoderOutput": "codec.outputs",
    "MimiDecoderOutput": "codec.outputs",
    "MimiEncoderModelOutput": "codec.outputs",
    "MimiOutput": "codec.outputs",
    "MimiTrainingOutput": "codec.outputs",
    "QuantizerTraining": "codec.codebook_learning",
    "EncoderStream": "codec.streaming",
    "DecoderStream": "codec.streaming",
    "LatentEncoderStream": "codec.streaming",
    "LatentDecoderStream": "codec.streaming",
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


if not TYPE_CHECKING:
    __getattr__, __dir__ = import_on_use(__name__, _EXPORTS)


register()
