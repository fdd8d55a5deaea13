"""The results of compare_peers.py: kept as JSON, to which each run adds its rows, and shown as Markdown and a plot.

A row holds what it measured (`task`, `part`, and so on, see `name_row`), and by name of the implementation

    seconds: the median time of one call, or of one live step
    figures, in the row's `unit`; 99th percentile, of live rows
    memory: bytes at the peak, of offline rows
    agreement: with the first of our variants
    without: why an implementation is left out

`work` is what one call needs, `ratio` how much faster than each other implementation each of our variants is.
"""

import itertools
import json
from collections import Counter
from pathlib import Path

from mimi_hf.benchmark import shares
from mimi_hf.utils.files import written_beside

PARTS = {"start": "Import and load", "offline": "Offline", "live": "Live"}
NAME = "compare_peers"


def name_row(row: dict) -> str:
    """What the row measured, in words: its key in the results."""
    if row["part"] == "start":
        return row["task"]
    kind = f"{row['codebooks']} codebooks, {row['dtype']}"
    if row["part"] == "live":
        return f"live {row['task']}, {row['sessions']} session{'s' * (row['sessions'] > 1)}, {kind}"
    return f"{row['task']} {row['batch']} x {row['audio']:g} s, {kind}"


def load(folder: Path) -> dict | None:
    """The results in a folder."""
    path = folder / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else None


def merge(old: dict | None, new: dict) -> dict:
    """The results of two runs: rows of the same name are the newer ones, the machine's rates the better ones.

    Raises:
        ValueError: where the runs had different machines, threads, versions or settings.
    """
    if old is None:
        return new
    before, now = old["machine"], new["machine"]
    differing = [key for key in now if key != "date" and before.get(key) != now[key]]
    if differing:
        raise ValueError(
            f"The results that are there differ in {', '.join(differing)}. Name another --output, or remove them."
        )
    gemm = dict(old["roofline"]["gemm"])
    for dtype, rate in new["roofline"]["gemm"].items():
        gemm[dtype] = max(rate, gemm.get(dtype, 0))
    bandwidth = max(old["roofline"]["bandwidth"], new["roofline"]["bandwidth"])
    return {
        "machine": now,
        "roofline": {"gemm": gemm, "bandwidth": bandwidth},
        "rows": {**old["rows"], **new["rows"]},
    }


def save(results: dict, folder: Path):
    """Write the JSON, with the shares of the machine's rates that each row reaches."""
    for row in results["rows"].values():
        if "work" in row:
            row["shares"] = row_shares(row, results["roofline"])
    folder.mkdir(parents=True, exist_ok=True)
    with written_beside(folder / f"{NAME}.json") as aside:
        aside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def render(results: dict, folder: Path):
    """Write Markdown and plot."""
    (folder / f"{NAME}.md").write_text(markdown(results))
    plot(in_order(results["rows"]), folder / f"{NAME}.png")


def row_shares(row: dict, roofline: dict) -> dict:
    """Of each implementation. All are held against the same work, that of our layers in the row's dtype."""
    gemm, bandwidth = roofline["gemm"][row["dtype"]], roofline["bandwidth"]
    return {name: shares(row["work"], seconds, gemm, bandwidth) for name, seconds in row["seconds"].items()}


def in_order(rows: dict) -> list[dict]:
    """Rows by part, precision, codebooks and task, and by size within these."""

    def key(row):
        dtype, task = row.get("dtype", ""), row["task"]
        return (
            list(PARTS).index(row["part"]),
            dtype != "float32",
            dtype,
            row.get("codebooks", 0),
            task != "encode",
            row.get("batch", 0),
            row.get("audio", row.get("sessions", 0)),
        )

    return sorted(rows.values(), key=key)


# Tables


