"""What the commands share: options, checks, loading a model, one way to fail."""

from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A folder, the id of a model on the Hub, or mimi-tiny, which comes with the package."
    ),
]
QuantizersOption = Annotated[
    int | None,
    typer.Option("--num-quantizers", "-k", help="Codebooks to use; all by default. 8 make 1.1 kbps.", min=1),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; a GPU where there is one.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DEFAULT_MODEL = "kyutai/mimi"


def check_dtype(dtype: str):
    """Refuse one that models are not loaded in."""
    from mimi_hf.loading import ModelChoice

    try:
        ModelChoice(DEFAULT_MODEL, dtype)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def check_writable(path: Path, force: bool):
    """Refuse a file that cannot be written, or must not be."""
    with looking_at(path):
        if path.exists() and not force:
            raise fail(f"{path} exists. Name another file, or add --force to replace it.")
        if path.is_dir():
            raise fail(f"{path} is a folder. Name a file to write.")
        if not path.parent.is_dir():
            raise fail(f"There is no folder {path.parent} to write to. Create it first.")


@contextmanager
def looking_at(path: Path):
    """Fail with the reason where a path cannot even be looked at: its name is too long, or its folder closed."""
    try:
        yield
    except OSError as error:
        raise fail(f"{path}: {error.strerror}.") from None


def load_model(name: str, device: str | None, dtype: str):
    """The model, or one message that says how to get it."""
    from mimi_hf.loading import ModelChoice

    try:
        return ModelChoice(name, dtype).load(device)
    except (OSError, ValueError) as error:
        raise fail(str(error)) from None


def loading_message(model: str) -> str:
    """What a spinner says while a model is loaded."""
    from rich.markup import escape

    return escape(f"Loading {model} …")


def fail(message: str) -> typer.Exit:
    """An exit with status 1, its reason printed."""
    typer.echo(f"Error: {message}", err=True)
    return typer.Exit(1)
