"""Load a model by name, with messages that say how to get it, and tell models apart by their weights."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .configuration_mimi import MimiConfig
    from .modeling_mimi import MimiModel

DTYPES = ("float32", "bfloat16", "float16")
MIMI_TINY = "mimi-tiny"
_MISSING = """The model {name} is neither a folder here nor in the cache, and could not be fetched from the Hub.
  Online:   hf download {name}
  Offline:  fetch it on a machine with a network, copy the folder here, and name the folder as the model
            (or copy that machine's Hugging Face cache and set HF_HOME).
  A file of Kyutai's original format:  mimi-hf convert FILE FOLDER"""


def mimi_tiny_path() -> Path:
    """The folder of `mimi-tiny`, a small trained model that comes with the package, for demonstrations and tests.

    It is far from Mimi's quality, and other models cannot read its codes.

    Example:
        >>> from mimi_hf import MimiModel, mimi_tiny_path
        >>> model = MimiModel.from_pretrained(mimi_tiny_path(), dtype="float32")
        >>> model.config.frame_rate
        12.5
    """
    return Path(__file__).parent / "assets" / "mimi_tiny"


def default_device() -> str:
    """Where a model runs if nothing else is asked for: "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how. It is small, so that it can be sent to other processes.

    Args:
        name: a folder, the id of a model on the Hub, or `mimi-tiny`, the model that comes with the package. That name
            always means that model; write `./mimi-tiny` for a folder of that name.
        dtype: "float32", "bfloat16" or "float16"; the `torch.dtype` is taken as well.
        revision: branch, tag or commit of the model on the Hub.

    Raises:
        ValueError: another dtype.
    """

    name: str
    dtype: str = "float32"
    revision: str | None = None

    def __post_init__(self) -> None:
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "name", os.fsdecode(self.name))

    @property
    def place(self) -> str:
        """What `from_pretrained` takes: a folder, or an id on the Hub."""
        return str(mimi_tiny_path()) if self.name == MIMI_TINY else self.name

    def resolve(self) -> "tuple[MimiConfig, ModelChoice]":
        """Read the config alone.

        Returns:
            The config; and this choice with the commit that its revision stands for.

        Raises:
            OSError: there is no such model.
            ValueError: its config is damaged, or it is not a Mimi model.
        """
        from transformers.utils import cached_file

        from .configuration_mimi import MimiConfig

        folder = Path(self.place).is_dir()
        with self._explained():
            file = f"{self.place}/config.json" if folder else None
            path = Path(file or cached_file(self.place, "config.json", revision=self.revision) or "")
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

    def load(self, device: str | None = None, progress: bool = False) -> "MimiModel":
        """Load the model onto a device.

        Args:
            device: by default the GPU of this process, or else the CPU.
            progress: keep transformers' progress bars; by default they are switched off for the whole process.

        Raises:
            OSError: there is no such model.
            ValueError: it cannot be loaded.
        """
        import torch
        from transformers.utils import logging

        from .modeling_mimi import MimiModel

        device = device or default_device()
        if not progress:
            logging.disable_progress_bar()
        revision = self.resolve()[1].revision or "main"
        with self._explained():
            model = MimiModel.from_pretrained(self.place, dtype=getattr(torch, self.dtype), revision=revision)
            return model.to(device)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except OSError as error:
            if Path(self.place).is_dir():
                raise OSError(f"The model {self.name} cannot be loaded: {error}") from error
            raise OSError(_MISSING.format(name=self.name)) from error
        # AssertionError: torch was built without CUDA.
        except (ValueError, TypeError, RuntimeError, AssertionError, SafetensorError) as error:
            raise ValueError(f"The model {self.name} cannot be loaded: {error}") from error


def weights_digest(model: "nn.Module", ignored_prefixes: tuple[str, ...] = ()) -> str:
    """Compute the hex SHA-256 of a model's weights, in their present precision.

    Args:
        model: any module of torch.
        ignored_prefixes: weights whose names start with one of these do not count.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(ignored_prefixes):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
