"""The command `mimi-hf train`."""

import dataclasses
import inspect
import json as json_lines
import os
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import ending_cleanly, explaining, open_console
from .options import QuietOption

EXAMPLES = ("tiny", "full", "finetune")


def train(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.", show_default=False),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a field, such as optimizer.steps=2000; repeat."),
    ] = None,
    example: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Print a configuration to begin from: {', '.join(EXAMPLES)}.")
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="Print every field, what it means and its default.")] = False,
    quiet: QuietOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print figures as lines of JSON on standard output.")] = False,
) -> None:
    """Train a new Mimi, or fine-tune a published one on your own voices.

    Print a configuration, put your folders in, and train:

        mimi-hf train --example finetune > my.yaml

        mimi-hf train my.yaml --set data.train=my-recordings

    Several devices share the work under torchrun:

        torchrun --nproc-per-node 8 --no-python mimi-hf train my.yaml

    The run's folder holds checkpoints, logs (log.jsonl, and TensorBoard's
    if it is installed), `best`, and at the end `model`, which every command
    takes as --model. After Ctrl-C or a crash the same command goes on from
    the last checkpoint; --fields says which settings may change by then.

    Exit status: 0 when done, 1 when it failed, 2 for a wrong command, 130
    or 143 when ended by Ctrl-C or SIGTERM.
    """
    if example is not None:
        typer.echo(example_config(example), nl=False)
        return
    if fields:
        typer.echo(_describe_fields())
        return
    if config is None:
        raise typer.BadParameter("Name a CONFIG.yaml. `mimi-hf train --example tiny` prints one to begin from.")
    values = _parse_changes(changes or [])
    with ending_cleanly():
        _run(config, values, quiet, json)


def example_config(name: str) -> str:
    """Return the text of a configuration that comes with the package."""
    from importlib.resources import files

    if name not in EXAMPLES:
        raise typer.BadParameter(f"--example {name!r} must be one of {', '.join(EXAMPLES)}.")
    return (files("mimi_hf.training") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")


def _parse_changes(changes: list[str]) -> dict[str, Any]:
    import yaml

    from mimi_hf.training.parsing import parse_yaml

    values = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--set {change!r} must look like optimizer.steps=2000.")
        try:
            values[name.strip()] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"--set {change!r}: the value is no YAML: {error}") from None
    return values


def _run(path: Path, changes: dict[str, Any], quiet: bool, json: bool) -> None:
    from transformers.utils import logging

    from mimi_hf.training.config import TrainingConfig

    logging.disable_progress_bar()  # this command has its own
    if os.environ.get("RANK", "0") != "0":  # one process of several tells what there is to tell
        quiet, json = True, False
    with explaining():
        config = TrainingConfig.from_yaml(path, changes)
        try:
            with _Reporter(config.optimizer.steps, quiet, json) as reporter:
                from mimi_hf.training.run.trainer import Trainer

                Trainer(config, reporter).run()
                reporter.end(config.run.output)
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command goes on from the last checkpoint.", err=True)
            raise


class _Reporter:
    """Shows what a [`Trainer`] reports."""

    def __init__(self, steps: int, quiet: bool, json: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.steps, self.quiet, self.json = steps, quiet, json
        self.console = open_console(quiet)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self.progress = Progress(*columns, console=self.console, transient=True, disable=quiet)

    def __enter__(self) -> "_Reporter":
        self.progress.start()
        self.task = self.progress.add_task("Preparing", total=self.steps)
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def __call__(self, figures: dict[str, Any]) -> None:
        if self.json:
            typer.echo(json_lines.dumps(figures))
        if "prepared" in figures:
            self.progress.update(self.task, description=f"Preparing audio, {figures['prepared']:.0%}")
        elif "data" in figures:
            self._show_data(figures["data"])
        elif "validation" in figures:
            values = ", ".join(f"{name} {value:.4g}" for name, value in figures["validation"].items())
            self.console.print(f"step {figures['step']}, on recordings it never learns from: {values}")
        else:
            shown = [f"{name} {figures[name]:.3g}" for name in ("mel", "adversarial", "commitment") if name in figures]
            text = ", ".join([*shown, f"{figures['speed']:.0f}x real time"])
            self.progress.update(self.task, completed=figures["step"], description=text)

    def _show_data(self, report: dict[str, Any]) -> None:
        left_out = ", ".join(f"{count} {why}" for why, count in report.get("left_out", {}).items())
        self.console.print(
            f"{report['hours']:.2f} h in {report['recordings']} recordings"
            + (f"; left out: {left_out} (left_out.jsonl, beside the audio, says why)" if left_out else "")
        )

    def end(self, output: str) -> None:
        """Say where the model is."""
        if not self.quiet and not self.json:
            typer.echo(f"The model: {output}/model. Try: mimi-hf roundtrip IN OUT.wav --model {output}/model")


def _describe_fields() -> str:
    from mimi_hf.training import config

    groups: dict[str, Any] = typing.get_type_hints(config.TrainingConfig) | {"data.augmentation": config.Augmentation}
    texts = []
    for name, group in groups.items():
        lines = [f"{name}: {inspect.getdoc(group)}", ""]
        for item in dataclasses.fields(group):
            default = item.default
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            lines.append(f"  {name}.{item.name}" + ("" if default is dataclasses.MISSING else f" = {default!r}"))
        texts.append("\n".join(lines))
    return "\n\n".join(texts)
