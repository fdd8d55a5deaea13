"""Many files at once: a folder mirrored, in several processes, where one bad file does not stop the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimi_hf.audio import AUDIO_EXTENSIONS
from mimi_hf.utils.workers import WorkerDiedError, run_in_processes

from .console import describe

AUDIO = {f".{extension}" for extension in AUDIO_EXTENSIONS}
# Deaths of each process, on average, with no file done in between, after which the rest is given up.
_MAX_DEATHS = 3
_DIED = "processes ended before this file was done (killed, or out of memory): try again, with fewer --jobs"
_DIED_ALONE = "its process ended, although nothing else ran beside it (killed, or out of memory)"

Pair = tuple[Path, Path]
Outcome = tuple[Path, Any, str | None]


@dataclass(frozen=True)
class FileTask:
    """What the processes do: `function(model, source, output, options, digest=…)` of `mimi_hf.inference`."""

    function: Callable[..., Any]
    options: Any
    model: str
    device: str | None
    dtype: str
    digest: str
    threads: int = 1

    def start(self, _number: int) -> Any:
        """Load the model, once in each process."""
        import torch

        from mimi_hf.loading import ModelChoice

        torch.set_num_threads(self.threads)
        return ModelChoice(self.model, self.dtype).load(self.device)

    def work(self, model: Any, pair: Pair) -> tuple[Any, str | None]:
        """Do one file: its report and None, or None and why it failed."""
        source, output = pair
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            return self.function(model, source, output, self.options, digest=self.digest), None
        except Exception as error:  # whatever is wrong with one file, the others are done
            return None, describe(error)


def name_output(name: str, extension: str) -> str:
    """Name what a file becomes, whatever lies beside it. The whole name is kept, so that a.wav and a.mp3 differ.

    Example:
        >>> name_output("a.wav", ".mimi"), name_output("a.wav.mimi", ".wav"), name_output("a.mp3.mimi", ".wav")
        ('a.wav.mimi', 'a.wav', 'a.mp3.wav')
    """
    stem = name[: -len(".mimi")] if name.lower().endswith(".mimi") else name
    return stem if stem.lower().endswith(extension) else stem + extension


def mirror(source: Path, output: Path, extensions: Iterable[str], extension: str) -> list[Pair]:
    """List the files of a folder, sorted, and where each goes.

    Links are followed. Hidden files are left out, and folders that may not be read, with a warning.

    Raises:
        ValueError: two go to one place, as a.mimi and a.wav.mimi do.
    """
    from mimi_hf.corpus.sources.locations import walk

    found = [path for path in (source / name for name in walk(source)) if path.suffix.lower() in extensions]
    sources = {}
    for path in sorted(found):
        target = (output / path.relative_to(source)).with_name(name_output(path.name, extension))
        if target in sources:
            raise ValueError(f"{sources[target]} and {path} would both become {target}. Rename one of them.")
        sources[target] = path
    return [(path, target) for target, path in sources.items()]


def run(task: FileTask, model: Any, pairs: list[Pair], jobs: int) -> Iterator[Outcome]:
    """Do all pairs: (source, report, None) of each as it is done, (source, None, reason) where it failed.

    Args:
        task: what to do.
        model: for this process, where `jobs` is 1; otherwise each process loads its own.
        pairs: files, and where each goes.
        jobs: processes.
    """
    if jobs == 1:
        for pair in pairs:
            yield pair[0], *task.work(model, pair)
        return
    import torch

    task = replace(task, threads=max(1, torch.get_num_threads() // jobs))
    for (source, _), outcome in run_in_processes(pairs, jobs, task.start, task.work, _MAX_DEATHS):
        if isinstance(outcome, WorkerDiedError):
            yield source, None, _DIED_ALONE if outcome.alone else _DIED
        else:
            yield source, *outcome
