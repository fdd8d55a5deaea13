"""What half precision and 8-bit weights cost, against single precision.

    python benchmarks/precision.py                   # seeded weights on a synthetic voice, and mimi-tiny on speech
    python benchmarks/precision.py --model kyutai/mimi --audio speech.wav

Per codebook, the part of codes that agree; of the latents, and of the audio that the same codes decode to, the ratio
of signal to noise. A code that differs is most often another entry about as near; those after it then quantize another
residual.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import peers
import torch
import typer

from mimi_hf.audio import read_audio
from mimi_hf.demo import speech_path
from mimi_hf.loading import ModelChoice

KINDS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "8-bit weights, float32": {"int8": True},
    "8-bit weights, bfloat16": {"dtype": torch.bfloat16, "int8": True},
}


@torch.inference_mode()
def compare(folder, audio: torch.Tensor) -> list[dict]:
    """One row per kind of [`KINDS`]; audio: Tensor, shape = (1, 1, N)."""
    reference = load(folder)
    codes, latents = reference.encode(audio).audio_codes, reference.encode_latents(audio)
    sound = reference.decode(codes).audio_values
    rows = []
    for name, kind in KINDS.items():
        model = load(folder, **kind)
        agreement = (model.encode(audio).audio_codes == codes).float().mean(dim=(0, 2))
        rows.append(
            {
                "precision": name,
                "codes that agree, % per codebook": [round(100 * float(part), 1) for part in agreement],
                "latents, dB": round(signal_to_noise(model.encode_latents(audio), latents), 1),
                "audio from the same codes, dB": round(signal_to_noise(model.decode(codes).audio_values, sound), 1),
            }
        )
    return rows


def load(folder, dtype=torch.float32, int8=False):
    from mimi_hf import MimiConfig, MimiInt8Config, MimiModel

    # In a small model, all weights are too small to be worth it.
    small = {"min_size": 2**12} if MimiConfig.from_pretrained(folder).hidden_size < 512 else {}
    quantization = {"quantization_config": MimiInt8Config(**small)} if int8 else {}
    return MimiModel.from_pretrained(folder, dtype=dtype, **quantization)


def signal_to_noise(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """In dB."""
    noise = (actual.float() - expected).square().sum()
    return float(10 * torch.log10(expected.square().sum() / noise))


def main(
    model: Annotated[str | None, typer.Option(help="A folder or the id of a model, instead of the two.")] = None,
    audio: Annotated[Path | None, typer.Option(help="A recording; by default a synthetic voice.")] = None,
    seconds: Annotated[float, typer.Option(help="Of audio, at most.")] = 30,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent / "results",
    smoke: Annotated[bool, typer.Option("--smoke", help="One second, nothing written.")] = False,
):
    """Measure what half precision and 8-bit weights cost."""
    samples = int((1 if smoke else seconds) * peers.RATE)
    cases = [(model, audio)] if model or audio else [(None, None), ("mimi-tiny", speech_path())]
    results = [measure(*case, samples) for case in cases]
    print(json.dumps(results, indent=2))
    if not smoke:
        output.mkdir(parents=True, exist_ok=True)
        (output / "precision.json").write_text(json.dumps(results, indent=2) + "\n")


def measure(model: str | None, audio: Path | None, samples: int) -> dict:
    """What each precision costs a model, on the beginning of a recording."""
    sound = peers.make_audio(samples)
    if audio is not None:
        sound = torch.from_numpy(read_audio(audio, peers.RATE, 1)[0])[None, :, :samples]
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(ModelChoice(model).place if model else peers.make_seeded(Path(folder)), sound)
    return {
        "model": model or "seeded weights",
        "audio": audio.name if audio else "synthetic voice",
        "seconds": sound.shape[2] / peers.RATE,
        "rows": rows,
    }


if __name__ == "__main__":
    typer.run(main)
