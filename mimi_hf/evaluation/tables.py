"""Tables of reports, for a terminal."""

import itertools
import math

from rich import box
from rich.console import RenderableType
from rich.table import Table

from .agreement import AgreementReport
from .metrics import METRICS, Metric
from .report import EvaluationReport, Summary

_NOTHING = "-"


def quality_tables(report: EvaluationReport, told_all: bool = True) -> list[RenderableType]:
    """Make the tables of an evaluation, with lines of text between them.

    Args:
        report: of the evaluation.
        told_all: whether the user chose the metrics. If not, metrics that are not installed are named.
    """
    use = _table(f"Use of the codebooks in {report.frames} frames")
    for name in ("codebook", f"entries of {report.codebook_size}", "entropy, bits", "perplexity"):
        use.add_column(name, justify="right")
    for number, codebook in enumerate(report.codebooks, 1):
        use.add_row(str(number), str(codebook.used), f"{codebook.entropy:.2f}", f"{codebook.perplexity:.0f}")
    speed = f"Encoded with {len(report.codebooks)} codebooks at {report.encode_speed:.1f}x real time, {report.dtype}."
    parts: list[RenderableType] = [_quality(report), speed, use]
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
        name = f"{metric.label}, dB" if metric.unit == "dB" else metric.label  # other units are grades from 1 to 5
        cells = [_summary(level.metrics[metric.name], metric, count) for level in report.levels]
        original = report.originals.get(metric.name)
        cells += [] if original is None else [_summary(original, metric, count)]
        table.add_row(f"{name} {'↑' if metric.higher_is_better else '↓'}", *cells)
    table.add_row("decoding", *(f"{level.decode_speed:.1f}x" for level in report.levels))
    return table


def _summary(summary: Summary, metric: Metric, files: int) -> str:
    """Format mean and median. If fewer than `files` files have a value, their number follows."""
    if summary.mean is None:
        return _NOTHING
    digits = {"dB": 1, "": 3}.get(metric.unit, 2)
    fewer = f" (of {summary.count})" if summary.count < files else ""
    return f"{summary.mean:.{digits}f}/{summary.median:.{digits}f}{fewer}"


def agreement_tables(reports: list[AgreementReport]) -> list[RenderableType]:
    """Make the tables of comparisons that all have the same first variant."""
    first = reports[0]
    whole = _table(f"{first.first}, {first.duration / 60:.1f} minutes, {first.frames} frames, compared")
    whole.add_column("with")
    by_codebook = _table("Codes that agree, in % of all frames/of those whose codes before agree")
    by_codebook.add_column("codebook", justify="right")
    for report in reports:
        whole.add_column(report.second, justify="right")
        by_codebook.add_column(report.second, justify="right")
    ratios = ("the same" if report.snr == math.inf else f"{report.snr:.1f} dB" for report in reports)
    whole.add_row("codes that agree", *(f"{_percent(report.equal, 3)} %" for report in reports))
    whole.add_row("frames whose codes all agree", *(f"{_percent(report.equal_frames, 3)} %" for report in reports))
    whole.add_row("audio of the same codes, SNR", *ratios)
    whole.add_row("largest difference of samples", *(f"{report.largest_difference:.1e}" for report in reports))
    for number, row in enumerate(itertools.zip_longest(*(report.codebooks for report in reports)), 1):
        cells = []
        for codebook in row:  # None: this pair has fewer codebooks
            share = None if codebook is None else codebook.equal_so_far
            so_far = _NOTHING if share is None else _percent(share, 2)
            cells.append("" if codebook is None else f"{_percent(codebook.equal, 2)}/{so_far}")
        by_codebook.add_row(str(number), *cells)
    return [whole, by_codebook]


def _percent(share: float, digits: int) -> str:
    """Format a share in percent, rounded down: only equality gives 100."""
    return f"{math.floor(share * 100 * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
