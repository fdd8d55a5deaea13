"""Registration with transformers' Auto classes.

The Auto classes take seconds to import, so nothing of them is imported here: each mapping is filled at the moment when
transformers itself first imports it, and holds proxies that import our classes when they are used.
"""

import importlib
import sys

import wrapt

# The mapping that serves each Auto class, the module of transformers that defines it, and our class for it.
_MAPPINGS = {
    "CONFIG_MAPPING": ("transformers.models.auto.configuration_auto", "MimiConfig"),
    "MODEL_MAPPING": ("transformers.models.auto.modeling_auto", "MimiModel"),
    "MODEL_FOR_AUDIO_TOKENIZATION_MAPPING": ("transformers.models.auto.modeling_auto", "MimiModel"),
    "FEATURE_EXTRACTOR_MAPPING": ("transformers.models.auto.feature_extraction_auto", "MimiFeatureExtractor"),
}
_registered = False


def register():
    """Serve `mimi` checkpoints with our classes in `AutoConfig`, `AutoModel`, `AutoModelForAudioTokenization` and
    `AutoFeatureExtractor`. Importing `mimi_hf` does this; calling it again changes nothing."""
    global _registered
    _registered = True
    for mapping, (module, _) in _MAPPINGS.items():
        if module in sys.modules:
            _fill(mapping)


def unregister():
    """Give `mimi` checkpoints back to transformers' native classes. [`register`] undoes it."""
    global _registered
    _registered = False
    for mapping, (module, _) in _MAPPINGS.items():
        if module in sys.modules:
            content = getattr(sys.modules[module], mapping)._extra_content
            for key in list(content):
                if key == "mimi" or getattr(key, "__module__", "").startswith(f"{__package__}."):
                    del content[key]


def _fill(mapping):
    if not _registered:
        return
    module, name = _MAPPINGS[mapping]
    config = importlib.import_module(".configuration_mimi", __package__).MimiConfig
    key, value = ("mimi", config) if name == "MimiConfig" else (config, _lazy(name))
    getattr(sys.modules[module], mapping).register(key, value, exist_ok=True)


def _lazy(name):
    """Our class `name`, imported when first touched: filling a mapping must not import torch code."""
    return wrapt.LazyObjectProxy(lambda: getattr(importlib.import_module(__package__), name))


for _mapping, (_module, _) in _MAPPINGS.items():
    wrapt.register_post_import_hook(lambda module, mapping=_mapping: _fill(mapping), _module)
