"""The command `mimi-hf info`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import fail, print_json
from .options import JsonOption

if TYPE_CHECKING:
    from mimi_hf.bitstream.header import Header
    from mimi_hf.bitstream.reader import Facts


def info(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .mimi file.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Read the whole file and compare every checksum.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what is in a .mimi file. Needs no model.

        mimi-hf info talk.mimi

    Exit status: 0 the file can be read; 1 it cannot, or it is damaged; 2
    wrong usage.
    """
    from mimi_hf.bitstream import BitstreamReader

    if not source.is_file():
        raise fail(f"{source} is no file. Name a .mimi file.")
    try:
        with open(source, "rb") as file:
            reader = BitstreamReader(file)
            facts = reader.scan()
            for _ in reader if check else ():
                pass
    except (OSError, ValueError, ImportError) as error:
        raise fail(f"{source}: {error}") from None
    table = _facts(source, reader.header, facts)
    if json:
        print_json(table)
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    for key, value in {**table, **{f"  {key}": value for key, value in table.pop("metadata").items()}}.items():
        if value is not None and key != "metadata":
            grid.add_row(escape(key.replace("_", " ")), escape(_text(value)))
    Console().print(grid)


def _facts(source: Path, header: "Header", facts: "Facts") -> dict[str, Any]:
    frames = facts.num_frames * header.frame_size
    duration = (frames if facts.num_samples is None else facts.num_samples) / header.sampling_rate
    return {
        "file": str(source),
        "bytes": source.stat().st_size,
        "duration": duration,
        "complete": facts.complete,
        "channels": header.channels,
        "sampling_rate": header.sampling_rate,
        "num_samples": facts.num_samples,
        "num_frames": facts.num_frames,
        "frame_rate": header.frame_rate,
        "num_quantizers": header.num_quantizers,
        "codebook_size": header.codebook_size,
        "coding": header.coding,
        "bits_per_second": 8 * facts.num_bytes / duration if duration else None,
        "num_blocks": facts.num_blocks,
        "codebook_digest": header.codebook_digest or None,
        "metadata": header.metadata,
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
