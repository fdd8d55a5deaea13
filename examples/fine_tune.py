"""Fine-tune Mimi on a voice: the decoder learns it, the codes stay the same, and quality is measured before and after.

    python examples/fine_tune.py my-recordings --validation other-recordings --steps 300

Only the decoder is trained, so existing codes stay valid. `--validation` names recordings of the same voice that the
model does not learn from; without it, the quality on the training recordings is shown. `OUTPUT/best` holds the model
that was best on them, `OUTPUT/model` the last one; both load with `MimiModel.from_pretrained`. The defaults take about
a minute on two cores. `mimi-hf train` does the same from a YAML file; `recipes/fine_tuning` explains each step.
"""

import argparse
from pathlib import Path

import torch

from mimi_hf import MimiFeatureExtractor, MimiModel, mimi_tiny_path
from mimi_hf.codec.losses import reconstruction_loss
from mimi_hf.evaluation.metrics import METRICS, score
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.run.trainer import Trainer

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg"}


def measure(model: MimiModel, folder: Path) -> dict[str, float]:
    """The mean loss of the recordings in a folder, and their mean STOI where pystoi is installed."""
    config = model.config
    extractor = MimiFeatureExtractor(config.audio_channels, config.sampling_rate)
    metrics = [name for name in ("mel_distance", "stoi") if not METRICS[name].missing]
    found: dict[str, list[float]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        original = extractor(str(file), return_tensors="pt")["input_values"]  # (1, 1, N)
        with torch.no_grad():
            decoded = model(original).audio_values
        scores = score(original[0, 0].numpy(), decoded[0, 0].numpy(), config.sampling_rate, metrics)
        values = {name: one.value for name, one in scores.items()}
        values["loss"] = float(reconstruction_loss(original, decoded, config.sampling_rate))
        for name, value in values.items():
            if value is not None:  # silence has no STOI
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def report(figures: dict) -> None:
    if "speed" in figures:
        print(f"step {figures['step']}: mel loss {figures['mel']:.3f}, {figures['speed']:.0f} s of audio a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a folder of audio to learn from")
    parser.add_argument("output", nargs="?", type=Path, default=Path("runs/fine_tune"), help="the folder of the run")
    parser.add_argument("--validation", type=Path, help="a folder of audio to measure on; by default the same one")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--model", default=str(mimi_tiny_path()), help="for example kyutai/mimi")
    args = parser.parse_args()
    validation = args.validation or args.recordings

    config = TrainingConfig.from_dict(
        {
            "run": {"output": str(args.output), "precision": "fp32", "log_every": max(1, args.steps // 10)},
            "model": {"start": args.model, "train": ["decoder"]},
            "data": {
                "train": [str(args.recordings)],
                "validation": [str(validation)],
                "crop_seconds": 0.96,
                "batch_size": args.batch_size,
            },
            "quantizer": {"unquantized": 0.0},
            "optimizer": {
                "steps": args.steps,
                "learning_rate": args.learning_rate,
                "warmup_steps": min(20, args.steps // 5),
                "kind": "adamw",
                "ema_decay": 0.95,
            },
        }
    )
    Trainer(config, report).run()

    before = measure(MimiModel.from_pretrained(args.model, dtype=torch.float32), validation)
    after = measure(MimiModel.from_pretrained(args.output / "best", dtype=torch.float32), validation)
    for name in before:
        print(f"{name}: {before[name]:.4f} before, {after[name]:.4f} after")


if __name__ == "__main__":
    main()
