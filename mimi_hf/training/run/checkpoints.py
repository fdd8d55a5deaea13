"""Checkpoints of a training run. A checkpoint is complete or does not exist, and is safe to load."""

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mimi_hf.utils.files import written_beside

_PREFIX, _MODEL, _STATE = "step-", "model.safetensors", "training.pt"


class Checkpoints:
    """The checkpoints of a run, a folder each.

    Args:
        folder: where they lie. The first checkpoint makes it.
        keep: how many to keep, the newest.
    """

    def __init__(self, folder: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, oldest first."""
        names = [path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, model: dict[str, torch.Tensor], state: dict) -> None:
        """Write a checkpoint, whole or not at all, and remove the oldest ones.

        Args:
            step: how many steps were done.
            model: weights and buffers.
            state: everything else: tensors, numbers, strings, and containers of them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f".{_PREFIX}*"):  # from a run that was killed while it wrote
            shutil.rmtree(left)
        with written_beside(self.folder / f"{_PREFIX}{step}") as aside:
            aside.mkdir()
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}, aside / _MODEL)
            torch.save(state, aside / _STATE)
            for path in aside.iterdir():  # on the disk before the folder gets its name, in case the power fails
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"{_PREFIX}{old}")

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Load the newest checkpoint to the CPU: model and state, see [`save`]; None where there is none.

        Raises:
            ValueError: it cannot be read.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self.folder / f"{_PREFIX}{steps[-1]}"
        try:
            return load_file(folder / _MODEL), torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        except (OSError, EOFError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
            raise ValueError(
                f"The checkpoint {folder} cannot be read ({error}). Remove that folder to go on from the one before."
            ) from error
