"""Recordings that were prepared for training, read in any order. [`mimi_hf.training.data.preparation`] writes them.

A cache is a folder with

    audio-0.s16, …       16-bit mono samples, little-endian, one recording after the other
    index.npy            (R, 4) int64: file, first sample, number of samples, and source of each of R recordings
    report.json          the counts, written last: with it, the cache is complete
"""

import json
import os
from pathlib import Path

import numpy as np

REPORT, INDEX = "report.json", "index.npy"
SAMPLE = np.dtype("<i2")


class AudioCache:
    """Recordings that [`mimi_hf.training.data.preparation.prepare`] wrote. Its files are memory-mapped.

    Args:
        folder: the folder that holds `report.json`.

    Attributes:
        sampling_rate: samples per second.
        sources: their names, as given to `prepare`.
        index: np.ndarray of shape (R, 4), int64: file, first sample, number of samples, number of the source.
        report: counts for JSON: `recordings` and `hours` that were kept; how many of these are `resampled`, `stereo`
            (two channels or more), `clipped` and `short` (below a second); `left_out` by reason; and in `sources` the
            same for each source.

    Raises:
        OSError, ValueError: it is not complete.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.report: dict = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        self.sampling_rate: int = self.report["sampling_rate"]
        self.sources = tuple(self.report["sources"])
        self.index = np.load(self.folder / INDEX, allow_pickle=False)
        self._files = {int(number): self._map(int(number)) for number in np.unique(self.index[:, 0])}

    def _map(self, number: int) -> np.ndarray:
        path, rows = audio_path(self.folder, number), self.index[self.index[:, 0] == number]
        needed = int((rows[:, 1] + rows[:, 2]).max())
        if path.stat().st_size < needed * SAMPLE.itemsize:
            raise ValueError(f"{path} is cut short: {needed} samples should be there. Remove {self.folder}.")
        return np.memmap(path, SAMPLE, "r").view(np.ndarray)

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self.index)

    def read(self, recording: int, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Read samples of a recording.

        Args:
            recording: its number, below `len(cache)`.
            start: the first sample.
            samples: how many samples, N; fewer come back where the recording ends. All by default.

        Returns:
            np.ndarray, shape = (N,), float32, in [-1, 1).
        """
        file, first, length, _ = self.index[recording].tolist()
        stop = length if samples is None else min(length, start + samples)
        return self._files[file][first + start : first + stop].astype(np.float32) / np.float32(2**15)


def audio_path(folder: Path, number: int) -> Path:
    """The path of a file of samples in a cache."""
    return folder / f"audio-{number}.s16"
