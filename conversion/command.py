"""The command `mimi-hf convert`, which `convert_mimi_checkpoint.py` runs too. It imports torch only to convert."""

from pathlib import Path
from typing import Annotated

import typer

from mimi_hf.conversion import is_folder_or_id
from mimi_hf.loading import MIMI_TINY, ModelChoice


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="The original file (.safetensors, .pt, .pth, .th, .bin, .ckpt); or a folder, the id of a model on"
            " the Hub, or mimi-tiny, to go the other way.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The folder to make, or the .safetensors file.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(
            help="config.json of the original file. By default sizes are read from its tensors; attention heads,"
            " window, dilations and sampling rate, which tensors do not show, are those of kyutai/mimi.",
            show_default=False,
        ),
    ] = None,
    to_original: Annotated[
        bool, typer.Option("--to-original", help="Require a folder or id as SOURCE; refuse a file.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace OUTPUT if it exists.")] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME", help="Upload the verified folder, with the token of `hf auth login` or HF_TOKEN."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private if the upload creates it.")
    ] = False,
) -> None:
    """Convert Mimi checkpoints between Kyutai's original format and transformers.

    SOURCE decides the direction. A file in the original format becomes a
    folder for `from_pretrained`, with its config and model card; a folder, or
    a model on the Hub, becomes a file for Kyutai's own PyTorch and Rust code:

        mimi-hf convert tokenizer-e351c8d8-checkpoint125.safetensors mimi

        mimi-hf convert mimi original.safetensors

    The result is reloaded and compared with SOURCE bit by bit before it
    appears. After an error nothing is written.

    Exit status: 0 when done, 1 when it failed, 2 for a wrong command.
    """
    if source == MIMI_TINY:
        source = ModelChoice(source).place
    exports = is_folder_or_id(source)
    if to_original and not exports:
        raise typer.BadParameter(
            f"--to-original needs a folder or the id of a model on the Hub, but {source!r} is a file. Leave it out to"
            " convert from the original format."
        )
    foreign = {"--config": config, "--push-to-hub": push_to_hub, "--private": private}
    given = [name for name, value in foreign.items() if value]
    if exports and given:
        raise typer.BadParameter(f"{', '.join(given)} belongs to the other direction, but {source!r} is no file.")
    if private and not push_to_hub:
        raise typer.BadParameter("--private says how to upload: add --push-to-hub USER/NAME.")

    from mimi_hf.conversion.checkpoint import convert_checkpoint, export_checkpoint

    try:
        if exports:
            report = export_checkpoint(source, output, force=force)
        else:
            report = convert_checkpoint(source, output, config, force, push_to_hub, private)
    except (ValueError, OSError, RuntimeError) as error:
        # As the caller of a command would say it.
        typer.echo(f"Error: {str(error).replace('force=True', '--force')}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{report.output}: {report.tensors} tensors, {report.parameters:,} values, verified")
    typer.echo(f"sha256 of the original file: {report.sha256}")
    if report.url:
        typer.echo(report.url)
