"""The folder with the results of an evaluation. It is written completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimi_hf.utils.files import check_replaceable, written_beside

from . import picture
from .agreement import AgreementReport
from .report import EvaluationReport, write_json

# The files of such a folder. A folder that holds any other file is never replaced.
REPORT, TABLE, AGREEMENT = "report.json", "files.csv", "agreement.json"
QUALITY, SPECTROGRAM = "quality.png", "spectrogram.png"
_OURS = {REPORT, TABLE, QUALITY, SPECTROGRAM, AGREEMENT}


def check_folder(folder: Path, force: bool = False) -> None:
    """Check that the results can be written to a folder.

    Args:
        folder: where to write.
        force: whether to replace results that it already holds.

    Raises:
        OSError: it cannot be made, or must not be replaced; the message says what to do.
    """
    check_replaceable(folder, _OURS, force)


def write_evaluation(folder: Path, report: EvaluationReport, **facts: Any) -> None:
    """Write report.json, files.csv, quality.png and spectrogram.png, and replace the folder's earlier results.

    Args:
        folder: where to write.
        report: the results.
        facts: values for the beginning of report.json.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    picture.check_installed()
    with _replace(folder) as aside:
        write_json(aside / REPORT, {**facts, **report.to_dict()})
        report.write_csv(aside / TABLE)
        picture.save(picture.plot_quality(report), aside / QUALITY)
        sample = report.sample
        parts = {f"{sample.id}, original": sample.original}
        for level, audio in sample.reconstructions.items():
            parts[f"{level} codebook{'s' * (level > 1)}"] = audio
        picture.save(picture.plot_spectrograms(parts, sample.sampling_rate), aside / SPECTROGRAM)


def write_agreement(folder: Path, reports: list[AgreementReport], **facts: Any) -> None:
    """Write agreement.json, and replace the folder's earlier results.

    Args:
        folder: where to write.
        reports: one per pair of variants.
        facts: values for the beginning of agreement.json.

    Raises:
        OSError: it cannot be written.
    """
    with _replace(folder) as aside:
        write_json(aside / AGREEMENT, {**facts, "agreement": [report.to_dict() for report in reports]})


@contextmanager
def _replace(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside this one, which replaces it at the end."""
    check_folder(folder, force=True)
    with written_beside(folder) as aside:
        aside.mkdir()
        yield aside
