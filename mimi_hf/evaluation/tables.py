"""Reports for a terminal."""

import math

from rich import box
from rich.table import Table

from .agreement import AgreementReport, CodebookAgreement
from .metrics import METRICS, Metric
from .report import EvaluationReport, Summary

_NOTHING = "-"


def quality_tables(report: EvaluationReport, told_all: bool = True) -> list:
    """What there is to print of an evaluation.

    told_all: whether the metrics were chosen; if not, those that are not installed are named.
    """
    speed = f"Encoded with {len(report.codebooks)} codebooks at {report.encode_speed:.1f}x real time, {report.dtype}."
    parts = [_quality(report), speed, _use(report)]
    missing = [] if told_all else [metric.label for metric in METRICS.values() if metric.missing]
    if missing:
        parts.append(rf"Not installed: {', '.join(missing)}. pip install 'mimi_hf\[eval]'")
    return parts


def _quality(report: EvaluationReport) -> Table:
    count = len(report.files) - len(report.failures)
    table = _table(
        f"{count} recording{'s' * (count != 1)}, {report.duration / 60:.1f} minutes: mean/median of the files"
    )
    table.add_column("codebooks\nkbps")
    for level in report.levels:
        table.add_column(f"{level.num_quantizers}\n{level.bits_per_second / 1000:.3g}", justify="right")
    if report.originals:
        table.add_column("originals", justify="right")
    for metric in report.metrics:
        name = f"{metric.label}, dB" if metric.unit == "dB" else metric.label  # others are grades from 1 to 5
        cells = [_summary(level.metrics[metric.name], metric, count) for level in report.levels]
        original = report.originals.get(metric.name)
        cells += [] if original is None else [_summary(original, metric, count)]
        table.add_row(f"{name} {'↑' if metric.higher_is_better else '↓'}", *cells)
    table.add_row("decoding", *(f"{level.decode_speed:.1f}x" for level in report.levels))
    return table


def _summary(summary: Summary, metric: Metric, files: int) -> str:
    """files: how many there are. Where fewer have a value, their number is told: other figures are of other files."""
    if summary.mean is None:
        return _NOTHING
    digits = {"dB": 1, "": 3}.get(metric.unit, 2)
    fewer = f" (of {summary.count})" if summary.count < files else ""
    return f"{summary.mean:.{digits}f}/{summary.median:.{digits}f}{fewer}"


def _use(report: EvaluationReport) -> Table:
    table = _table(f"Use of the codebooks in {report.frames} frames")
    for name in ("codebook", f"entries of {report.codebook_size}", "entropy, bits", "perplexity"):
        table.add_column(name, justify="right")
    for number, codebook in enumerate(report.codebooks, 1):
        table.add_row(str(number), str(codebook.used), f"{codebook.entropy:.2f}", f"{codebook.perplexity:.0f}")
    return table


def agreement_tables(reports: list[AgreementReport]) -> list:
    """What there is to print of comparisons with one first engine."""
    first = reports[0]
    table = _table(f"{first.first}, {first.duration / 60:.1f} minutes, {first.frames} frames, compared")
    table.add_column("with")
    for report in reports:
        table.add_column(report.second, justify="right")
    table.add_row("codes that agree", *(f"{_percent(report.equal, 3)} %" for report in reports))
    table.add_row("frames whose codes all agree", *(f"{_percent(report.equal_frames, 3)} %" for report in reports))
    table.add_row("audio of the same codes, SNR", *(_decibels(report.snr) for report in reports))
    table.add_row("largest difference of samples", *(f"{report.largest_difference:.1e}" for report in reports))
    return [table, _codebooks(reports)]


def _codebooks(reports: list[AgreementReport]) -> Table:
    table = _table("Codes that agree, in % of all frames/of those whose codes before agree")
    table.add_column("codebook", justify="right")
    for report in reports:
        table.add_column(report.second, justify="right")
    for number in range(max(len(report.codebooks) for report in reports)):
        table.add_row(str(number + 1), *(_shares(report.codebooks[number : number + 1]) for report in reports))
    return table


def _shares(codebook: tuple[CodebookAgreement, ...]) -> str:
    """Of one codebook, or none."""
    return "".join(
        f"{_percent(one.equal, 2)}/{_NOTHING if one.equal_so_far is None else _percent(one.equal_so_far, 2)}"
        for one in codebook
    )


def _percent(share: float, digits: int) -> str:
    """Rounded down: 100 are all."""
    return f"{math.floor(share * 100 * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def _decibels(ratio: float) -> str:
    return "the same" if ratio == math.inf else f"{ratio:.1f} dB"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
