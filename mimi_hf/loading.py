"""Loading a model by name, with messages that say how to get it, and telling models apart by content."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
MIMI_TINY = "mimi-tiny"
_MISSING = """The model {name} is neither a folder here nor in the cache, and could not be fetched from the Hub.
  Online:   hf download {name}
  Offline:  fetch it on a machine with a network, copy the folder here, and name the folder as the model
            (or copy that machine's Hugging Face cache and set HF_HOME).
  A file of Kyutai's original format:  mimi-hf convert FILE FOLDER"""


def mimi_tiny_path() -> Path:
    """The folder of `mimi-tiny`, a small trained model that comes with the package: for demonstrations and tests. It is
    far from Mimi's quality, and its codes are its own.

    Example:

        >>> from mimi_hf import MimiModel, mimi_tiny_path
        >>> model = MimiModel.from_pretrained(mimi_tiny_path(), dtype="float32")
        >>> model.config.frame_rate
        12.5
    """
    return Path(__file__).parent / "assets" / "mimi_tiny"


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how. It is light, and goes to other processes.

    name: a folder, the id of a model on the Hub, or `mimi-tiny`, which comes with the package, whatever lies here: a
        folder of that name is `./mimi-tiny`.
    dtype: float32, bfloat16 or float16, of torch too.
    revision: of the model on the Hub.

    Raises:
        ValueError: for another dtype.
    """

    name: str
    dtype: str = "float32"
    revision: str | None = None

    def __post_init__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "name", os.fsdecode(self.name))

    @property
    def place(self) -> str:
        """Where it is: a folder, or an id."""
        return str(mimi_tiny_path()) if self.name == MIMI_TINY else self.name

    def resolve(self):
        """Look at the config alone.

        Returns:
            tuple[MimiConfig, ModelChoice]: the config; and this choice with the commit that its revision stands for.

        Raises:
            OSError, ValueError: there is no such model, or it is none of Mimi.
        """
        from transformers.utils import cached_file

        from .configuration_mimi import MimiConfig

        folder = os.path.isdir(self.place)
        with self._explained():
            path = os.path.join(self.place, "config.json") if folder else None
            path = Path(path or cached_file(self.place, "config.json", revision=self.revision))
            if not path.is_file():
                raise OSError("the folder holds no model, as it has no config.json. Name another.")
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}). Fetch the model again.") from error
            kind = content.get("model_type") if isinstance(content, dict) else None
            if kind != "mimi":
                raise ValueError(f"it is of type {kind!r}, not 'mimi'. Name a Mimi model.")
            config = MimiConfig.from_dict(content)
        commit = path.parent.name if path.parent.parent.name == "snapshots" else self.revision
        return config, replace(self, revision=None if folder else commit)

    def load(self, device: str | None = None, progress: bool = False):
        """The model, on a device: the GPU of this process, or the CPU, by default.

        Args:
            progress: leave the progress bars of transformers as they are; otherwise they end for this process.

        Raises:
            OSError, ValueError: there is no such model, or it cannot be loaded.
        """
        import torch
        from transformers.utils import logging

        from .modeling_mimi import MimiModel

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not progress:
            logging.disable_progress_bar()
        revision = self.resolve()[1].revision
        with self._explained():
            model = MimiModel.from_pretrained(self.place, dtype=getattr(torch, self.dtype), revision=revision)
            return model.to(device)

    @contextlib.contextmanager
    def _explained(self):
        from safetensors import SafetensorError

        try:
            yield
        except OSError as error:
            if os.path.isdir(self.place):
                raise OSError(f"The model {self.name} cannot be loaded: {error}") from error
            raise OSError(_MISSING.format(name=self.name)) from error
        # AssertionError: torch was built without CUDA.
        except (ValueError, TypeError, RuntimeError, AssertionError, SafetensorError) as error:
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
