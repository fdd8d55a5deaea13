"""Loading a model by name, with messages that say how to get it, and telling models apart by content."""

import hashlib
import os
from dataclasses import dataclass

_MISSING = """The model {name} is neither a folder here nor in the cache, and could not be fetched from the Hub.
  Online:   hf download {name}
  Offline:  fetch it on a machine with a network, copy the folder here, and name the folder as the model
            (or copy that machine's Hugging Face cache and set HF_HOME).
  A file of Kyutai's original format:  mimi-hf convert FILE FOLDER"""


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how. It is light, and goes to other processes.

    name: a folder, or the id of a model on the Hub.
    dtype: float32, bfloat16 or float16.
    revision: of the model on the Hub.
    """

    name: str
    dtype: str = "float32"
    revision: str | None = None

    def load(self, device: str | None = None):
        """The model, on a device: the GPU of this process, or the CPU, by default.

        Raises:
            OSError, ValueError: there is no such model, or it cannot be loaded.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoConfig
        from transformers.utils import logging

        from .modeling_mimi import MimiModel

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        logging.disable_progress_bar()
        try:
            kind = AutoConfig.from_pretrained(self.name, revision=self.revision).model_type
            if kind != "mimi":
                raise ValueError(f"it is of type {kind!r}, not 'mimi'. Name a Mimi model.")
            model = MimiModel.from_pretrained(self.name, dtype=getattr(torch, self.dtype), revision=self.revision)
            return model.to(device)
        except OSError as error:
            if os.path.isdir(self.name):
                raise OSError(f"The model {self.name} cannot be loaded: {error}") from error
            raise OSError(_MISSING.format(name=self.name)) from error
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"The model {self.name} cannot be loaded: {error}") from error


def weights_digest(model, leave_out: tuple[str, ...] = ()) -> str:
    """The hex SHA-256 of the weights, in the precision that they have now, but for some beginnings of names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(leave_out):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
