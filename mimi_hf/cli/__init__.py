"""The command `mimi-hf`: parse, check, one call of the library."""

import typer

from ..conversion.command import convert
from .benchmark import benchmark
from .roundtrip import roundtrip

app = typer.Typer(
    name="mimi-hf",
    help="Kyutai's Mimi speech codec: 24 kHz speech to 12.5 frames of codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (roundtrip, convert, benchmark):
    app.command()(command)


def main():
    app()
