"""The README.md of a corpus: YAML that tells `datasets.load_dataset` what to open, and facts for its readers."""

import json
from typing import Any


def tokenized_card(settings: dict[str, Any], source: dict[str, Any], totals: dict[str, Any] | None) -> str:
    """Make the card of a tokenized corpus.

    Args:
        settings: of the job.
        source: the source's description of itself.
        totals: of the finished corpus; `None` while shards are missing.
    """
    lines = [*_front("audio-tokens", "data/*.parquet", totals), "# Speech as Mimi codes", ""]
    frame_rate = settings["sampling_rate"] / settings["frame_size"]
    lines += [
        f"Made with `mimi-hf tokenize` (mimi_hf {settings['mimi_hf']}) and the model `{settings['model']}` in"
        f" {settings['dtype']}:",
        f"{settings['num_quantizers']} codebooks of {settings['codebook_size']} entries, {frame_rate:g} frames a"
        " second.",
        "",
    ]
    lines += ["Not all shards are done yet.", ""] if totals is None else _table(totals)
    lines += [
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset(FOLDER_OR_ID, split="train")  # this folder, or its id on the Hub',
        'rows[0]["audio_codes"]  # codebooks x frames',
        "```",
        "",
        "| column | |",
        "|---|---|",
        "| `id` | where in the source the example comes from |",
        "| `audio_codes` | codes, codebooks x frames; the first codebook is the semantic one |",
        f"| `audio_num_samples` | length of the audio in samples at {settings['sampling_rate']} Hz; the last frame is"
        " padded |",
        "",
        "Other columns are those of the source.",
        "",
        *_source(source),
        f"Codebooks (SHA-256): `{settings['codebook_digest']}`. Any model with these codebooks decodes them:"
        " `mimi-hf detokenize`.",
        "",
    ]
    return "\n".join(lines)


def detokenized_card(settings: dict[str, Any], source: dict[str, Any], totals: dict[str, Any] | None) -> str:
    """Make the card of a decoded corpus; arguments as for [`tokenized_card`]."""
    lines = _front("audio", "data/*.parquet" if settings["as_parquet"] else None, totals)
    lines += [
        "# Speech decoded from Mimi codes",
        "",
        f"Made with `mimi-hf detokenize` (mimi_hf {settings['mimi_hf']}) and the model `{settings['model']}` in"
        f" {settings['dtype']},",
        f"{settings['sampling_rate']} Hz, {settings['kind']}.",
        "",
    ]
    if totals is None:
        lines += ["Not all shards are done yet.", ""]
    else:
        lines += ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in totals.items()), ""]
    if not settings["as_parquet"]:
        lines += ["The files in `audio/` are named by the ids of the examples.", ""]
    return "\n".join([*lines, *_source(source)])


def _front(tag: str, files: str | None, totals: dict | None) -> list[str]:
    """The YAML of the card."""
    lines = ["---", "tags:", "- mimi", f"- {tag}"]
    tables = {"default": files, "failures": "failures.parquet" if totals and totals["failures"] else None}
    if files:
        lines.append("configs:")
        for name, path in tables.items():
            if path:
                lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {path}"]
    return [*lines, "---", ""]


def _source(source: dict) -> list[str]:
    return [
        "Source:",
        "",
        "```json",
        json.dumps(source, indent=1, ensure_ascii=False, sort_keys=True),
        "```",
        "",
    ]


def _table(totals: dict) -> list[str]:
    lines = [
        "| | |",
        "|---|---:|",
        f"| examples | {totals['examples']} |",
        f"| hours | {totals['hours']:.2f} |",
        f"| frames | {totals['frames']} |",
        f"| failures | {totals['failures']} |",
        "",
        f"| codebook | entries used of {totals['codebook_size']} | entropy of {totals['bits_of_a_code']:.1f} bits |",
        "|---:|---:|---:|",
    ]
    for number, codebook in enumerate(totals["codebooks"], 1):
        lines.append(f"| {number} | {codebook['used']} | {codebook['entropy']:.2f} |")
    return [*lines, ""]
