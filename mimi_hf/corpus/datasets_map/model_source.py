"""The model of a callable for many processes: it is loaded once in each, and identified by its content."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from mimi_hf.loading import ModelChoice, default_device, weights_digest
from mimi_hf.modeling_mimi import MimiModel

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
# Fields of a config that do not change what a model does.
_INCIDENTAL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
_IMPORTED_IN = os.getpid()

Result = TypeVar("Result")


class ModelSource:
    """A model by name, or a model itself. A pickled one by name holds no weights: they are loaded again.

    Args:
        model: the id of a model on the Hub, a folder, or a [`MimiModel`].
        dtype: "float32", "bfloat16" or "float16" (or of torch); single precision by default. Not for a `MimiModel`.
        revision: of the model on the Hub. Every process loads the commit that it stands for now.
        device: "cpu", "cuda", "cuda:1", …; by default a GPU if there is one. Not for a `MimiModel`.

    Attributes:
        config: the [`MimiConfig`].

    Raises:
        OSError: there is no such model.
        ValueError, TypeError: for a model that is not Mimi, and for other arguments that make no sense.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | MimiModel,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        device: str | None = None,
    ):
        self.device = None if device is None else str(torch.device(device))
        self._loaded: tuple[str, MimiModel] | None = None
        self._threads: int | None = None
        self.model: MimiModel | None = None
        self.choice: ModelChoice | None = None
        self._digest: str | None = None  # of a folder
        if isinstance(model, MimiModel):
            given = {"dtype": dtype, "revision": revision, "device": device}
            if wrong := [name for name, value in given.items() if value is not None]:
                raise ValueError(
                    f"{' and '.join(wrong)} cannot be given with a MimiModel, which is used as it is. Convert or move"
                    " the model before, or give its name."
                )
            self.model, self.config = model, model.config
            return
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                f"model is of type {type(model).__name__}, but the id of a model on the Hub, a folder or a MimiModel"
                " is needed."
            )
        choice = ModelChoice(os.fsdecode(model), "float32" if dtype is None else str(dtype), revision)
        if os.path.isdir(choice.place):
            choice = replace(choice, name=os.path.abspath(choice.place))
            self._digest = _digest_folder(choice.name)
        self.config, self.choice = choice.resolve()

    @property
    def identity(self) -> str:
        """Text that is equal for weights that give equal codes.

        It takes milliseconds for a name, tenths of a second for a model itself, which may change at any time.
        """
        if self.model is not None:
            return f"weights {_digest_model(self.model)}"
        assert self.choice is not None
        if self._digest is not None:
            return f"folder {self._digest} {self.choice.dtype}"
        return f"{self.choice.name} {self.choice.revision} {self.choice.dtype}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None, "_threads": _share_of_threads()}

    def run(self, function: Callable[[MimiModel], Result], rank: int | None = None) -> Result:
        """Call `function(model)` with the model of this process, on the device that belongs to `rank`."""
        if os.getpid() == _IMPORTED_IN:
            return self._run(function, rank)
        # In a forked process GNU OpenMP waits forever for the threads of its parent, unless a new thread calls it.
        return _own_thread(os.getpid()).submit(self._run, function, rank).result()

    def _run(self, function: Callable[[MimiModel], Result], rank: int | None) -> Result:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        device = self.place(rank)
        if self._loaded is None or self._loaded[0] != device:
            self._loaded = device, self._load(device)
        return function(self._loaded[1])

    def _load(self, device: str) -> MimiModel:
        if self.model is not None:
            return self.model if str(self.model.device) == device else self.model.to(device)
        assert self.choice is not None
        if self._digest is not None and _digest_folder(self.choice.name) != self._digest:
            raise ValueError(f"{self.choice.name} was changed after it was named here. Begin again, with a new object.")
        return _load(self.choice, self._digest, device)

    def place(self, rank: int | None) -> str:
        """Choose the device of a process: the GPU of its rank, or the device of the model itself.

        Raises:
            TypeError: `rank` is no number.
            RuntimeError: CUDA cannot be used in this process.
        """
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
            raise TypeError(f"rank={rank!r} must be the number of a process. Call `map` without with_indices.")
        wanted = self.device if self.model is None else str(self.model.device)
        if wanted != "cpu" and getattr(torch.cuda, "_is_in_bad_fork", bool)():
            raise RuntimeError(
                "CUDA was used before this process was forked, and cannot be used in it. Call"
                " multiprocess.set_start_method('spawn') before `map`, or give device='cpu'."
            )
        if wanted is None:
            wanted = default_device()
        if rank is not None and (wanted == "cuda" or (self.model is not None and wanted.startswith("cuda"))):
            return f"cuda:{rank % torch.cuda.device_count()}"
        return wanted


@functools.lru_cache(maxsize=2)
def _load(choice: ModelChoice, digest: str | None, device: str) -> MimiModel:
    """Load a model once per process; `digest` tells a folder from what it held before."""
    return choice.load(device, progress=True)


@functools.lru_cache(maxsize=1)
def _own_thread(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="mimi")


def _share_of_threads() -> int | None:
    """Threads of torch for each process of the pool that this is pickled for; `None` if there is no pool."""
    workers = 0
    for module in ("multiprocess", "multiprocessing"):
        if module in sys.modules:
            children = sys.modules[module].active_children()
            workers = max(workers, sum("PoolWorker" in child.name for child in children))
    return max(1, torch.get_num_threads() // workers) if workers else None


def _digest_folder(folder: str) -> str:
    """The hex SHA-256 of the config and the weights in a folder. Its name and its dates do not matter."""
    paths = sorted(
        path for path in Path(folder).iterdir() if path.name == "config.json" or path.name.endswith(_WEIGHTS)
    )
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        content = _digest_file(str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _digest_file(path: str, *_status) -> str:
    """Reads the file (400 MB take tenths of a second) where its status is new to this process."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _digest_model(model: MimiModel) -> str:
    """The hex SHA-256 of all that decides what a model does."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
    described = f"{json.dumps(config, sort_keys=True, default=str)} {weights_digest(model)}"
    return hashlib.sha256(described.encode()).hexdigest()
