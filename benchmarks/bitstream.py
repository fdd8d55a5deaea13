"""What .mimi files take, packed and entropy-coded, and how fast they are written and read.

    python benchmarks/bitstream.py                                   # seeded weights, a synthetic voice
    python benchmarks/bitstream.py --model kyutai/mimi speech.wav more.flac    # into results/bitstream_mimi.json

Sizes are per code of 11 bits. "ideal" is the empirical entropy of each codebook by itself over all recordings, as if
its frequencies were known for nothing: an optimistic bound for short recordings, where few codes come twice. Each
recording is a file of its own; "in one file" are all of them, one after the other.
"""

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import peers
import torch
import typer

from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header
from mimi_hf.bitstream.entropy import EntropyCoder
from mimi_hf.loading import ModelChoice


def measure(recordings: list[np.ndarray], header: Header) -> dict:
    """Bits of the codes of some recordings, each of shape = (K, F)."""
    joined = np.concatenate(recordings, axis=1)
    bits = {
        "packed": bits_per_code(recordings, header, "packed"),
        "entropy": bits_per_code(recordings, header, "entropy"),
        "entropy, in one file": bits_per_code([joined], header, "entropy"),
        "ideal": round(float(np.mean(ideal_bits(joined))), 3),
    }
    return {
        "bits per code, blocks included, headers not": bits,
        "entropy saves, %": round(100 * (1 - bits["entropy"] / bits["packed"]), 1),
        "per codebook": {
            "entropy, without blocks": [payload_bits(recordings, header, k) for k in range(len(joined))],
            "ideal": [round(bits, 3) for bits in ideal_bits(joined)],
            "different codes": [len(np.unique(codes)) for codes in joined],
        },
    }


def payload_bits(recordings, header: Header, k: int) -> float:
    """Per code of a codebook, coded by itself."""
    coded = (EntropyCoder(1, 1, header.codebook_size).encode(codes[k][:, None, None]) for codes in recordings)
    return round(8 * sum(map(len, coded)) / sum(codes.shape[1] for codes in recordings), 3)


def simulate(header: Header) -> list[dict]:
    """What entropy coding saves on independent codes whose frequencies are log-normal.

    Trained codebooks are used far more evenly than those of random weights, which leaves entropy coding little.
    """
    random, rows = np.random.default_rng(0), []
    for spread in (0.0, 0.5, 0.8, 1.2):
        part = np.exp(spread * random.standard_normal(header.codebook_size))
        part /= part.sum()
        row = {"bits of entropy": round(float(-(part * np.log2(part)).sum()), 2)}
        for name, seconds in {"1 min": 60, "10 min": 600, "1 h": 3600}.items():
            frames = int(seconds * header.frame_rate)
            codes = random.choice(header.codebook_size, (header.num_quantizers, frames), p=part)
            saved = 1 - file_size(codes, header, "entropy") / file_size(codes, header, "packed")
            row[f"entropy saves in {name}, %"] = round(100 * saved, 1)
        rows.append(row)
    return rows


def bits_per_code(recordings, header: Header, coding: str) -> float:
    sizes = [file_size(codes, header, coding) for codes in recordings]
    return round(8 * sum(sizes) / sum(codes.size for codes in recordings), 3)


def file_size(codes, header: Header, coding: str) -> int:
    """Bytes of a file, less its header and end mark."""
    return len(write(codes, header, coding)) - len(write(codes[:, :0], header, coding))


def write(codes, header: Header, coding: str) -> bytes:
    header = Header(len(codes), header.codebook_size, header.sampling_rate, header.frame_size, coding=coding)
    file = io.BytesIO()
    with BitstreamWriter(file, header) as writer:
        writer.write(codes)
    return file.getvalue()


def ideal_bits(codes) -> list[float]:
    """The empirical entropy of each codebook; codes have shape = (K, F)."""
    parts = [np.unique(row, return_counts=True)[1] / len(row) for row in codes]
    return [float(-(part * np.log2(part)).sum()) for part in parts]