def tables(results: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and lines of each table."""
    made = []
    for part, title in PARTS.items():
        rows = [row for row in in_order(results["rows"]) if row["part"] == part]
        if rows:
            made.append((f"{title}: {_unit(rows)}", *_speed_table(rows, part)))
        if part == "offline" and rows:
            made.append(("Peak memory of one call, its output included: MB", *_memory_table(rows)))
    return made


def _unit(rows):
    return "; ".join(dict.fromkeys(row["unit"] for row in rows))


def _speed_table(rows, part):
    names, variants = _names(rows), _variants(rows)
    header = ["", *names, *(f"ratio of {name} to the fastest other" for name in variants)]
    header += [] if part == "start" else ["of the machine's rates", "agreement"]
    lines = []
    for row in rows:
        line = [name_row(row), *(_figure(row, name) for name in names)]
        line += [_best_ratio(row, name) for name in variants]
        if part != "start":
            line += [_reached(row, variants[0]), _agreement(row)]
        lines.append(line)
    return header, lines


def _memory_table(rows):
    names = _names(rows)
    return ["", *names], [[name_row(row), *(_megabytes(row, name) for name in names)] for row in rows]


def _megabytes(row, name):
    return f"{row['memory'][name] / 1e6:.0f}" if name in row["memory"] else ""


def _variants(rows):
    return list(dict.fromkeys(name for row in rows for name in row["ratio"]))


def _names(rows):
    """Columns: our variants, then the others."""
    return list(dict.fromkeys([*_variants(rows), *(name for row in rows for name in row["figures"])]))


def _figure(row, name):
    if name not in row["figures"]:
        return ""
    digits = 3 if row["part"] == "start" else 1
    figure = f"{row['figures'][name]:.{digits}f}"
    return f"{figure} / {row['99th percentile'][name]:.{digits}f}" if row["part"] == "live" else figure


def _best_ratio(row, variant):
    against = row["ratio"].get(variant)
    return f"{min(against.values()):.2f}" if against else ""


def _reached(row, name):
    reached = row["shares"][name]
    parts = [f"{reached['gemm']:.0%} of GEMM"]
    parts += [f"{reached['bandwidth']:.0%} of bandwidth"] if row["part"] == "live" else []
    return ", ".join(parts)


def _agreement(row):
    return "; ".join(f"{name} {value}" for name, value in row["agreement"].items())


def markdown(results: dict) -> str:
    """All of the results."""
    machine = dict(results["machine"])
    versions = ", ".join(f"{name} {version}" for name, version in machine.pop("versions").items() if version)
    settings = " ".join(f"{name}={value}" for name, value in machine.pop("malloc").items()) or "as the system has it"
    gemm = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in results["roofline"]["gemm"].items())
    lines = ["# Comparison with the other implementations", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items() if value is not None]
    lines += [f"- versions: {versions}", f"- malloc: {settings}", f"- matrix products: {gemm}"]
    lines += [f"- reading memory: {results['roofline']['bandwidth']:.1f} GB/s"]
    if any(row["part"] != "start" for row in results["rows"].values()):
        lines += ["", f"![Speed and latency]({NAME}.png)"]
    for title, header, body in tables(results):
        lines += ["", f"## {title}", "", _line(header), "|---|" + "---:|" * (len(header) - 1), *map(_line, body)]
    left_out = _left_out(results["rows"])
    if left_out:
        lines += ["", "## Left out", "", *(f"- {why}: {'; '.join(rows)}" for why, rows in left_out.items())]
    return "\n".join(lines) + "\n"


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _left_out(rows):
    """Rows by implementation and reason."""
    reasons = {}
    for row in in_order(rows):
        for name, why in row.get("without", {}).items():
            reasons.setdefault(f"{name}, as {why}", []).append(name_row(row))
    return reasons


# Plot


def plot(rows: list[dict], path: Path):
    """Speed against length (one recording at a time) and latency against sessions, of the kind with most rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["part"] != "start"]
    if not rows:
        return
    kinds = {part: _commonest_kind(rows, part) for part in ("offline", "live")}
    rows = [row for row in rows if (row["codebooks"], row["dtype"]) == kinds[row["part"]]]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    colors = {name: f"C{index}" for index, name in enumerate(_names(rows))}
    for task, (left, right) in zip(("encode", "decode"), axes, strict=True):
        of_task = [row for row in rows if row["task"] == task]
        offline = [row for row in of_task if row["part"] == "offline" and row["batch"] == 1]
        live = [row for row in of_task if row["part"] == "live"]
        _draw(left, offline, "audio", "figures", colors, marker="o")
        _draw(right, live, "sessions", "figures", colors, marker="o")
        _draw(right, live, "sessions", "99th percentile", colors, marker="_", linestyle=":", labelled=False)
        right.axhline(80, color="grey", linewidth=1, linestyle="--", label="real time")
        left.set(
            title=f"{task}, offline{_words(kinds['offline'])}",
            xlabel="length of the audio, s",
            ylabel="audio seconds per second",
        )
        right.set(title=f"{task}, live{_words(kinds['live'])}", xlabel="sessions", ylabel="ms per frame")
        left.set_ylim(bottom=0)
        right.set_yscale("log")
        low, high = right.get_ylim()
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= tick <= high]
        right.set_yticks(ticks, [f"{tick}" for tick in ticks], minor=False)
        right.yaxis.set_minor_formatter("")
    legends = [zip(*reversed(axis.get_legend_handles_labels()), strict=True) for axis in axes.flat]
    handles = dict(itertools.chain(*legends))
    names = [*(name for name in colors if name in handles), *(name for name in handles if name not in colors)]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=4)
    figure.suptitle("Latencies are medians, dotted the 99th percentile")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _commonest_kind(rows, part):
    """Codebooks and dtype of most rows of a part; the first such where several have as many."""
    kinds = Counter((row["codebooks"], row["dtype"]) for row in rows if row["part"] == part)
    return max(kinds, key=kinds.get, default=None)


def _words(kind):
    return f" ({kind[0]} codebooks, {kind[1]})" if kind else ""


def _draw(axis, rows, along, kind, colors, labelled=True, **style):
    """One line per implementation."""
    for name, color in colors.items():
        points = [(row[along], row[kind][name]) for row in rows if name in row[kind]]
        if points:
            axis.plot(*zip(*points, strict=True), color=color, label=name if labelled else None, **style)
    axis.set_xscale("log")
    ticks = sorted({row[along] for row in rows})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
