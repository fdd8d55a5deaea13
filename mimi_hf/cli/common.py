"""What the commands share: options, checks, loading a model, one way to fail."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A folder, or the id of a model on the Hub.")]
QuantizersOption = Annotated[
    int | None,
    typer.Option("--num-quantizers", "-k", help="Codebooks to use; all by default. 8 make 1.1 kbps.", min=1),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; a GPU where there is one.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DEFAULT_MODEL = "kyutai/mimi"


def check_dtype(dtype: str):
    if dtype not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype {dtype} must be float32, bfloat16 or float16.")


def check_writable(path: Path, force: bool):
    """Refuse a file that cannot be written, or must not be."""
    if path.exists() and not force:
        raise fail(f"{path} exists. Name another file, or add --force to replace it.")
    if path.is_dir():
        raise fail(f"{path} is a folder. Name a file to write.")
    if not path.parent.is_dir():
        raise fail(f"There is no folder {path.parent} to write to. Create it first.")


def load_model(name: str, device: str | None, dtype: str):
    """The model, or one message that says how to get it."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import logging

    from .. import MimiModel

    logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "mimi":
            raise ValueError(f"it is of type {kind!r}, not 'mimi'. Name a Mimi model.")
        return MimiModel.from_pretrained(name, dtype=getattr(torch, dtype)).to(device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if Path(name).is_dir() or isinstance(error, ValueError | RuntimeError | SafetensorError):
            raise fail(f"The model {name} cannot be loaded: {error}") from None
        raise fail(
            f"The model {name} is neither a folder here nor in the cache, and could not be fetched from the Hub.\n"
            f"  Online:   hf download {name}\n"
            "  Offline:  fetch it on a machine with a network, copy the folder here, and give --model FOLDER\n"
            "            (or copy that machine's Hugging Face cache and set HF_HOME).\n"
            "  A file of Kyutai's original format:  mimi-hf convert FILE FOLDER"
        ) from None


def fail(message: str) -> typer.Exit:
    """An exit with status 1, its reason printed."""
    typer.echo(f"Error: {message}", err=True)
    return typer.Exit(1)
