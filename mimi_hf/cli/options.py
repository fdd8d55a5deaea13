"""Options that several commands share, each defined once, and the checks of their values."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import explaining, fail, spinning

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

DEFAULT_MODEL = "kyutai/mimi"

# The model

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A folder, the id of a model on the Hub, or mimi-tiny, which comes with the package."
    ),
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model on the Hub.", show_default=False)]
QuantizersOption = Annotated[
    int | None,
    typer.Option("--num-quantizers", "-k", help="Codebooks to use; all by default. 8 make 1.1 kbps.", min=1),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; a GPU if there is one.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
AnyModelOption = Annotated[
    bool,
    typer.Option("--any-model", help="Decode even if the codes were made with other codebooks: most likely noise."),
]

# Input and output

ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace what exists.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Processes for a folder.", show_default="one for four cores; 1 on a GPU"),
]
SampleFormatOption = Annotated[
    str, typer.Option(help="Format of raw samples: s16le, s24le, s32le, f32le, … or arecord's S16_LE, S24_3LE, ….")
]
PushOption = Annotated[
    str | None,
    typer.Option(metavar="USER/NAME", help="Upload OUT as a data set of the Hub when all is done.", show_default=False),
]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make that data set private if it is new.")]

# Work on corpora

ShardSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Examples in a shard, about. A shard is one file of OUT, and what a crash costs at most.",
        min=1,
        show_default="50 to 1000, by the size of SOURCE",
    ),
]
BatchSecondsOption = Annotated[
    float | None, typer.Option(help="Padded audio in a batch, in seconds.", show_default="what suits the device")
]
NumProcOption = Annotated[
    int | None,
    typer.Option(
        help="Processes on this machine.", min=1, show_default="one per GPU, or one per core if memory allows"
    ),
]
NumShardsOption = Annotated[
    int | None,
    typer.Option(help="Parts that all machines share the work in.", min=1, show_default="as torchrun or Slurm says"),
]
ShardIndexOption = Annotated[
    int | None,
    typer.Option(help="The part that this machine does, from 0.", min=0, show_default="as torchrun or Slurm says"),
]
EngineOption = Annotated[str, typer.Option(help="local, or ray: the actors of a Ray cluster.")]
RayAddressOption = Annotated[
    str | None, typer.Option(help="Address of the Ray cluster.", show_default="RAY_ADDRESS, or this machine")
]
ActorsOption = Annotated[int | None, typer.Option(help="Number of Ray actors.", min=1, show_default="as many as fit")]


def check_dtype(dtype: str) -> None:
    """Refuse a dtype that models are not loaded in."""
    from mimi_hf.loading import ModelChoice

    try:
        ModelChoice(DEFAULT_MODEL, dtype)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def check_writable(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, or must not be."""
    with looking_at(path):
        if path.exists() and not force:
            raise fail(f"{path} exists. Name another file, or add --force to replace it.")
        if path.is_dir():
            raise fail(f"{path} is a folder. Name a file to write.")
        if not path.parent.is_dir():
            raise fail(f"There is no folder {path.parent} to write to. Create it first.")


@contextmanager
def looking_at(path: Path) -> Iterator[None]:
    """Fail with the reason if a path cannot even be looked at: its name is too long, or its folder closed."""
    try:
        yield
    except OSError as error:
        raise fail(f"{path}: {error.strerror}.") from None


def load_model(name: str, device: str | None, dtype: str, quiet: bool) -> "MimiModel":
    """Load the model under a spinner, or fail with one message that says how to get it."""
    with spinning(f"Loading {name} …", quiet), explaining():
        from mimi_hf.loading import ModelChoice

        return ModelChoice(name, dtype).load(device)
