"""The log of a run: figures as lines of JSON, and event files where TensorBoard is installed."""

import json
from pathlib import Path

from .validation import ValidationResult


class RunLog:
    """The log of a run.

    Args:
        folder: of the run. `log.jsonl` and `tensorboard/` lie in it.
        active: whether to write at all: only the main process does.
        step: the step that the run starts from. Figures of later steps, from a killed run, are dropped.
    """

    def __init__(self, folder: Path, active: bool, step: int) -> None:
        self._file = self._board = None
        if not active:
            return
        path = folder / "log.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if _step_of(line) <= step), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            pass  # `pip install tensorboard` for curves, sounds and pictures

    def write_figures(self, step: int, figures: dict[str, float], group: str = "train") -> None:
        """Write the figures of a step."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "group": group, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def write_audio(self, step: int, result: ValidationResult) -> None:
        """Write the audio of a validation, and its spectrograms."""
        if self._board is None:
            return
        from mimi_hf.evaluation.picture import draw_spectrograms

        for kind, samples in {"original": result.original, "reconstruction": result.reconstruction}.items():
            self._board.add_audio(kind, samples, step, result.sampling_rate)
            picture = draw_spectrograms([samples.numpy()], result.sampling_rate)
            self._board.add_image(f"spectrogram/{kind}", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        for part in (self._file, self._board):
            if part is not None:
                part.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # half a line of a killed run
        return float("inf")
