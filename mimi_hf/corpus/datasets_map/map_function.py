"""What the callables for `map` of `datasets` share: the model, and a hash that finds results in the cache again."""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

import torch
import wrapt

from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.inference.batches import check_batch_seconds, default_batch_seconds
from mimi_hf.modeling_mimi import MimiModel

from .model_source import ModelSource

# This many batches are held at once, and sorted by length.
_WINDOW_BATCHES = 8
# Part of the hash: to be increased when the same arguments give another result.
_VERSION = 1


class MapFunction:
    """A callable for `map`. `datasets` hashes its result, not the device, the speed or the memory it takes.

    Args:
        model, device, dtype, revision: as for [`ModelSource`].
        batch_seconds: padded audio in a batch; by default what suits the device.

    Raises:
        OSError, ValueError, TypeError: for a model that is not there, and arguments that make no sense.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | MimiModel,
        device: str | None,
        dtype: str | torch.dtype | None,
        revision: str | None,
        batch_seconds: float | None,
    ):
        check_batch_seconds(batch_seconds)
        self.source = ModelSource(model, dtype, revision, device)
        self.batch_seconds = batch_seconds

    @property
    def config(self) -> MimiConfig:
        """The config of the model."""
        return self.source.config

    def describe(self) -> dict[str, Any]:
        """All that determines the output, JSON-able: what `datasets` hashes."""
        arguments = {name: value for name, value in self.__dict__.items() if name not in ("source", "batch_seconds")}
        return {"class": type(self).__name__, "version": _VERSION, "model": self.source.identity, **arguments}

    def window_samples(self, model: MimiModel) -> float:
        """Samples of audio to hold, and sort by length, at once."""
        return _WINDOW_BATCHES * (self.batch_seconds or default_batch_seconds(model)) * self.config.sampling_rate


def hash_by_description(kind: type[MapFunction]) -> type[MapFunction]:
    """Class decorator: let `datasets` hash objects by [`MapFunction.describe`] once it is imported.

    A `datasets` without the hook for this hashes all attributes, and finds its cache less often.
    """

    def install(module: ModuleType) -> None:
        register = getattr(module, "pklregister", None)
        if register is not None:
            register(kind)(save)

    def save(pickler: Any, instance: MapFunction) -> None:
        pickler.save_reduce(str, (json.dumps(instance.describe(), sort_keys=True),), obj=instance)

    wrapt.register_post_import_hook(install, "datasets.utils._dill")
    return kind


__all__ = ["MapFunction", "hash_by_description"]
