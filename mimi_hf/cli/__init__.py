"""The command `mimi-hf`: parse, check, one call of the library."""

import typer

from mimi_hf.conversion.command import convert

from .benchmark import benchmark
from .decode import decode
from .demo import demo
from .detokenize import detokenize
from .encode import encode
from .evaluate import evaluate
from .info import info
from .roundtrip import roundtrip
from .tokenize import tokenize
from .train import train

app = typer.Typer(
    name="mimi-hf",
    help="Kyutai's Mimi speech codec: 24 kHz speech to 12.5 frames of codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, encode, decode, info, tokenize, detokenize, roundtrip, evaluate, train, convert, benchmark):
    app.command()(command)


def main() -> None:
    """Run the command `mimi-hf`."""
    app()
