"""Reading original checkpoints: from a file to named float32 tensors, without running anything that a file holds."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mimi_hf.conversion import PICKLED, SUFFIXES
from mimi_hf.conversion.keys import canonical


def read_original(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of an original checkpoint, float32, in the spelling of the published file (see [`canonical`]).

    Args:
        path: `.safetensors`; or a pickled state dict, by itself or under `model` or `best_state`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds anything but tensors of floats.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {str(path)!r}. Check the path; nothing was written.")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is no complete safetensors file ({error}). It may be truncated, or a Git LFS pointer in"
                f" place of the file ({path.stat().st_size} bytes here): download it again."
            ) from error
    elif path.suffix in PICKLED:
        state = _read_pickled(path)
    else:
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix!r}, but a checkpoint is recognized by one of {', '.join(SUFFIXES)}."
            " Rename the file, or pass the checkpoint itself."
        )
    state = canonical(state)
    for name, tensor in state.items():
        # The flag of a codebook was boolean in old files; anything else that is no float is a quantized weight.
        if not (tensor.is_floating_point() or name.endswith("._initialized")):
            raise ValueError(
                f"{name} in {str(path)!r} has dtype {tensor.dtype}, but the weights of a codec are floats: quantized"
                " checkpoints cannot be converted. Take the one that was quantized."
            )
    return {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in state.items()}


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        # torch's own message advises weights_only=False, which runs code from the file: it is not repeated here.
        raise ValueError(
            f"{str(path)!r} cannot be read as plain tensors: it is damaged, or holds Python objects, which could run"
            " code and are never loaded here. Where you trust its origin, save its state dict alone, as safetensors, in"
            " the environment that made it; otherwise download it again."
        ) from error
    # Trainers wrap the state dict, some of them twice. The best state goes before the last.
    while isinstance(content, dict):
        inner = next((content[key] for key in ("best_state", "model") if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    entries = content.items() if isinstance(content, dict) else ()
    others = [key for key, value in entries if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if not isinstance(content, dict) or others:
        found = f"also {', '.join(map(repr, others[:20]))}" if others else f"a {type(content).__name__}"
        raise ValueError(
            f"{str(path)!r} must hold a state dict of tensors, by itself or under 'model' or 'best_state', but holds"
            f" {found}. Save the state dict of the codec alone."
        )
    return content


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
