"""The folder of an evaluation, which appears whole or not at all."""

from contextlib import contextmanager
from pathlib import Path

from mimi_hf.utils.files import check_replaceable, written_beside

from . import picture
from .agreement import AgreementReport
from .report import EvaluationReport, write_json

# All that such a folder holds. One that holds anything else is never replaced.
REPORT, TABLE, AGREEMENT = "report.json", "files.csv", "agreement.json"
QUALITY, SPECTROGRAM = "quality.png", "spectrogram.png"
_OURS = {REPORT, TABLE, QUALITY, SPECTROGRAM, AGREEMENT}


def check_folder(folder: Path, force: bool = False):
    """Refuse a folder that cannot be made, or must not be replaced.

    Raises:
        OSError: with the reason, and what to do.
    """
    check_replaceable(folder, _OURS, force)


def write_evaluation(folder: Path, report: EvaluationReport, **facts):
    """Write report.json (with `facts` in front), files.csv, quality.png and spectrogram.png; what [`check_folder`]
    allows to be replaced is.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    picture.check_installed()
    with _made(folder) as aside:
        write_json(aside / REPORT, {**facts, **report.to_dict()})
        report.write_csv(aside / TABLE)
        picture.save(picture.quality(report), aside / QUALITY)
        sample = report.sample
        parts = {f"{sample.id}, original": sample.original}
        for level, audio in sample.reconstructions.items():
            parts[f"{level} codebook{'s' * (level > 1)}"] = audio
        picture.save(picture.spectrogram(parts, sample.sampling_rate), aside / SPECTROGRAM)


def write_agreement(folder: Path, reports: list[AgreementReport], **facts):
    """Write agreement.json, with `facts` in front.

    Raises:
        OSError: it cannot be written.
    """
    with _made(folder) as aside:
        write_json(aside / AGREEMENT, {**facts, "agreement": [report.to_dict() for report in reports]})


@contextmanager
def _made(folder: Path):
    """A folder beside this one, which takes its place at the end."""
    check_folder(folder, force=True)
    with written_beside(folder) as aside:
        aside.mkdir()
        yield aside
