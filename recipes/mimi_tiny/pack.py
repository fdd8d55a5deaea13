"""Turn a trained small model into the one that comes with the package: half precision, codebooks ready for use.

python recipes/mimi_tiny/pack.py runs/tiny/best mimi_hf/assets/mimi_tiny recordings/
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mimi_hf import MimiFeatureExtractor, MimiModel
from mimi_hf.audio import AUDIO_EXTENSIONS, read_audio
from mimi_hf.codec.quantizer import EPSILON

LIMIT = 6_000_000


def pack(source: Path, output: Path):
    """Write the model at `source` to `output`, in at most 6 MB with the card that is there.

    After an error, `output` is as it was.

    Raises:
        ValueError: it is larger, or half precision does not hold it.
    """
    model = MimiModel.from_pretrained(source, dtype=torch.float32)
    state = _halve(model.state_dict())
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
        aside = Path(aside)
        save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(aside)
        config = json.loads((aside / "config.json").read_text())
        config["dtype"] = "float32"  # what from_pretrained loads it as
        (aside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        MimiFeatureExtractor(sampling_rate=model.config.sampling_rate).save_pretrained(aside)
        made = {path.name: path for path in aside.iterdir()}
        kept = [path for path in output.iterdir() if path.name not in made]
        size = sum(path.stat().st_size for path in (*made.values(), *kept))
        if size > LIMIT:
            raise ValueError(f"{source} would take {size} bytes, more than {LIMIT}. Train a smaller model.")
        for name, path in made.items():
            path.chmod(0o644)  # safetensors lets nobody else read its files
            path.replace(output / name)
    print(f"{size / 1e6:.2f} MB, {sum(tensor.numel() for tensor in state.values())} numbers")


def _halve(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In half precision; codebooks by their entries, as sums and counts do not fit."""
    halves = {}
    for name, tensor in state.items():
        if name.endswith("embed_sum"):
            tensor = tensor / state[name.replace("embed_sum", "cluster_usage")].clamp(min=EPSILON)[:, None]
        elif name.endswith("cluster_usage"):
            tensor = torch.ones_like(tensor)
        halves[name] = tensor.half().contiguous()
        if not halves[name].isfinite().all():
            raise ValueError(
                f"{name} reaches {float(tensor.abs().max()):.3g}, which half precision does not hold. Train on, or pack"
                " another checkpoint."
            )
    return halves


def compare(source: Path, output: Path, recordings: Path):
    """Say what half precision costs: equal codes, and the difference of the audio of the same codes."""
    before, after = (MimiModel.from_pretrained(path, dtype=torch.float32).eval() for path in (source, output))
    found = sorted(path for path in recordings.rglob("*") if path.suffix[1:].lower() in AUDIO_EXTENSIONS)
    paths = [recordings] if recordings.is_file() else found
    if not paths:
        raise ValueError(f"{recordings} holds no recordings. Name a folder with some, or a file.")
    equal, signal, noise = [], 0.0, 0.0
    for path in paths:
        audio = torch.from_numpy(read_audio(path, before.config.sampling_rate, 1)[0])[None]
        with torch.no_grad():
            codes = before.encode(audio).audio_codes
            equal.append((after.encode(audio).audio_codes == codes).float().mean(dim=(0, 2)))
            first, second = (model.decode(codes).audio_values for model in (before, after))
        signal, noise = signal + float(first.square().sum()), noise + float((first - second).square().sum())
    shares = ", ".join(f"{100 * float(share):.2f}" for share in torch.stack(equal).mean(dim=0))
    print(f"equal codes, by codebook: {shares} %; audio of the same codes: {10 * np.log10(signal / noise):.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder that training saved")
    parser.add_argument("output", type=Path, help="where the packed model goes")
    parser.add_argument("recordings", type=Path, nargs="?", help="compare both on these")
    arguments = parser.parse_args()
    pack(arguments.source, arguments.output)
    if arguments.recordings:
        compare(arguments.source, arguments.output, arguments.recordings)