def speed(header: Header, coding: str, hours: float) -> dict:
    """Seconds that an hour of random codes takes: the worst case, as nothing is saved."""
    frames = int(hours * 3600 * header.frame_rate)
    codes = np.random.default_rng(0).integers(0, header.codebook_size, (header.num_quantizers, frames))
    start = time.perf_counter()
    data = write(codes, header, coding)
    written = time.perf_counter()
    reader = BitstreamReader(io.BytesIO(data))
    reader.read()
    done = time.perf_counter()
    reader.seek(frames - 1)
    next(iter(reader))
    sought = time.perf_counter()
    return {
        "write": round((written - start) / hours, 4),
        "read": round((done - written) / hours, 4),
        "seek to the last frame and read it": round(sought - done, 4),
        "kbps": round(len(data) * 8 / (hours * 3600) / 1000, 4),
    }


@torch.inference_mode()
def encode(model, audio, seconds: float, num_quantizers: int) -> list[np.ndarray]:
    """Codes of some files, or of the synthetic voice, shape = (K, F) each."""
    from mimi_hf.audio import read_audio

    rate = model.config.sampling_rate
    waves = [torch.from_numpy(read_audio(path, rate, 1)[0])[None] for path in audio]
    waves = waves or [peers.make_audio(int(seconds * rate))]
    return [
        model.encode(wave[..., : int(seconds * rate)], num_quantizers=num_quantizers)[0][0].numpy() for wave in waves
    ]


def load(model: str | None, smoke: bool):
    """A model, and what to call it."""
    from mimi_hf import MimiConfig, MimiModel

    if model:
        return ModelChoice(model).load("cpu"), Path(model).name if Path(model).exists() else model
    if smoke:
        torch.manual_seed(0)
        sizes = {"num_filters": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4, "intermediate_size": 32, "upsample_groups": 32, "codebook_dim": 16}
        sizes |= {"vector_quantization_hidden_dimension": 16, "num_quantizers": 8}
        return MimiModel(MimiConfig(**sizes)).eval(), "tiny seeded weights"
    with tempfile.TemporaryDirectory() as folder:
        return MimiModel.from_pretrained(peers.make_checkpoints(Path(folder))[0]), "seeded weights"


def main(
    audio: Annotated[list[Path] | None, typer.Argument(help="Recordings; a synthetic voice by default.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, the id of a model or mimi-tiny; seeded weights by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the results call the model.")] = None,
    num_quantizers: Annotated[int, typer.Option("--num-quantizers", "-k", help="Codebooks.")] = 8,
    seconds: Annotated[float, typer.Option(help="Of each recording, at most.")] = 3600,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny model, two seconds, nothing written.")] = False,
):
    """Measure the sizes of .mimi files and their speed."""
    codec, known_as = load(model, smoke)
    audio, config = audio or [], codec.config
    if not audio:
        seconds = min(seconds, 30)
    recordings = encode(codec, audio, 2 if smoke else seconds, num_quantizers)
    header = Header(num_quantizers, config.codebook_size, int(config.sampling_rate), config.frame_size)
    result = {
        "model": name or known_as,
        "audio": [path.name for path in audio] or "synthetic voice",
        "seconds": round(sum(codes.shape[1] for codes in recordings) / header.frame_rate, 1),
        "codebooks": num_quantizers,
        **measure(recordings, header),
        "simulated codes": simulate(header),
        "seconds per hour of random codes": {c: speed(header, c, 0.1 if smoke else 1) for c in ("packed", "entropy")},
    }
    print(json.dumps(result, indent=2))
    if not smoke:
        output.mkdir(parents=True, exist_ok=True)
        file = "bitstream.json" if model is None else f"bitstream_{Path(name or known_as).name.replace('-', '_')}.json"
        (output / file).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
