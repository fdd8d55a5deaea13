"""Registration with transformers' Auto classes and pipelines.

These take seconds to import, so nothing of them is imported here: each mapping is filled at the moment when
transformers itself first imports it, and holds proxies that import our classes when they are used.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import wrapt

_PACKAGE = __name__.rpartition(".")[0]
# The mapping that serves each Auto class, the module of transformers that defines it, and our class for each of our
# configurations. CONFIG_MAPPING has model types in place of configurations, and these in place of classes.
_MAPPINGS = {
    "CONFIG_MAPPING": (
        "transformers.models.auto.configuration_auto",
        {"mimi": "MimiConfig", "mimi_encoder": "MimiEncoderConfig", "mimi_decoder": "MimiDecoderConfig"},
    ),
    "MODEL_MAPPING": (
        "transformers.models.auto.modeling_auto",
        {
            "MimiConfig": "MimiModel",
            "MimiEncoderConfig": "MimiEncoderModel",
            "MimiDecoderConfig": "MimiDecoderModel",
        },
    ),
    "MODEL_FOR_AUDIO_TOKENIZATION_MAPPING": (
        "transformers.models.auto.modeling_auto",
        {"MimiConfig": "MimiModel"},
    ),
    "FEATURE_EXTRACTOR_MAPPING": (
        "transformers.models.auto.feature_extraction_auto",
        {"MimiConfig": "MimiFeatureExtractor"},
    ),
}
# Our pipeline for each task, in `.pipelines`. Feature extraction is a task of transformers: our pipeline serves Mimi
# and passes all other models on to theirs.
_PIPELINES = {
    "audio-tokenization": "AudioTokenizationPipeline",
    "audio-detokenization": "AudioDetokenizationPipeline",
    "feature-extraction": "FeatureExtraction",
}
_PIPELINES_MODULE = "transformers.pipelines"
_registered = False
_tasks: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}  # what we registered, and what was there before


def register() -> None:
    """Serve `mimi` checkpoints with the classes of this package, in transformers' Auto classes and `pipeline`.

    These are `AutoConfig`, `AutoModel`, `AutoModelForAudioTokenization` and `AutoFeatureExtractor`. Importing `mimi_hf`
    does this; calling it again changes nothing. [`unregister`] undoes it.
    """
    global _registered
    _registered = True
    for mapping, (module, _) in _MAPPINGS.items():
        if module in sys.modules:
            _fill(mapping)
    if _PIPELINES_MODULE in sys.modules:
        _fill_tasks(sys.modules[_PIPELINES_MODULE])


def unregister() -> None:
    """Give `mimi` checkpoints back to transformers' native classes. [`register`] undoes it."""
    global _registered
    _registered = False
    for mapping, (module, _) in _MAPPINGS.items():
        if module in sys.modules:
            content = getattr(sys.modules[module], mapping)._extra_content
            for key in list(content):
                ours = key in _MAPPINGS["CONFIG_MAPPING"][1]
                if ours or getattr(key, "__module__", "").startswith(f"{_PACKAGE}."):
                    del content[key]
    for task in list(_tasks):
        registry = sys.modules[_PIPELINES_MODULE].PIPELINE_REGISTRY.supported_tasks
        ours, before = _tasks.pop(task)
        if registry.get(task) is ours and before is None:
            del registry[task]
        elif registry.get(task) is ours:
            registry[task] = before


def _fill(mapping: str) -> None:
    """Add our classes to a mapping whose module transformers has imported."""
    if not _registered:
        return
    module, names = _MAPPINGS[mapping]
    configs = importlib.import_module(f"{_PACKAGE}.configuration_mimi")
    for key, name in names.items():
        entry = (
            (key, getattr(configs, name))
            if mapping == "CONFIG_MAPPING"
            else (getattr(configs, key), _lazy(_PACKAGE, name))
        )
        getattr(sys.modules[module], mapping).register(*entry, exist_ok=True)


def _fill_tasks(pipelines: ModuleType) -> None:
    """Add our pipelines to those of `transformers.pipelines`."""
    # Past register_pipeline(): what it marks is saved as code, and asks for trust_remote_code when it is loaded.
    if not _registered or _tasks:
        return
    registry = pipelines.PIPELINE_REGISTRY.supported_tasks
    fresh = {"pt": (pipelines.AutoModel,), "default": {"model": ("kyutai/mimi", "main")}, "type": "audio"}
    for task, name in _PIPELINES.items():
        before = registry.get(task)
        kept = before if task == "feature-extraction" else fresh
        registry[task] = {**kept, "impl": _lazy(f"{_PACKAGE}.pipelines", name)}
        _tasks[task] = registry[task], before


def _lazy(module: str, name: str) -> Any:
    """A stand-in for a class, which is imported when first used: filling a mapping must not import torch code."""
    return wrapt.LazyObjectProxy(lambda: getattr(importlib.import_module(module), name))


for _mapping, (_module, _) in _MAPPINGS.items():
    wrapt.register_post_import_hook(lambda module, mapping=_mapping: _fill(mapping), _module)
wrapt.register_post_import_hook(_fill_tasks, _PIPELINES_MODULE)
